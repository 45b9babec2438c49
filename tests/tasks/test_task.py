"""Tasks: what text serves which role, and what bad data gets."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from texts import WORDS, four_classes, make, rows, texts_of, three_splits

from tl_skillneurons.tasks.drawing import apportion
from tl_skillneurons.tasks.roles import ROLES
from tl_skillneurons.tasks.sources import load_splits
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_two_classes

DATA = Path(__file__).parents[3] / "shared" / "data"


# Roles


def test_splits_of_the_usual_names_serve_the_usual_roles():
    task = make(three_splits(10))
    assert task.n_examples == dict.fromkeys(ROLES, 10)
    assert texts_of(task, "train") == texts_of(task, "baseline") == [f"train {i}" for i in range(10)]
    assert texts_of(task, "select")[0] == "validation 0" and texts_of(task, "report")[0] == "test 0"
    assert task.class_counts("select") == [5, 5] and task.n_classes == 2
    assert task.notes == () and task.dropped == dict.fromkeys(ROLES, 0)


@pytest.mark.parametrize("name", ["dev", "valid"])
def test_other_names_of_validation_are_known(name):
    data = three_splits()
    data[name] = data.pop("validation")
    assert texts_of(make(data), "select")[0] == "validation 0"


def test_roles_name_one_split_or_several_and_baseline_its_own():
    data = {name: rows(10, name) for name in ("a", "b", "c", "d", "e")}
    task = make(data, roles={"train": ["a", "b"], "baseline": "e", "select": "c", "report": "d"})
    assert texts_of(task, "train") == [r["text"] for r in data["a"] + data["b"]]
    assert [texts_of(task, role)[0] for role in ROLES[1:]] == ["e 0", "c 0", "d 0"]
    task = make(data, roles={"train": "a", "select": "c", "report": "d"})
    assert texts_of(task, "baseline") == texts_of(task, "train")
    assert any("'e' is not used" in note for note in task.notes)


@pytest.mark.parametrize("as_dataset", [True, False])
def test_one_dataset_is_divided_by_label_and_seed(as_dataset):
    data = rows(200, "x", (0, 0, 0, 1))
    one = Dataset.from_list(data) if as_dataset else data
    task = make(one)
    assert [task.class_counts(role) for role in ROLES] == [[90, 30], [90, 30], [30, 10], [30, 10]]
    assert sorted(texts_of(task, "train") + texts_of(task, "select") + texts_of(task, "report")) == sorted(
        r["text"] for r in data
    )
    assert make(one).fingerprint == task.fingerprint != make(one, seed=1).fingerprint
    assert "60% train, 20% select and 20% report" in task.notes[0]


def test_sst2_as_the_hub_has_it_gets_its_report_role_from_validation():
    features = Features(
        {
            "idx": Value("int32"),
            "sentence": Value("string"),
            "label": ClassLabel(names=["negative", "positive"]),
        }
    )

    def split(n, name, hidden=False):
        labels = [-1 if hidden else i % 2 for i in range(n)]
        columns = {"idx": range(n), "sentence": [f"{name} {i}" for i in range(n)], "label": labels}
        return Dataset.from_dict(columns, features=features)

    data = DatasetDict(train=split(60, "train"), validation=split(20, "dev"), test=split(30, "test", True))
    task = make(data, template="{sentence}", name="sst2")
    assert task.n_examples == {"train": 60, "baseline": 60, "select": 10, "report": 10}
    assert task.class_counts("select") == task.class_counts("report") == [5, 5]
    assert all(text.startswith("dev") for text in texts_of(task, "report"))
    assert "'test' is set aside" in task.notes[0] and "'validation' is halved" in task.notes[1]
    by_name = make(data, template="{sentence}", label_words={"positive": " good", "negative": " bad"})
    assert by_name.label_names == ("positive", "negative")
    assert by_name.split("train")["label"][:4] == [1, 0, 1, 0]


def test_without_validation_a_fifth_of_train_is_held_out_and_other_splits_are_left_alone():
    data = {"train": rows(100, "train"), "test": rows(40, "test"), "unsupervised": rows(10, "u", (-1,))}
    task = make(data)
    assert task.n_examples == {"train": 80, "baseline": 80, "select": 20, "report": 40}
    assert task.class_counts("select") == [10, 10]
    assert not set(texts_of(task, "select")) & set(texts_of(task, "baseline"))
    assert len(task.notes) == 2


def test_labels_are_numbered_and_keep_their_names():
    data = {name: rows(9, name, (7, 3, 5)) for name in ("train", "validation", "test")}
    task = make(data, label_words={7: " x", 3: " y", 5: 17})
    assert task.label_names == (3, 5, 7) and task.label_words == {0: " y", 1: 17, 2: " x"}
    assert task.split("train")["label"][:3] == [2, 0, 1]
    data = {name: rows(8, name, ("pos", "neg")) for name in ("train", "validation", "test")}
    task = make(data, label_words={"pos": " good", "neg": " bad"})
    assert task.label_names == ("pos", "neg") and task.split("train")["label"][:2] == [0, 1]


def test_a_template_joins_fields_and_reads_nothing_else():
    data = {
        name: [{"a": f"{name}{i}", "b.c": i, "label": i % 2} for i in range(4)]
        for name in ("train", "validation", "test")
    }
    assert texts_of(make(data, template="{{{a}}} and {b.c!s}."), "train")[1] == "{train1} and 1."


def test_a_formatted_dataset_is_read_as_plain_values():
    data = DatasetDict({name: Dataset.from_list(split) for name, split in three_splits(8).items()})
    assert make(data.with_format("torch")).fingerprint == make(three_splits(8)).fingerprint


def test_text_in_two_roles_is_dropped_from_the_earlier_one_and_counted():
    data = three_splits(20)
    data["train"] += [
        {"text": "validation  0 ", "label": 0},  # white space apart, a text of select
        {"text": "test 1", "label": 1},
        {"text": "train 0", "label": 0},  # twice in one role is no fault
    ]
    data["validation"] += [{"text": "\ttest\n2", "label": 0}]
    task = make(data)
    assert task.dropped == {"train": 2, "baseline": 2, "select": 1, "report": 0}
    assert task.n_examples == {"train": 21, "baseline": 21, "select": 20, "report": 20}
    assert not {"validation  0 ", "test 1"} & set(texts_of(task, "train"))
    with pytest.raises(
        ValueError, match=r"2 of train, 2 of baseline, 1 of select .* 'validation 0' of train"
    ):
        make(data, drop=())
    assert make(three_splits(), drop=()).n_examples["train"] == 40


def test_a_baseline_of_its_own_loses_overlaps_too_but_may_share_with_train():
    data = {**three_splits(20), "base": rows(10, "train") + rows(2, "test")}
    roles = {"train": "train", "baseline": "base", "select": "validation", "report": "test"}
    task = make(data, roles=roles)
    assert task.dropped == {"train": 0, "baseline": 2, "select": 0, "report": 0}
    assert task.n_examples["baseline"] == 10


# Smaller tasks


def test_a_limit_keeps_shares_and_baseline_follows_train():
    data = {name: rows(100, name, (0, 0, 0, 0, 1)) for name in ("train", "validation", "test")}
    task = make(data)
    small = task.limit(train=20, select=7)
    assert [small.class_counts(role) for role in ROLES] == [[16, 4], [16, 4], [6, 1], [80, 20]]
    assert texts_of(small, "baseline") == texts_of(small, "train")
    assert set(texts_of(small, "train")) < set(texts_of(task, "train"))
    assert small.fingerprint == task.limit(train=20, select=7).fingerprint
    assert texts_of(small, "train") != texts_of(task.limit(train=20, seed=1), "train")
    assert len(small.notes) == 2 and "20 of 100" in small.notes[0]
    assert task.limit(baseline=10).n_examples == {"train": 100, "baseline": 10, "select": 100, "report": 100}
    assert task.limit(train=1000).notes == ()
    assert task.limit(report=2).class_counts("report") == [1, 1]
    with pytest.raises(ValueError, match="the limit of train must be an integer of at least 2, got 1"):
        task.limit(train=1)


def test_apportion_sums_up_and_starves_nobody():
    assert apportion(10, [50, 25, 25]) == [5, 3, 2]
    assert apportion(3, [98, 1, 1]) == [1, 1, 1]
    assert apportion(1, [60, 20, 20]) == [1, 0, 0]
    assert all(sum(apportion(n, [7, 11, 13])) == n for n in range(40))


# Fingerprint


def test_the_fingerprint_is_the_same_in_every_process():
    data = [{"text": f"example {i}", "label": i % 2} for i in range(40)]
    assert make(data).fingerprint == "5bc32d90ac342adf286ea6141c618c373075488ae9dc1e12555571e805e979e8"


def test_the_fingerprint_tells_texts_labels_roles_template_and_words_apart():
    changed = three_splits()
    changed["test"][0]["text"] += "!"
    relabelled = three_splits()
    relabelled["test"] = rows(40, "test", (1, 0))
    swapped = three_splits()
    swapped["test"], swapped["validation"] = swapped["validation"], swapped["test"]
    variants = [make(data) for data in (three_splits(), changed, relabelled, swapped)]
    variants += [make(three_splits(), label_words={0: " bad", 1: " fine"})]
    variants += [make(three_splits(), template="{text}{label!s}")]
    assert len({task.fingerprint for task in variants}) == 6
    assert make(three_splits(), name="another name").fingerprint == variants[0].fingerprint


# What bad data gets


def with_row(split, **row):
    data = three_splits()
    data[split].insert(3, {"text": "odd", "label": 0} | row)
    return data


REFUSED = [
    (
        three_splits(),
        {"template": "{txt}"},
        r"template field 'txt' is not in split 'train' \(role train and baseline\), which has the columns "
        r"'text', 'label'; did you mean 'text'\?",
    ),
    (three_splits(), {"template": "{text.__class__}"}, "template field 'text.__class__' is not in"),
    (three_splits(), {"template": "no field"}, "template 'no field' has no field; name at least one column"),
    (three_splits(), {"template": "{text"}, "template '{text' can't be read"),
    (
        three_splits(),
        {"template": "{text:>9}"},
        "must have plain fields, got a format or conversion on 'text'",
    ),
    (three_splits(), {"label": "lable"}, "label column 'lable' is not in .*; did you mean 'label'"),
    (
        with_row("validation", label=2),
        {},
        r"split 'validation' \(role select\), row 3: label 2 is not in label_words, which has 0, 1",
    ),
    (with_row("train", label="00"), {}, "row 3: label '00' is not in label_words"),
    (with_row("test", label=-1), {}, r"label -1 \(the Hub's mark for a hidden label\) is not in"),
    (with_row("train", label=None), {}, r"split 'train' .*, row 3 has no label \(None in column 'label'\)"),
    (
        with_row("train", text=" \n"),
        {},
        r"split 'train' \(role train and baseline\), row 3: the text is empty",
    ),
    (with_row("test", text=None), {}, r"'test' .*, row 3: column 'text' is empty \(None\)"),
    (
        {**three_splits(), "validation": rows(5, "v", (1,))},
        {},
        "role 'select' has no example of label 0; each role needs every label",
    ),
    ({**three_splits(), "train": []}, {}, "split 'train' .* is empty; give it examples"),
    ([], {}, "split 'data' .* is empty"),
    ({}, {}, "data has no split"),
    (
        {"validation": rows(4, "v"), "test": rows(4, "t")},
        {},
        "no split is called 'train', got 'validation', 'test'",
    ),
    (
        three_splits(),
        {"roles": {"selcet": "test"}},
        "a role must be one of .* got 'selcet'; did you mean 'select'",
    ),
    (
        three_splits(),
        {"roles": {"select": "tset"}},
        "no split 'tset' for role 'select'; the splits are .*; did you mean 'test'",
    ),
    (three_splits(), {"roles": {"select": []}}, "role 'select' must have at least one split"),
    (
        {**three_splits(4), "validation": rows(4, "test")},
        {},
        "role 'select' is left empty once 4 examples whose text also stands in a later role are dropped",
    ),
    (
        {**three_splits(4), "validation": [*rows(4, "test"), {"text": "v", "label": 1}]},
        {},
        "role 'select' has no example of label 0 once 4 examples",
    ),
    (three_splits(), {"drop": "keep"}, "drop must be one of 'overlap', 'empty', got 'keep'"),
    (three_splits(), {"label_words": {0: " bad"}}, "a task needs at least two labels, got 1 in label_words"),
    (
        three_splits(),
        {"label_words": {0: " x", 1: " x"}},
        "each class needs a label word of its own, got ' x', ' x'",
    ),
    (three_splits(), {"label_words": {0: "", 1: " x"}}, "a label word must be a word or a token id"),
    (three_splits(), {"label_words": {0: -3, 1: " x"}}, "a token id of at least 0, got -3"),
]


@pytest.mark.parametrize(("data", "changes", "message"), REFUSED)
def test_bad_data_is_refused_by_name(data, changes, message):
    with pytest.raises(ValueError, match=message):
        make(data, **changes)


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (
            5,
            {},
            "data must be a Dataset, a pandas frame .* got int for 'data'; lists of .* to Task.from_texts",
        ),
        ({"text": ["a"], "label": [0]}, {}, "got list for 'text'"),
        ({"train": iter([])}, {}, "nothing that streams"),
        (with_row("train", label=[1]), {}, "row 3: a label must be an integer or a string, got list"),
        (
            three_splits(),
            {"label_words": {0: " x", "1": " y"}},
            "must be all integers or all strings, got 0, '1'",
        ),
        (
            three_splits(),
            {"label_words": {0: " x", 1: True}},
            "a label word must be a string or a token id, got True",
        ),
    ],
)
def test_data_of_a_wrong_kind_is_a_type_error(data, changes, message):
    with pytest.raises(TypeError, match=message):
        make(data, **changes)


def test_names_of_a_class_label_are_checked():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    data = Dataset.from_list(rows(20, "x"), features=features)
    with pytest.raises(
        ValueError, match=r"label 'postive' of label_words is not a label of .*did you mean 'positive'"
    ):
        make(data, label_words={"negative": " bad", "postive": " good"})


def test_an_unknown_role_and_missing_twins_are_refused():
    task = make(three_splits())
    with pytest.raises(ValueError, match=r"role must be one of .* got 'test'"):
        task.split("test")
    with pytest.raises(ValueError, match="'toy' have no twins; tasks made by minimal_pairs have them"):
        task.pairs("train")


def test_a_task_made_by_hand_is_checked():
    good = Dataset.from_list(rows(4, "x"))
    splits = dict.fromkeys(ROLES, good)
    names = (0, 1)
    assert Task("hand", WORDS, splits, names).n_classes == 2
    bad = Dataset.from_dict({"text": ["a", " "], "label": [0, 1]})
    for changed, message in [
        ({"train": good}, "splits must have exactly the roles"),
        ({**splits, "report": good.remove_columns("label")}, "role 'report' must have the columns"),
        ({**splits, "report": bad}, "role 'report', row 1: the text is empty"),
        ({**splits, "report": Dataset.from_list(rows(4, "x", (0, 1, 2)))}, "classes must be 0 to 1, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            Task("hand", WORDS, changed, names)
    with pytest.raises(ValueError, match="must number the classes from 0"):
        Task("hand", {1: " a", 2: " b"}, splits, names)


# Real data


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data in ../shared/data is not there")
def test_real_benchmarks_have_text_in_two_roles():
    sst2 = make(load_splits(DATA / "sst2"))
    assert sst2.dropped["train"] == 3 and sst2.n_examples["train"] == 6920 - 3
    words = {0: " yes", 1: " maybe", 2: " no"}
    mnli = load_splits(DATA / "mnli")
    assert make(mnli, template="{premise} {hypothesis}", label_words=words).dropped["train"] == 0
    premises = make(mnli, template="{premise}", label_words=words)
    assert premises.dropped["train"] > 0
    assert not set(texts_of(premises, "train")) & set(texts_of(premises, "report"))


def test_what_needs_two_classes_says_how_to_get_them():
    require_two_classes(make(three_splits()))
    with pytest.raises(
        ValueError, match=r"two classes, ag_news has 4; score each of task.binary_subtasks\(\)"
    ):
        require_two_classes(four_classes())
