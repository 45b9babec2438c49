"""Chat models from the command: what is asked, in whose template, and that a run's further commands ask the same."""

import pytest
from chats import TEMPLATES, applied
from commands import QUICK, WORDS, ask, told
from planted import model as planted_model

FEW = "--prompts 1 --train-examples 24 --select-examples 16 --report-examples 16 --controls 19"
ASKED = ["--question", "was it fast ? {text}", "--system", "very slow", "--answer-start", "the plot was"]


def chatting(template="chatml"):
    model = planted_model()
    model.tokenizer.chat_template = TEMPLATES.get(template)
    return model


@pytest.fixture(scope="module")
def cli(cli):
    """The command with a tiny chat model behind it."""
    from tl_skillneurons.models import loading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_model", lambda *_, **__: chatting())
        yield cli


def given(data, out, *more):
    return [
        "find",
        "--model",
        "tiny",
        "--data",
        data,
        "--label-words",
        WORDS,
        "--out",
        out,
        *QUICK,
        *FEW.split(),
        *more,
    ]


@pytest.fixture(scope="module")
def chat_run(cli, data, tmp_path_factory):
    """The folder of a finished run in a chat, and what was printed."""
    out = tmp_path_factory.mktemp("chat") / "run"
    result = ask(cli, *given(data, out, *ASKED))
    assert result.exit_code == 0, result.output
    return out, result


def test_a_run_asks_in_the_models_own_chat_template_and_records_it(chat_run, skn):
    out, result = chat_run
    found, model = skn.load_run(out), chatting()
    chat = skn.tasks.Chat(system="very slow", assistant="the plot was")
    assert found.task.chat == chat and found.task.template == "was it fast ? {text}"
    text = found.task.split("report")["text"][0]
    assert text.startswith("was it fast ? ")
    prompted = skn.PromptedModel(model, found.prompts[0])
    ids = prompted.tokens([text]).ids[0, :-2].tolist()
    assert ids == applied(model.tokenizer, text, chat)
    assert found.settings["task"]["chat"] == chat.record
    assert "<s> a very slow </s> <s> the {text} </s> <s> very the plot was" in told(result).replace(
        "\\n", " "
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([*ASKED[:4]], "chat.assistant: 'the plot was' there, None now)"),
        (
            ["--question", "slow ? {text}", *ASKED[2:]],
            "template: 'was it fast ? {text}' there, 'slow ? {text}' now",
        ),
        ([], "chat: {'system': 'very slow', 'assistant': 'the plot was', 'options': {}} there, None now"),
    ],
)
def test_another_chat_in_the_same_folder_is_refused_by_what_differs(cli, data, chat_run, more, says):
    refused = ask(cli, *given(data, chat_run[0], *more))
    assert refused.exit_code == 2 and says in told(refused) and "fingerprint" not in refused.output


@pytest.fixture
def seen(monkeypatch):
    """What the functions behind the commands are asked; they do nothing."""
    from tl_skillneurons.find import phases
    from tl_skillneurons.interventions import effects
    from tl_skillneurons.studies.steering import run

    asked = {}

    def see(*given, **options):
        asked.update(options, task=next(one for one in given if hasattr(one, "label_words")))
        raise ValueError("seen")

    for module, name in ((phases, "find_skill_neurons"), (effects, "measure_effects"), (run, "steer")):
        monkeypatch.setattr(module, name, see)
    return asked


def test_a_runs_further_commands_ask_in_its_chat_and_may_hold_what_the_template_adds(
    cli, chat_run, seen, skn
):
    assert "seen" in told(ask(cli, "effects", chat_run[0], "--positions", "template,prompt"))
    found = skn.load_run(chat_run[0])
    assert seen["task"].fingerprint == found.task.fingerprint and seen["positions"] == ["template", "prompt"]
    assert "seen" in told(ask(cli, "steer", chat_run[0], "--n-texts", "3"))
    assert seen["task"].chat == found.task.chat and len(seen["texts"]) == 3
    assert set(seen["texts"]) <= set(found.task.split("report")["text"])  # whole questions, not beginnings


def test_the_built_in_reviews_are_asked_about_in_a_folder_of_their_own(cli, tmp_path, monkeypatch, seen):
    monkeypatch.chdir(tmp_path)
    few = ["--label-words", "0=bad,1=good", "--train-examples", "8", "--select-examples", "8", "--top", "2"]
    assert "seen" in told(ask(cli, "find", "--model", "tiny", *few, "--question", "Is it good? {text}"))
    task = seen["task"]
    assert seen["out"].name == "skill-neurons-tiny-movie_reviews-chat"
    assert task.chat is not None and all(
        text.startswith("Is it good? ") for text in task.split("report")["text"]
    )
    assert task.pairs("report") and task.units("report").what == "word pair"
    refused = ask(cli, "find", "--template", "{text} It was")
    assert "--template is for your own data, and movie_reviews has texts of its own" in told(refused)


@pytest.mark.parametrize(
    ("template", "more", "says"),
    [
        (None, ["--chat"], "has no chat template; give a model that was tuned for chat"),
        (None, ["--system", "very slow"], "or leave --chat and what goes with it out"),
        (
            "chatml",
            ["--question", "{text} ?", "--template", "{text}"],
            "is given twice, as --question '{text} ?'",
        ),
        ("chatml", ["--question", "{txt} ?"], "--question names the column 'txt'"),
        ("chatml", ["--system", " "], "--system must hold text"),
        (
            "chatml",
            ["--answer-start", "{text} was"],
            "--answer-start is the same for every text, so {text} stands",
        ),
        ("chatml", ["--chat-options", "quick"], "--chat-options must be 'name=value,name=value'"),
        ("chatml", ["--chat-options", "enable_thinking=false"], "does not read the option 'enable_thinking'"),
        ("thinking", ["--chat-options", "thinking=false"], "does not read the option 'thinking'"),
        (
            "always thinking",
            ["--chat"],
            "give --chat-options enable_thinking=false where the template knows that",
        ),
        ("drops the text", ["--chat"], "or leave --chat and what goes with it out"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_the_options_words_before_anything_is_written(
    cli, data, tmp_path, monkeypatch, template, more, says
):
    from tl_skillneurons.models import loading

    monkeypatch.setattr(loading, "load_model", lambda *_, **__: chatting(template))
    refused = ask(cli, *given(data, tmp_path / "run", *more))
    assert refused.exit_code == 2 and says in told(refused), refused.output
    assert not (tmp_path / "run").exists()


def test_options_of_a_template_are_read_as_json_or_as_text(cli, data, tmp_path, monkeypatch, seen):
    from tl_skillneurons.cli._options import chat_options_of
    from tl_skillneurons.models import loading

    monkeypatch.setattr(loading, "load_model", lambda *_, **__: chatting("thinking"))
    ask(cli, *given(data, tmp_path / "run", "--chat-options", "enable_thinking=false"))
    assert seen["task"].chat.options == {"enable_thinking": False}
    assert chat_options_of("a=1,b=May 1") == {"a": 1, "b": "May 1"}
