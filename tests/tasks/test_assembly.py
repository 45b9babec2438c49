"""Data as people have it: lists, frames, and what need not be said."""

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from texts import make, rows, three_splits

from tl_skillneurons.tasks.columns import columns_of
from tl_skillneurons.tasks.task import Task

N = 40
TEXTS = [f"review {k}" for k in range(N)]
LABELS = [k % 2 for k in range(N)]


def as_held(task):
    return {role: columns_of(task.split(role)) for role in ("train", "select", "report")}


def test_lists_make_the_task_that_the_same_rows_make():
    by_rows = make([{"text": t, "label": label} for t, label in zip(TEXTS, LABELS, strict=True)], seed=3)
    by_lists = Task.from_texts(TEXTS, LABELS, label_words={0: " bad", 1: " good"}, seed=3)
    assert by_lists.fingerprint == by_rows.fingerprint and by_lists.notes == by_rows.notes
    assert by_lists.name == "task" and by_rows.name == "toy"


@pytest.mark.parametrize("form", [tuple, np.array, pd.Series, torch.tensor, lambda x: list(np.array(x))])
def test_labels_may_come_in_any_form(form):
    task = Task.from_texts(pd.Series(TEXTS), form(LABELS), label_words={0: " bad", 1: " good"})
    assert as_held(task) == as_held(Task.from_texts(TEXTS, LABELS))


@pytest.mark.parametrize("names", [["bad", "good"], {0: "bad", 1: "good"}, {1: "good", 0: "bad"}])
@pytest.mark.parametrize("words", [{0: " awful", 1: " great"}, {"good": " great", "bad": " awful"}, None])
def test_names_of_labels_order_the_classes_and_words_go_by_label_or_by_name(names, words):
    task = Task.from_texts(TEXTS, LABELS, label_names=names, label_words=words)
    assert task.label_names == ("bad", "good") and task.n_classes == 2
    assert task.label_words == ({} if words is None else {0: " awful", 1: " great"})
    assert as_held(task) == as_held(Task.from_texts(TEXTS, LABELS))


