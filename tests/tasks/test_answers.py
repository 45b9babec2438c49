"""Tasks out of a model's own answers: how they are written, judged, balanced and kept."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tl_skillneurons.tasks.answers import from_answers
from tl_skillneurons.tasks.chat import Chat
from tl_skillneurons.tasks.judging import judge_of

ROWS = [
    {"question": f"twice {k}?", "answer": str(2 * k), "size": "large" if k >= 40 else "small"}
    for k in range(80)
]


class Doubles:
    """Doubles rightly what is no multiple of three (of the large ones: of five), and keeps count of its calls."""

    chat = Chat(system="Answer with a number.")

    def __init__(self, name="doubles", endless=()):
        self.name, self.endless, self.calls = name, endless, []

    def generate(self, texts, max_new_tokens=32, seed=0, **how):
        self.calls.append((len(texts), seed, how))
        numbers = [int(text.split()[1].strip("?")) for text in texts]
        answers = [f" {2 * k + (k % (5 if k >= 40 else 3) == 0)}." for k in numbers]
        ended = tuple(k not in self.endless for k in numbers)
        return SimpleNamespace(
            answers=tuple(answers), ended=ended, settings={"model": self.name, "n_cut": len(texts)}
        )


def is_right(k):
    return k % (5 if k >= 40 else 3) != 0


def test_each_question_is_labelled_by_whether_its_answer_is_right():
    model = Doubles()
    found = from_answers(model, ROWS, name="doubling")
    assert found.task.chat == model.chat and found.task.label_names == ("wrong", "right")
    assert found.task.label_words == {} and found.task.name == "doubling"
    table = found.to_dataframe()
    assert table.text.tolist() == [row["question"] for row in ROWS] and table.answer[1] == " 2."
    assert table.label.tolist() == ["right" if is_right(k) else "wrong" for k in range(80)]
    for role in ("train", "select", "report"):
        split = found.task.split(role)
        assert list(split["label"]) == [
            int(is_right(int(text.split()[1].strip("?")))) for text in split["text"]
        ]
    assert found.task.n_examples["train"] == 48 and "80" in repr(found)
    assert found.settings["judge"] == "exact" and found.settings["writing"] == {"max_new_tokens": 32}


def test_within_each_topic_there_are_as_many_of_each_label():
    found = from_answers(Doubles(), ROWS, topic="size")
    kept = found.table[found.table.kept]
    sizes = [ROWS[number]["size"] for number in kept.index]
    counts = {(size, label): 0 for size in ("small", "large") for label in ("right", "wrong")}
    for size, label in zip(sizes, kept.label, strict=True):
        counts[size, label] += 1
    assert counts == {
        ("small", "right"): 14,
        ("small", "wrong"): 14,
        ("large", "right"): 8,
        ("large", "wrong"): 8,
    }
    assert "36 of 80 answered questions are left out, for labels to be equally many" in found.task.notes[0]


def test_labels_are_as_many_within_a_topic_of_each_split_that_is_given():
    wrong_first = sorted(ROWS, key=lambda row: is_right(int(row["question"].split()[1].strip("?"))))
    splits = {"train": wrong_first[:20] + wrong_first[-20:], "validation": wrong_first[10:40]}
    splits["test"] = [row for row in ROWS if row not in splits["train"] + splits["validation"]] + ROWS[1:30:2]
    found = from_answers(Doubles(), splits, topic="size")
    rows = [row for split in splits.values() for row in split]
    kept = found.table.assign(size=[row["size"] for row in rows])[found.table.kept]
    counts = kept.groupby(["split", "size"]).label.value_counts().unstack()
    assert len(counts) >= 3 and (counts.right == counts.wrong).all()


def test_an_interrupted_call_goes_on_where_it_stopped_and_others_are_refused(tmp_path):
    path, whole = tmp_path / "answers.json", Doubles()
    expected = from_answers(whole, ROWS, path=path)
    assert [n for n, *_ in whole.calls] == [1, 64, 16]
    content = json.loads(path.read_text())
    again = Doubles()
    assert from_answers(again, ROWS, path=path).task.fingerprint == expected.task.fingerprint
    assert [n for n, *_ in again.calls] == [1]  # one token, to know the model by
    assert len(content["answers"]) == 80
    with pytest.raises(ValueError, match=r"answers of another call .*model: 'doubles' there, 'other' now"):
        from_answers(Doubles("other"), ROWS, path=path)
    with pytest.raises(
        ValueError, match=r"answers of another call \(writing.max_new_tokens: 32 there, 8 now\)"
    ):
        from_answers(Doubles(), ROWS, path=path, writing={"max_new_tokens": 8})
    with pytest.raises(ValueError, match=r"answers of another call .*texts"):
        from_answers(Doubles(), ROWS[1:], path=path)


def test_what_was_written_before_an_interruption_is_not_written_again(tmp_path):
    path, broken = tmp_path / "answers.json", Doubles()
    real = broken.generate

    def fail(texts, **how):
        if len(texts) == 16:
            raise KeyboardInterrupt
        return real(texts, **how)

    broken.generate = fail
    with pytest.raises(KeyboardInterrupt):
        from_answers(broken, ROWS, path=path)
    model = Doubles()
    found = from_answers(model, ROWS, path=path)
    assert [n for n, *_ in model.calls] == [1, 16]
    assert found.task.fingerprint == from_answers(Doubles(), ROWS).task.fingerprint


def test_the_letter_of_a_choice_that_is_right_nowhere_is_an_answer_too():
    rows = [{"answer": "A"}, {"answer": "C"}]
    judge = judge_of("choice", rows, "answer")
    assert judge(["B, not A", "D. Not C"]) == ["wrong", "wrong"]
    assert judge(["I say A", "(C) since B is less"]) == ["right", "right"]
    assert judge_of("choice", [{"answer": "1"}], "answer")(["A choice: 1"]) == ["right"]
    assert judge_of("choice", [{"answer": "J"}], "answer")(["I, not J"]) == ["wrong"]


def test_judges_by_choice_and_of_ones_own():
    rows = [{"question": f"twice {k}?", "answer": "A" if k % 2 else "B"} for k in range(40)]
    model = Doubles()
    real = model.generate

    def letters(texts, **how):
        found = real(texts, **how)
        said = ["A. It is", "Answer: B", "None, I think", "(A)"]
        found.answers = tuple(said[int(text.split()[1].strip("?")) % 4] for text in texts)
        return found

    model.generate = letters
    labels = from_answers(model, rows, judge="choice").table.label.tolist()
    assert labels[:4] == ["wrong", "wrong", "wrong", "right"]  # the first says A where B is right, and so on
    kinds = from_answers(
        Doubles(), ROWS, judge=lambda answer, row: None if row["size"] == "large" else len(answer.strip())
    )
    assert kinds.task.label_names == (2, 3) and kinds.table.kept.sum() == 40
    truth = from_answers(Doubles(), ROWS, judge=lambda answer, row: answer.strip(" .") == row["answer"])
    assert truth.table.label.tolist() == from_answers(Doubles(), ROWS).table.label.tolist()


def test_answers_that_never_end_are_refused_judged_or_dropped():
    with pytest.raises(
        ValueError, match=r"2 of 80 answers did not end within 32 tokens, such as ' 7.' to 'twice 3\?'"
    ):
        from_answers(Doubles(endless=(3, 5)), ROWS)
    judged = from_answers(Doubles(endless=(3, 5)), ROWS, unended="judge")
    dropped = from_answers(Doubles(endless=(3, 5)), ROWS, unended="drop")
    assert judged.table.kept.all() and (~dropped.table.kept).sum() == 2


@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        ({"judge": lambda answer, row: [1]}, TypeError, r"a judge must give a string .* got list \[1\]"),
        ({"judge": 3}, TypeError, "judge must be 'exact', 'choice' or a function"),
        ({"judge": "exakt"}, ValueError, "did you mean 'exact'"),
        ({"judge": "choice"}, ValueError, "judge='choice' reads letters, and the references"),
        (
            {"judge": lambda answer, row: "same"},
            ValueError,
            "two labels, got 80 'same'; give harder or easier",
        ),
        ({"judge": lambda answer, row: None}, ValueError, "got none, and 80 of 80 answers without one"),
        ({"judge": lambda answer, row: " "}, TypeError, "a string that is not empty, .* got str ' '"),
        (
            {"judge": lambda answer, row: row["sise"]},
            ValueError,
            r"the judge failed at question 0 on the answer ' 1.' \(KeyError: 'sise'\); mend it",
        ),
        ({"topic": "question"}, ValueError, "none is left where labels .* give more questions of each topic"),
        ({"writing": {"max_tokens": 3}}, ValueError, "did you mean 'max_new_tokens'"),
        ({"writing": {"seed": 3}}, ValueError, r"give from_answers\(seed=...\)"),
        ({"writing": [3]}, TypeError, "a dict of generate's options, got list"),
        ({"path": "."}, ValueError, "path must be a file, and . is a folder"),
        ({"judge": lambda answer, row: len(answer) % 2 or "a"}, ValueError, "all strings or all integers"),
        ({"reference": "anwser"}, ValueError, "did you mean 'answer'"),
        ({"question": "{qestion}"}, ValueError, "did you mean 'question'"),
        ({"topic": "sise"}, ValueError, "did you mean 'size'"),
        ({"unended": "keep"}, ValueError, "unended must be one of"),
    ],
)
def test_what_makes_no_task_is_refused(unchecked, more, error, told):
    with pytest.raises(error, match=told):
        from_answers(Doubles(), ROWS, **more)


@pytest.mark.parametrize(
    ("row", "more", "error", "told"),
    [
        (
            {"answer": None},
            {},
            TypeError,
            "question 7: the reference must be a string .* got None; drop such",
        ),
        ({"answer": float("nan")}, {}, TypeError, "question 7: the reference .* got nan"),
        ({"answer": []}, {}, TypeError, r"question 7: the reference .* got \[\]"),
        ({"question": None}, {}, ValueError, "row 7: column 'question' is empty"),
        ({"question": " "}, {}, ValueError, "row 7: the text is empty"),
        ({"size": None}, {"topic": "size"}, ValueError, "question 7 has no 'size'; drop it"),
        ({"size": ["a"]}, {"topic": "size"}, TypeError, "a topic must be a string or a number, got list"),
    ],
)
def test_rows_that_can_not_be_judged_are_refused_before_anything_is_written(
    unchecked, row, more, error, told
):
    model = Doubles()
    with pytest.raises(error, match=told):
        from_answers(model, [one if k != 7 else {**one, **row} for k, one in enumerate(ROWS)], **more)
    assert not model.calls
    with pytest.raises(ValueError, match="there is no question; give at least a few"):
        from_answers(model, [])
    with pytest.raises(TypeError, match=r"model must be a PromptedModel, .* got str"):
        from_answers("model", ROWS)


def test_labels_of_numpy_and_references_in_arrays_are_taken():
    rows = [{**row, "answer": np.array([row["answer"], "none"])} for row in ROWS]
    expected = from_answers(Doubles(), ROWS).table.label
    assert from_answers(Doubles(), rows).table.label.equals(expected)
    plain = {row["question"]: row["answer"] for row in ROWS}
    truth = from_answers(
        Doubles(), rows, judge=lambda answer, row: np.bool_(answer.strip(" .") == plain[row["question"]])
    )
    assert truth.table.label.equals(expected)
    counted = from_answers(Doubles(), rows, judge=lambda answer, row: np.int64(len(answer)))
    assert counted.table.label.tolist() == [len(answer) for answer in counted.table.answer]


def test_answers_written_with_other_end_tokens_are_not_taken_from_the_file(tmp_path):
    class Ends(Doubles):
        def generate(self, texts, max_new_tokens=32, seed=0, **how):
            found = super().generate(texts, max_new_tokens, seed, **how)
            found.settings["writing"] = {"end_ids": list(how.get("end_ids", [2])), "seed": seed}
            return found

    path = tmp_path / "answers.json"
    first = from_answers(Ends(), ROWS, path=path)
    assert first.settings["writing"] == {"end_ids": [2], "max_new_tokens": 32}
    with pytest.raises(
        ValueError, match=r"answers of another call \(writing.end_ids: \[2\] there, \[3\] now\)"
    ):
        from_answers(Ends(), ROWS, path=path, writing={"end_ids": [3]})
