"""Label words of several tokens, against plain sums over full forwards of the untouched Hugging Face model."""

from dataclasses import replace

import chats
import pytest
import tiny
import torch
from toy import ROWS, TASK
from tuned import QUICK

import tl_skillneurons as skn
from tl_skillneurons.prompts import _word_scores
from tl_skillneurons.prompts.run import require_tuned_for
from tl_skillneurons.tasks.chat import Chat

WORDS = {0: "very bad film", 1: "very good", 2: "dull"}
IDS = [[tiny.VOCABULARY[word] for word in WORDS[label].split()] for label in sorted(WORDS)]
TEXTS = [row["text"] for row in tiny.sentences(5, seed=4)]
EXACT = 1e-12  # float64 throughout


@pytest.fixture(scope="module")
def gpt2():
    return chats.chatting(dtype=torch.float64)


@pytest.fixture(scope="module")
def untouched():
    return tiny.hf_model("gpt2", dtype=torch.float64).requires_grad_(False)


def prompt_of(seed=0, n=3, **more):
    rows = torch.randn(n, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return skn.SoftPrompt(rows, placement="suffix", **more)


def plain_sums(model, text_ids, prompt):
    """Each class's sum of log-probabilities, from a forward of its own over the whole sequence."""
    embed, sums = model.get_input_embeddings(), []
    soft = embed.weight[:0] if prompt is None else prompt.embedding
    for own in IDS:
        rows = torch.cat([embed(torch.tensor(text_ids, dtype=torch.long)), soft, embed(torch.tensor(own))])
        log_p = model(inputs_embeds=rows[None]).logits[0].log_softmax(-1)
        start = len(text_ids) + len(soft) - 1
        sums.append(sum(log_p[start + j, token] for j, token in enumerate(own)))
    return torch.stack(sums)


@pytest.mark.parametrize("with_prompt", [True, False])
def test_a_class_scores_the_sum_over_its_words_tokens_whatever_is_kept_of_the_run(
    gpt2, untouched, with_prompt
):
    prompt = prompt_of() if with_prompt else None
    text_ids = [[tiny.VOCABULARY["<s>"], *(tiny.VOCABULARY[w] for w in text.split())] for text in TEXTS]
    expected = torch.stack([plain_sums(untouched, ids, prompt) for ids in text_ids])
    for side in ("left", "right"):  # on the right nothing is kept, and whole sequences run
        for run in (skn.RunOptions(), skn.RunOptions(batch_size=2, cache=skn.InputCache(gpt2))):
            prompted = skn.PromptedModel(gpt2, prompt, WORDS, padding_side=side, run=run)
            assert prompted.n_classes == 3 and prompted.label_ids is None
            torch.testing.assert_close(prompted.class_logits(TEXTS), expected, rtol=0, atol=EXACT)
    n_tokens = torch.tensor([3, 2, 1])
    mean = skn.PromptedModel(gpt2, prompt, WORDS, word_score="mean").class_logits(TEXTS)
    torch.testing.assert_close(mean, expected / n_tokens, rtol=0, atol=EXACT)
    gained = skn.PromptedModel(gpt2, prompt, WORDS, word_score="without_text").class_logits(TEXTS)
    bare = plain_sums(untouched, [tiny.VOCABULARY["<s>"]], prompt)
    torch.testing.assert_close(gained, expected - bare, rtol=0, atol=EXACT)
    if with_prompt:
        gradients = []
        for scores in (skn.PromptedModel(gpt2, prompt, WORDS).class_logits(TEXTS), expected):
            gradients += torch.autograd.grad(scores[:, 1].sum() - scores[:, 0].sum(), prompt.embedding)
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)  # sums of many terms of order 10


@torch.no_grad()
def test_in_a_chat_the_words_stand_where_the_answer_begins(gpt2, untouched):
    chat = Chat(system="quick", assistant="the film is")
    scores = skn.PromptedModel(gpt2, None, WORDS, chat=chat, word_score="without_text").class_logits(TEXTS)
    ids = [chats.applied(gpt2.tokenizer, text, chat) for text in (*TEXTS, "")]
    sums = torch.stack([plain_sums(untouched, own, None) for own in ids])
    torch.testing.assert_close(scores, sums[:-1] - sums[-1], rtol=0, atol=EXACT)


@torch.no_grad()
def test_words_of_one_token_keep_their_logits_bit_for_bit(gpt2):
    words = {0: "bad", 1: "good"}
    alone = skn.PromptedModel(gpt2, prompt_of(), words)
    assert alone.label_ids.tolist() == [tiny.VOCABULARY["bad"], tiny.VOCABULARY["good"]]
    logits = alone.class_logits(TEXTS)
    full = alone.run_with_hooks(TEXTS)[:, -1]
    torch.testing.assert_close(logits, full[:, alone.label_ids], rtol=0, atol=EXACT)
    mean = skn.PromptedModel(gpt2, prompt_of(), words, word_score="mean").class_logits(TEXTS)
    assert torch.equal(mean, logits)
    longer = skn.PromptedModel(gpt2, prompt_of(), {**words, 2: "very dull"}).class_logits(TEXTS)
    assert torch.equal(longer.argmax(1) == 2, longer[:, 2] > longer[:, :2].amax(1))
    torch.testing.assert_close(longer[:, 1] - longer[:, 0], logits[:, 1] - logits[:, 0], rtol=0, atol=EXACT)


