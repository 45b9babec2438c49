"""A task for a chat model: what stands around its texts, how it is given, and what files remember of it."""

from dataclasses import replace

import pytest

from tl_skillneurons.find.folder import load_task, save_task
from tl_skillneurons.tasks.chat import Chat
from tl_skillneurons.tasks.task import Task

ROWS = [{"review": f"film {k} is {'good' if k % 2 else 'bad'}", "label": k % 2} for k in range(20)]
CHAT = {"system": "Answer in one word.", "assistant": "It is", "options": {"enable_thinking": False}}


def make(chat, **more):
    return Task.from_datasets(ROWS, chat=chat, name="films", **more)


def test_the_text_is_the_users_message_and_the_rest_of_the_chat_stands_beside_it():
    task = make({**CHAT, "user": "Is this good? {review}"})
    assert task.chat == Chat(**CHAT) and task.template == "Is this good? {review}"
    assert set(task.split("report")["text"]) <= {f"Is this good? {row['review']}" for row in ROWS}
    for same in (make(CHAT, template=task.template), make(Chat(**CHAT), template=task.template)):
        assert same.fingerprint == task.fingerprint
    texts, labels = [row["review"] for row in ROWS], [row["label"] for row in ROWS]
    from_texts = Task.from_texts(texts, labels, chat={**CHAT, "user": "Is this good? {text}"})
    assert from_texts.chat == task.chat
    assert sorted(from_texts.split("train")["text"]) == sorted(task.split("train")["text"])


def test_a_chat_is_part_of_what_is_asked_and_goes_along_with_what_a_task_becomes():
    alone, asked = make(None), make(True)
    assert alone.chat is None and asked.chat == Chat()
    assert len({alone.fingerprint, asked.fingerprint, make(CHAT).fingerprint}) == 3
    assert make(False).fingerprint == alone.fingerprint
    for other in (asked.limit(train=4), asked.with_shuffled_labels()):
        assert other.chat == asked.chat
    three = [{"text": f"{k} {label}", "label": label} for k in range(9) for label in ("a", "b", "c")]
    words = {"a": " a", "b": " b", "c": " c"}
    for part in Task.from_datasets(three, label_words=words, chat=CHAT).binary_subtasks():
        assert part.chat == Chat(**CHAT)


def test_files_remember_the_chat(tmp_path):
    for task in (make(CHAT), make(None)):
        again = load_task(save_task(tmp_path / "task.json", task))
        assert again.chat == task.chat and again.fingerprint == task.fingerprint
    assert replace(again, chat=Chat()).fingerprint != again.fingerprint


@pytest.mark.parametrize(
    ("chat", "more", "error", "told"),
    [
        ({"sytem": "hi"}, {}, ValueError, "did you mean 'system'"),
        ("Is it good?", {}, TypeError, "chat must be True, a Chat, or a dict"),
        ({"user": "{review}?"}, {"template": "{review}"}, ValueError, "given twice"),
        ({"system": " "}, {}, ValueError, "must hold text, got ' '; leave it out"),
        ({"system": 3}, {}, TypeError, "the message of 'system' must be a string"),
        ({"assistant": "{review} is"}, {}, ValueError, r"\{review\} stands there as it is written"),
        ({"options": {"tokenize": True}}, {}, ValueError, "got 'tokenize'; leave it out"),
        ({"options": {"tools": {1, 2}}}, {}, ValueError, "options must be plain JSON values"),
    ],
)
def test_what_is_no_chat_is_refused(unchecked, chat, more, error, told):
    with pytest.raises(error, match=told):
        make(chat, **more)