def test_groups_and_pairs_of_lists_never_straddle_roles():
    task = Task.from_texts(TEXTS, LABELS, groups=[k // 4 for k in range(N)])
    roles = [set(columns_of(task.split(role))["group"]) for role in ("train", "select", "report")]
    assert all(not one & other for i, one in enumerate(roles) for other in roles[:i])
    task = Task.from_texts(TEXTS, LABELS, pairs=[k // 2 for k in range(N)], seed=0)
    assert all(abs(int(a.split()[1]) - int(b.split()[1])) == 1 for a, b in task.pairs("report"))


@pytest.mark.parametrize("kind", [dict, Dataset.from_pandas])
def test_a_frame_is_read_as_its_rows_are(kind):
    frame = pd.DataFrame({"text": TEXTS, "label": pd.array(LABELS, dtype="Int64")}, index=range(5, 5 + N))
    data = frame if kind is dict else Dataset.from_pandas(frame, preserve_index=False)
    assert make(data).fingerprint == make(frame.to_dict("records")).fingerprint
    splits = {"train": frame[:20], "validation": frame[20:30], "test": frame[30:]}
    assert make(splits).n_examples == {"train": 20, "baseline": 20, "select": 10, "report": 10}


def test_labels_that_nobody_names_are_those_that_stand_in_the_data():
    def found(labels, **features):
        data = [{"text": t, "label": label} for t, label in zip(TEXTS, labels, strict=True)]
        if features:
            data = Dataset.from_list(data, features=Features({"text": Value("string"), **features}))
        task = Task.from_datasets(data)
        assert task.label_words == {}
        return task.label_names, task.notes[0]

    assert found(LABELS) == ((0, 1), "classes are numbered as their labels sort: 0 is 0, 1 is 1.")
    assert found([[10, 2][k] for k in LABELS])[0] == (2, 10)
    assert found([["10", "2"][k] for k in LABELS])[0] == (2, 10)  # as a CSV file has them
    assert found([["07", "2"][k] for k in LABELS])[0] == ("07", "2")
    assert found([bool(k) for k in LABELS])[0] == (0, 1)
    names, note = found(LABELS, label=ClassLabel(names=["zero", "a one"]))
    assert names == ("zero", "a one")
    assert note == "classes are numbered as their labels are declared: 'zero' is 0, 'a one' is 1."
    hidden = {**three_splits(), "test": rows(9, "hidden", (-1,))}
    assert Task.from_datasets(hidden).label_names == (0, 1)


@pytest.mark.parametrize(
    ("columns", "template"),
    [
        ({"review": "good film", "stars": "4.5"}, "{review}"),
        ({"review": "good film", "text": "the text"}, "{text}"),
        ({"review": "good film", "year": 1999}, "{review}"),
        ({"review": "good film", "pair": "twins"}, "{review}"),
    ],
)
def test_the_only_column_of_text_is_the_text(columns, template):
    data = [{**columns, "label": k % 2} for k in range(20)]
    for k, row in enumerate(data):
        row[template[1:-1]] += f" {k}"
        if "pair" in row:
            row["pair"] = f"twins of {k // 2}"
    task = Task.from_datasets(data)
    assert task.template == template
    assert any("only one that holds text" in note for note in task.notes) == (template != "{text}")


def test_examples_without_text_or_label_are_dropped_where_that_is_asked_for():
    data = rows(40, "x")
    data[3]["text"], data[4]["text"], data[5]["label"], data[7]["label"] = None, " ", None, float("nan")
    data[6] = {"text": "", "label": None}
    with pytest.raises(ValueError, match=r"row 3: column 'text' is empty \(None\); drop such examples"):
        make(data)
    task = make(data, drop="empty")
    kept = [row for k, row in enumerate(data) if not 3 <= k <= 7]
    assert task.fingerprint == make(kept).fingerprint
    assert task.notes[0] == (
        "5 of the 40 examples of split 'data' are dropped: 3 without a text, 2 without a label."
    )
    assert make(pd.DataFrame(data), drop="empty").fingerprint == task.fingerprint
    spelled = [
        {"text": row["text"], "label": "" if row["label"] is None else "b"[: k % 2] or "a"}
        for k, row in enumerate(rows(40, "x"))
    ]
    spelled[9]["label"] = ""
    assert Task.from_datasets(spelled, drop="empty").label_names == ("a", "b")
    kept = Task.from_texts(["", *TEXTS], [0, *LABELS], drop="empty")
    assert as_held(kept) == as_held(Task.from_texts(TEXTS, LABELS))


def test_what_the_data_calls_itself_names_the_task():
    data = Dataset.from_list(rows(20, "x"))
    assert Task.from_datasets(data).name == "task"
    data.info.dataset_name = "sst2"
    assert Task.from_datasets({"train": data}).name == "sst2"


def test_a_task_without_label_words_divides_into_subtasks_without():
    task = Task.from_texts(TEXTS, [k % 3 for k in range(N)])
    first = task.binary_subtasks()[0]
    assert (first.label_names, first.label_words) == (("rest", 0), {})


def test_a_run_keeps_a_task_without_label_words(tmp_path):
    from tl_skillneurons.find.folder import load_task, save_task

    task = Task.from_texts(TEXTS, LABELS, label_names=["bad", "good"])
    again = load_task(save_task(tmp_path / "task.json", task))
    assert (again.fingerprint, again.label_words, again.label_names) == (
        task.fingerprint,
        {},
        ("bad", "good"),
    )


TWO_TEXTS = [{"title": f"t {k}", "body": f"b {k}", "label": k % 2} for k in range(9)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Task.from_texts("one text", [0]),
            TypeError,
            "texts must be a list of strings, got one string",
        ),
        (lambda: Task.from_texts(TEXTS, [0]), ValueError, "needs one label .* got 40 texts, 1 labels"),
        (
            lambda: Task.from_texts(TEXTS, [0] * N),
            ValueError,
            r"at least two labels, got 1 in the data \(0\)",
        ),
        (
            lambda: Task.from_texts(TEXTS, [k % 3 for k in range(N)], label_names=["bad", "good"]),
            ValueError,
            r"label 2 \(example 2\) has no name in label_names, which has 0, 1 called 'bad', 'good'",
        ),
        (
            lambda: Task.from_texts(TEXTS, LABELS, label_names=["bad", "good"], label_words={"bed": " x"}),
            ValueError,
            "label 'bed' .* has no name",
        ),
        (
            lambda: Task.from_datasets(TWO_TEXTS),
            ValueError,
            r"several columns hold text: 'title', 'body'; give template=\"\{title\}\" or .*, or join",
        ),
        (
            lambda: Task.from_datasets([{"year": k, "label": k % 2} for k in range(9)]),
            ValueError,
            "no column holds text alone: 'year', 'label'; give",
        ),
        (
            lambda: Task.from_datasets([{"text": "a", "lable": 0}]),
            ValueError,
            "no label stands in a column 'label'; the columns are 'text', 'lable'; .*; did you mean 'lable'",
        ),
        (
            lambda: Task.from_texts([f"t {k}" for k in range(200)], range(200)),
            ValueError,
            "column 'label' holds 200 different labels, too many to be classes",
        ),
        (
            lambda: Task.from_texts(TEXTS, [0, "1"] * 20),
            TypeError,
            "all integers or all strings, got 0, '1' in",
        ),
        (
            lambda: Task.from_texts(TEXTS, [0.5, 1.0] * 20),
            TypeError,
            "all integers or all strings, got 0.5, 1.0",
        ),
        (
            lambda: Task.from_datasets(pd.DataFrame([["a", 0, "b"]], columns=["text", "label", "text"])),
            ValueError,
            "the frame 'data' has the column 'text' twice",
        ),
        (
            lambda: Task.from_texts(TEXTS, LABELS, label_words={0: " bad", 1: None}),
            TypeError,
            "a label word must be a string or a token id, got None",
        ),
    ],
)
def test_what_leaves_a_choice_is_refused_with_the_candidates(call, error, message):
    with pytest.raises(error, match=message):
        call()