@pytest.mark.parametrize("positions", ["prompt", "text", "all"])
@torch.no_grad()
def test_an_intervention_acts_as_in_whole_sequences(gpt2, positions):
    neurons = [(0, n) for n in range(20)] + [(1, n) for n in range(20)]
    hooks = skn.ablate(neurons, positions=positions)
    kept = skn.PromptedModel(gpt2, prompt_of(), WORDS)
    whole = skn.PromptedModel(gpt2, prompt_of(), WORDS, padding_side="right")
    scores = kept.class_logits(TEXTS, hooks)
    torch.testing.assert_close(scores, whole.class_logits(TEXTS, hooks), rtol=0, atol=EXACT)
    assert (scores - kept.class_logits(TEXTS)).abs().max() > 1e-3
    with_cache = skn.PromptedModel(gpt2, prompt_of(), WORDS, run=skn.RunOptions(cache=skn.InputCache(gpt2)))
    torch.testing.assert_close(scores, with_cache.class_logits(TEXTS, hooks), rtol=0, atol=EXACT)


@torch.no_grad()
def test_all_classes_run_in_one_batch_on_top_of_what_was_read(gpt2, monkeypatch):
    shapes = []
    real = _word_scores.run_hooked
    monkeypatch.setattr(
        _word_scores,
        "run_hooked",
        lambda model, ids, *rest: shapes.append(tuple(ids.shape)) or real(model, ids, *rest),
    )
    longest = max(len(text.split()) for text in TEXTS) + 1
    skn.PromptedModel(gpt2, prompt_of(), WORDS).class_logits(TEXTS)
    assert shapes == [
        (5, longest + 3),
        (10, 2),
    ]  # two words of more than a token, of at most two before their last


@torch.no_grad()
def test_a_hook_that_does_not_say_where_it_acts_needs_kept_keys_and_values(gpt2):
    raw = [("blocks.0.mlp.hook_post", lambda act, hook: 0 * act)]
    skn.PromptedModel(gpt2, prompt_of(), WORDS).class_logits(TEXTS, raw)
    with pytest.raises(ValueError, match="so a hook must say where it acts; give ablate"):
        skn.PromptedModel(gpt2, prompt_of(), WORDS, padding_side="right").class_logits(TEXTS, raw)


def test_room_is_left_for_the_words(gpt2):
    long = " ".join(["film"] * 60)
    prompted = skn.PromptedModel(gpt2, prompt_of(), WORDS)
    assert prompted.max_length == 46 and prompted.tokens([long]).ids.shape[1] == 46
    assert prompted.class_logits([long]).isfinite().all()
    assert skn.PromptedModel(gpt2, prompt_of(), {0: "bad", 1: "good"}).max_length == 48
    with pytest.raises(
        ValueError, match="at most 46 for tiny, which takes 48 tokens, 2 of them of the label words"
    ):
        skn.PromptedModel(gpt2, prompt_of(), WORDS, max_length=47)


@pytest.mark.filterwarnings("ignore:the prompt of seed")  # 8 steps teach little
def test_tuning_goes_by_the_words_and_remembers_how_they_are_scored(gpt2):
    task = replace(TASK, label_words={0: "very bad", 1: "very good"}, word_score="mean")
    (prompt,) = skn.fit_soft_prompts(gpt2, task, **QUICK)
    assert prompt.provenance["task"]["word_score"] == "mean"
    with pytest.raises(ValueError, match="word_score: 'mean' there, 'sum' now"):
        require_tuned_for(prompt, replace(task, word_score="sum"))
    assert replace(task, word_score="sum").fingerprint != task.fingerprint
    prompted = skn.PromptedModel.for_task(gpt2, prompt, task)
    right = prompted.class_logits([row["text"] for row in ROWS[39:]]).argmax(1) == torch.tensor(
        [row["label"] for row in ROWS[39:]]
    )
    assert prompted.accuracy(task) == float(right.double().mean())


def test_what_several_tokens_rule_out_is_refused(gpt2):
    words, prompt = {0: "very bad", 1: "very good"}, prompt_of()
    with pytest.raises(ValueError, match=r"'very good' is 2 tokens .* masked language model fills one mask"):
        skn.PromptedModel(tiny.bridge("bert"), None, {0: "bad", 1: "very good"})
    with pytest.raises(ValueError, match="whose text can't be left out"):
        skn.PromptedModel(tiny.bridge("bert"), None, {0: "bad", 1: "good"}, word_score="without_text")
    prompted = skn.PromptedModel(gpt2, prompt, words)
    with pytest.raises(ValueError, match="a direct effect is on what is read at one position"):
        skn.interventions.direct_logits(prompted, TEXTS, prompted.class_logits(TEXTS).detach(), [])
    bare = skn.PromptedModel(gpt2, None, words, prepend_bos=False, word_score="without_text")
    with pytest.raises(ValueError, match="without the text nothing is left to compare with"):
        bare.class_logits(TEXTS)
    with pytest.raises(
        ValueError, match="word_score must be one of 'sum', 'mean', 'without_text', got 'max'"
    ):
        skn.PromptedModel(gpt2, prompt, words, word_score="max")
    with pytest.raises(
        ValueError, match=r"tokens \[\[\d+, \d+\], \[\d+, \d+\]\], 'toy' asks for \[\d+, \d+\]"
    ):
        prompted.accuracy(TASK)
