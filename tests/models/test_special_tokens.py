"""What a model's own tokenizer puts around a text is there after the boot, and ids without a row are refused."""

import threading
import time

import families
import pytest
import tiny
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import tl_skillneurons as skn
from tl_skillneurons.models.tokenizing import label_tokens, piece_ids, text_token_ids
from tl_skillneurons.prompts.tuning.schedule import embedding_rows

NAMED = {"pad_token": "<pad>", "unk_token": "<unk>"}
FULL = {
    **NAMED,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
LIKE_BERT = {**NAMED, "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
IDS = {"<s>": 1, "</s>": 2, "<mask>": 4}
TEXT, TEXT_IDS = "good film", [tiny.VOCABULARY["good"], tiny.VOCABULARY["film"]]


def template(single):
    used = [(token, number) for token, number in IDS.items() if token in single.split()]
    return processors.TemplateProcessing(single=single, special_tokens=used)


def generic(post_processor, **named):
    words = Tokenizer(models.WordLevel(tiny.VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = post_processor
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, **named)


def save(folder, family, tokenizer):
    tiny.hf_model(family).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ids_run(model, text=TEXT):
    """The ids of a text as it is run, without a prompt."""
    (row,) = skn.PromptedModel(model, None).layout.encode([text])
    return row


@pytest.mark.parametrize(
    ("family", "post_processor", "named"),
    [
        ("roberta", processors.RobertaProcessing(("</s>", 2), ("<s>", 1)), FULL),
        ("roberta", template("<s> $A </s>"), FULL),
        ("bert", processors.BertProcessing(("</s>", 2), ("<s>", 1)), FULL),
        ("bert", template("<s> $A </s>"), LIKE_BERT),
        ("bert", template("<s> $A"), LIKE_BERT),
        ("bert", template("$A </s>"), FULL),
        ("bert", template("$A"), FULL),
        ("llama", template("<mask> <s> $A"), FULL),
        ("llama", template("<s> $A </s>"), FULL),
        ("gpt2", template("$A </s> <mask>"), FULL),
        ("gpt2", template("<mask> $A"), {**NAMED, "eos_token": "</s>", "mask_token": "<mask>"}),
    ],
)
def test_what_a_tokenizer_of_a_generic_class_puts_around_a_text_is_there_after_the_boot(
    family, post_processor, named, tmp_path
):
    folder = save(tmp_path / "model", family, generic(post_processor, **named))
    own = hf.AutoTokenizer.from_pretrained(folder)

    model = skn.load_model(folder, verbose=False)

    assert type(own).__name__ == "TokenizersBackend"
    assert model.tokenizer(TEXT)["input_ids"] == own(TEXT)["input_ids"]
    if family in tiny.BIDIRECTIONAL:
        assert ids_run(model) == own(TEXT)["input_ids"]


def test_a_causal_models_bos_and_eos_follow_transformerlens_beside_other_special_tokens(tmp_path):
    folder = save(tmp_path / "model", "llama", generic(template("<mask> <s> $A </s>"), **FULL))
    model = skn.load_model(folder, verbose=False)

    assert ids_run(model) == [4, 1, *TEXT_IDS]
    without = skn.SoftPrompt(torch.zeros(2, 32), placement="suffix", prepend_bos=False)
    assert skn.PromptedModel(model, without).layout.encode([TEXT]) == [[4, *TEXT_IDS]]


def test_a_gpt_still_gets_the_bos_that_its_tokenizer_does_not_give(tmp_path):
    folder = save(tmp_path / "model", "gpt2", generic(template("$A"), **FULL))
    assert ids_run(skn.load_model(folder, verbose=False)) == [1, *TEXT_IDS]


def test_special_tokens_survive_saving_and_loading_once_more(tmp_path):
    folder = save(tmp_path / "model", "roberta", generic(template("<s> $A </s>"), **FULL))
    skn.load_model(folder, verbose=False).tokenizer.save_pretrained(folder)
    assert ids_run(skn.load_model(folder, verbose=False)) == [1, *TEXT_IDS, 2]


def test_a_model_booted_elsewhere_is_told_to_differ_and_can_be_mended(tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    from tl_skillneurons.models.special_tokens import token_differences

    folder = save(tmp_path / "model", "roberta", generic(template("<s> $A </s>"), **FULL))
    model = TransformerBridge.boot_transformers(str(folder), device="cpu")
    assert "is run as <s> a, and the model's own tokenizer" in token_differences(model)

    skn.models.keep_special_tokens(model)

    assert token_differences(model) is None
    assert ids_run(model) == [1, *TEXT_IDS, 2]


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_nothing_is_told_of_a_tokenizer_that_was_made_in_memory(family):
    from tl_skillneurons.models.special_tokens import fresh_tokenizer, token_differences

    model = tiny.bridge(family)
    assert fresh_tokenizer(model) is None
    assert token_differences(model) is None


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_another_tokenizer_in_the_models_place_is_refused_by_what_was_made_before_it_too(family):
    model, placement = tiny.bridge(family), "prefix" if family == "bert" else "suffix"
    prompt = skn.SoftPrompt(torch.zeros(2, 32), placement=placement)
    before = skn.PromptedModel(model, prompt, {0: "negative", 1: "positive"})
    ids, own = before.encode([TEXT]), model.tokenizer
    model.tokenizer = tiny.tokenizer(family, [*tiny.SPECIAL, "more"])  # every word has another id
    for use in (
        lambda: before.class_logits([TEXT]),
        lambda: skn.PromptedModel(model, prompt),
        lambda: skn.score_neurons(model, prompt, tiny.task()),
    ):
        with pytest.raises(
            ValueError, match=r"special tokens differs: the text 'a' was run as .* put that back"
        ):
            use()
    if family == "bert":  # TransformerLens takes none back that it named a BOS for
        return
    model.tokenizer = own
    assert before.encode([TEXT]) == skn.PromptedModel(model, prompt).encode([TEXT]) == ids


def test_a_tokenizer_in_the_models_place_that_gives_the_same_ids_is_taken():
    model = tiny.bridge("llama")
    before = skn.PromptedModel(model, None)
    ids = before.encode([TEXT])
    model.tokenizer = tiny.tokenizer("llama")
    assert before.encode([TEXT]) == ids


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_padding_in_the_text_of_a_model_that_counts_positions_by_it_is_refused(family):
    model = families.bridge(family)
    prompted = skn.PromptedModel(model, skn.SoftPrompt(torch.zeros(2, 32), placement="prefix"))
    with pytest.raises(ValueError, match=r"text 1 holds '<pad>', the padding token, .*counts its positions"):
        prompted.encode(["good film", "good <pad> film"])


@pytest.mark.parametrize(
    "text", ["good <pad> film", "good </s> film", "<s> good", "<mask> film", "<unk> zzz"]
)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_special_tokens_that_a_user_typed_are_the_tokens_that_hugging_face_makes_of_them(family, text):
    model, hf_model = tiny.bridge(family), tiny.hf_model(family)
    prompt = skn.SoftPrompt(
        torch.randn(3, 32, generator=torch.Generator().manual_seed(0)),
        placement="prefix" if family == "bert" else "suffix",
    )
    prompted = skn.PromptedModel(model, prompt, {0: "negative", 1: "positive"})
    embed = hf_model.get_input_embeddings()
    rows = [embed(torch.tensor(tiny.tokenizer(family)(text)["input_ids"]))]
    if family == "bert":
        rows = [embed(torch.tensor([IDS["<mask>"]])), prompt.embedding, *rows]
    else:
        rows = [*rows, prompt.embedding]
    with torch.no_grad():
        found = prompted.class_logits([text, "the plot was very slow"])[0]
        logits = hf_model(inputs_embeds=torch.cat(rows)[None]).logits[0, 0 if family == "bert" else -1]
    torch.testing.assert_close(found, logits[prompted.label_ids], atol=1e-5, rtol=0)


def test_two_threads_do_not_use_one_tokenizer_or_run_one_model_at_a_time(monkeypatch):
    model, inside, met = tiny.bridge("llama"), [], []

    def one_at_a_time(function):
        def call(*args, **kwargs):
            inside.append(1)
            met.append(len(inside))
            time.sleep(0.005)
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()

        return call

    skn.models.verify(model)
    kind, forward = type(model.tokenizer), model.forward
    monkeypatch.setattr(kind, "__call__", one_at_a_time(kind.__call__))
    monkeypatch.setattr(model, "forward", one_at_a_time(forward))
    work = [
        lambda: text_token_ids(model, [TEXT], True),
        lambda: piece_ids(model, TEXT),
        lambda: label_tokens(model, {0: "negative", 1: "positive"}),
        lambda: embedding_rows(model, torch.tensor([5, 6])),
    ]
    threads = [threading.Thread(target=one) for one in work * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(met) >= 12 and set(met) == {1}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A BERT and a RoBERTa, each loaded with its tokenizer under its own class and under the generic one."""
    loaded = {}
    for family, own in {"bert": own_bert(), "roberta": own_roberta()}.items():
        same = hf.PreTrainedTokenizerFast(
            tokenizer_object=own.backend_tokenizer,
            **{name: str(token) for name, token in own.special_tokens_map.items()},
        )
        for kind, tokenizer in (("own", own), ("generic", same)):
            folder = tmp_path_factory.mktemp(f"{family}-{kind}")
            save(folder, family, tokenizer)
            loaded[family, kind] = folder, skn.load_model(folder, verbose=False)
    return loaded


def own_bert():
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *tiny.WORDS]
    return hf.BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})


def own_roberta():
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<mask>"])}
    for letter in "Ġabcdefghiklmnopqrstuvwx":
        vocabulary[letter] = len(vocabulary)
    return hf.RobertaTokenizer(vocab=vocabulary, merges=[])


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_tokenizer_saved_under_the_generic_class_gives_the_ids_activations_and_scores_of_its_own(
    golden, family
):
    task = tiny.task()
    found = {}
    for kind in ("own", "generic"):
        folder, model = golden[family, kind]
        assert isinstance(
            hf.AutoTokenizer.from_pretrained(folder), hf.BertTokenizer | hf.RobertaTokenizer
        ) == (kind == "own")
        prompt = skn.SoftPrompt(
            torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), placement="prefix"
        )
        texts = list(task.split("report")["text"])
        found[kind] = (
            skn.PromptedModel(model, prompt).layout.encode(texts),
            skn.prompts.neuron_activations(model, prompt, texts),
            skn.score_neurons(model, prompt, task).accuracy,
        )
    (ids, activations, accuracy), (own_ids, own_activations, own_accuracy) = found["generic"], found["own"]
    assert ids == own_ids
    assert all(row[0] == 1 and row[-1] == 2 for row in ids)
    assert torch.equal(activations, own_activations)
    assert torch.equal(accuracy, own_accuracy)


def with_added_token(model):
    """A copy of the model whose tokenizer knows one token more than the model has rows."""
    tokenizer = model.tokenizer
    while len(tokenizer) <= model.W_E.shape[0]:
        tokenizer.add_tokens(f"extra{len(tokenizer)}")
    return f"extra{model.W_E.shape[0]}"


@pytest.fixture(scope="module")
def beyond():
    models = {family: tiny.bridge(family) for family in ("bert", "gpt2")}
    return {family: (model, with_added_token(model)) for family, model in models.items()}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_token_that_the_model_has_no_row_for_is_refused_in_texts(beyond, family):
    model, word = beyond[family]
    prompt = skn.SoftPrompt(torch.zeros(2, 32), placement="prefix" if family == "bert" else "suffix")
    with pytest.raises(
        ValueError, match=f"text 1 holds the token '{word}' of id 40, .*rows for the ids 0 to 39"
    ):
        skn.PromptedModel(model, prompt).tokens(["good film", f"good {word} film"])


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_token_that_the_model_has_no_row_for_is_refused_as_a_label_word(beyond, family):
    model, word = beyond[family]
    prompt = skn.SoftPrompt(torch.zeros(2, 32), placement="prefix" if family == "bert" else "suffix")
    with pytest.raises(ValueError, match=f"label word '{word}' has the token id 40"):
        skn.PromptedModel(model, prompt, {0: "negative", 1: word})


def test_a_token_that_the_model_has_no_row_for_is_refused_as_the_text_to_start_from(beyond):
    from tl_skillneurons.prompts.tuning.schedule import start_ids

    model, word = beyond["gpt2"]
    with pytest.raises(ValueError, match=f"holds the token '{word}'"):
        start_ids(model, [word])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, TypeError, "text 1 must be a string, got NoneType None"),
        (3, TypeError, "text 1 must be a string, got int 3"),
        (["good"], TypeError, "text 1 must be a string, got list"),
        ("good \ud800", ValueError, "text 1 must be text that UTF-8 can write"),
    ],
)
def test_what_is_no_text_is_refused_by_its_number(text, error, message):
    with pytest.raises(error, match=message):
        skn.PromptedModel(tiny.bridge("gpt2"), None).layout.encode(["good film", text])


def test_a_pad_token_without_a_row_is_never_run_and_a_mask_token_without_one_is_refused():
    from tl_skillneurons.models.tokenizing import mask_id

    model = tiny.bridge("bert")
    prompt = skn.SoftPrompt(torch.randn(2, 32), placement="prefix")
    texts = ["good film", "a bad plot and a slow cast"]
    before = skn.PromptedModel(model, prompt, {0: "negative", 1: "positive"}).class_logits(texts)
    with_added_token(model)
    model.tokenizer.add_special_tokens({"pad_token": "[NEWPAD]"})
    prompted = skn.PromptedModel(model, prompt, {0: "negative", 1: "positive"})

    assert int(prompted.tokens(texts).ids.max()) == 41  # two virtual tokens
    assert not (prompted.tokens(texts).ids[~prompted.tokens(texts).attention_mask.bool()] >= 40).any()
    assert torch.equal(prompted.class_logits(texts), before)
    model.tokenizer.add_special_tokens({"mask_token": "[NEWMASK]"})
    with pytest.raises(ValueError, match=r"mask token '\[NEWMASK\]' has the id 42"):
        mask_id(model)
