"""Texts and labels arrive as they were: nothing is re-typed, and classes keep their names across splits."""

import datetime
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from texts import WORDS, make, rows, texts_of, three_splits

from tl_skillneurons import Task
from tl_skillneurons.tasks.sources import load_splits

SPELLED = [
    "0042",
    "1.50",
    "true",
    "10:30",
    "1e3",
    "2024-01-05",
    "NA",
    "null",
    "-0",
    "1,5",
    " x ",
    "1_000",
    "inf",
]


def all_of(task):
    return {text for role in ("train", "select", "report") for text in texts_of(task, role)}


def test_a_csv_files_cells_stay_as_they_are_spelled(tmp_path):
    path = tmp_path / "a.csv"
    for column in (SPELLED, ["0042"] * len(SPELLED), ["true"] * len(SPELLED)):
        cells = [f'"{cell}"' if "," in cell else cell for cell in column]
        lines = [f"{cell},row {number},{number % 2}" for number, cell in enumerate(cells)]
        path.write_text("\n".join(["a,b,label", *lines]))
        task = make(load_splits(path), template="{a}; {b}")
        assert all_of(task) == {f"{cell}; row {number}" for number, cell in enumerate(column)}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["0", "1"], {0: " bad", 1: " good"}),
        (["0042", "42"], {"0042": " bad", "42": " good"}),
        (["true", "false"], {"true": " good", "false": " bad"}),
        (["1.50", "1e3"], {"1.50": " good", "1e3": " bad"}),
        (["-1", "1"], {-1: " bad", 1: " good"}),
    ],
)
def test_labels_of_a_csv_file_are_matched_as_they_are_spelled(tmp_path, labels, words):
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["text,label", *(f"text {n},{labels[n % 2]}" for n in range(20))]))
    task = make(load_splits(path), label_words=words)
    said = {
        text: str(task.label_names[label])
        for role in ("train", "select", "report")
        for text, label in zip(texts_of(task, role), task.split(role)["label"], strict=True)
    }
    assert said == {f"text {n}": labels[n % 2] for n in range(20)}


def test_another_spelling_of_an_integer_is_another_label(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,0\nb,01\n")
    with pytest.raises(ValueError, match="row 1: label '01' is not in label_words"):
        make(load_splits(path))


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_numbers_keep_their_type_and_spelling_beside_others(tmp_path, ending):
    numbers = ["3", "1.50", "1e3", str(2**64 + 1), "-0.0", "7"]
    objects = [
        f'{{"text": "row {n}", "number": {spelled}, "label": {n % 2}}}' for n, spelled in enumerate(numbers)
    ]
    path = tmp_path / f"a.{ending}"
    path.write_text("\n".join(objects) if ending == "jsonl" else f"[{','.join(objects)}]")
    task = make(load_splits(path), template="{text}: {number!s}")
    assert all_of(task) == {f"row {n}: {spelled}" for n, spelled in enumerate(numbers)}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"row 3: column 'text' must hold strings, got int 3; write \{text!s\} in the template"),
        (1.5, r"row 3: column 'text' must hold strings, got float 1\.5; write \{text!s\}"),
        (True, "row 3: column 'text' must hold strings, got bool True; make it a string"),
        (["a", "b"], r"row 3: column 'text' must hold strings, got list \['a', 'b'\]"),
        ({"a": 1}, r"row 3: column 'text' must hold strings, got dict \{'a': 1\}"),
        (b"bytes", "row 3: column 'text' must hold strings, got bytes b'bytes'"),
        (None, r"row 3: column 'text' is empty \(None\)"),
        (datetime.date(2024, 1, 5), "row 3: column 'text' must hold strings, got date"),
        ("half \ud83d", "row 3: column 'text' must be text that UTF-8 can write, got .* half of a surrogate"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_no_string_in_a_text_column_is_refused_with_its_place_and_value(split, value, message):
    data = three_splits()
    data[split][3]["text"] = value
    with pytest.raises(ValueError, match=f"split '{split}' .*{message}"):
        make(data)


def test_a_cell_may_be_of_any_size_and_hold_lines_and_quotes(tmp_path):
    cells = [
        "a " * 700_000 + "end",
        'two\nlines, and "quotes"',
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "\u4e2d\u6587",
        "\U0001f600",
    ]
    path = tmp_path / "a.csv"
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    lines = [f"{cell},{number % 2}" for number, cell in enumerate([*quoted, "x", "y"])]
    path.write_text("\ufefftext,label\r\n" + "\r\n".join(lines), encoding="utf-8")
    assert all_of(make(load_splits(path))) == {*cells, "x", "y"}


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([[0], [1]], TypeError, r"row 0: a label must be an integer or a string, got list \[0\]"),
        ([{"a": 1}, 1], TypeError, "row 0: a label must be an integer or a string, got dict"),
        ([float("inf"), 1], TypeError, "labels must be all integers or all strings, got 1, inf"),
        ([float("nan"), 1], ValueError, r"row 0 has no label \(nan in column"),
        ([None, None], ValueError, "no example has a label: column 'label' is empty"),
    ],
)
def test_labels_that_can_name_no_class_are_refused_without_label_words_too(labels, error, message):
    data = [{"text": f"text {n}", "label": labels[n % 2]} for n in range(12)]
    with pytest.raises(error, match=message):
        Task.from_datasets(data)


def test_a_label_that_looks_like_a_number_and_is_none_is_a_name():
    data = [{"text": f"text {n}", "label": ["--1", "1"][n % 2]} for n in range(12)]
    assert Task.from_datasets(data).label_names == ("--1", "1")


@pytest.mark.parametrize("words", ["ab", [" bad", " good"]])
def test_label_words_that_are_no_dict_are_refused(words):
    with pytest.raises(TypeError, match="label_words must be a dict of label to word"):
        make(three_splits(), label_words=words)


@pytest.mark.parametrize("value", [None, True, ["a"], b"a", {"a": 1}, float("nan"), float("inf")])
def test_taking_numbers_takes_nothing_else(value):
    data = three_splits()
    data["train"][3]["text"] = value
    with pytest.raises(ValueError, match="row 3: column 'text'"):
        make(data, template="{text!s}")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["a"], ["b"]] * 8),
        pa.array([{"a": 1}] * 16),
        pa.array([b"a", b"b"] * 8),
        pa.array([1, 2] * 8),
        pa.array(["a", None] * 8),
        pa.array([True, False] * 8),
        pa.array([datetime.date(2024, 1, 5)] * 16),
    ],
)
def test_a_parquet_column_that_is_no_text_is_refused(tmp_path, column):
    pyarrow.parquet.write_table(pa.table({"text": column, "label": [0, 1] * 8}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row [01]: column 'text' (must hold strings, got|is empty)"):
        make(load_splits(tmp_path / "a.parquet"))


def test_a_damaged_parquet_file_is_named_wherever_it_is_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text {n}" for n in range(200)], "label": [n % 2 for n in range(200)]})
    pyarrow.parquet.write_table(table, path, write_page_checksum=True)
    whole = path.read_bytes()
    for place in range(4, len(whole), max(1, len(whole) // 40)):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            try:
                found = load_splits(path)
            except ValueError as error:
                assert "a.parquet can't be read as .parquet" in str(error)
            else:  # a byte that means nothing, such as the writer's name
                assert found["text"][:] == table["text"].to_pylist()


def test_a_parquet_column_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array([1]), pa.array(["b"])], names=["text", "label", "text"]
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet .*the column 'text' stands there twice"):
        load_splits(tmp_path / "a.parquet")


@pytest.mark.parametrize("source", [":", "", " ", "name:", ":sst2", "a/b/c:d", "a b", "ü/x"])
def test_a_source_that_can_be_no_dataset_is_refused_before_the_hub_is_asked(source, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"data can't come from|there is no file or folder"
    ):
        load_splits(source)


def test_an_unknown_home_is_refused():
    with pytest.raises(FileNotFoundError, match="~no-such-user-here/data"):
        load_splits("~no-such-user-here/data")


@pytest.mark.parametrize("part", ["name", "template", "label_words", "labels"])
def test_half_a_surrogate_pair_is_refused_in_names_templates_and_words(part):
    changes = {
        "name": {"name": "a\ud800"},
        "template": {"template": "{text}\ud800"},
        "label_words": {"label_words": {0: " bad", 1: " good\udfff"}},
        "labels": {"label_words": {"a": " bad", "b\udfff": " good"}},
    }[part]
    data = three_splits()
    if part == "labels":
        data = {split: rows(12, split, ("a", "b\udfff")) for split in data}
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        make(data, **changes)


def named(split, names, n=12):
    """A split whose texts say their class's name, with a ``ClassLabel`` column numbered by ``names``."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    examples = [{"text": f"{split} {i} {names[i % len(names)]}", "label": i % len(names)} for i in range(n)]
    return Dataset.from_list(examples, features=features)


def classes_said(task):
    return {
        (task.label_names[label], text.split()[-1])
        for role in ("train", "select", "report")
        for text, label in zip(texts_of(task, role), task.split(role)["label"], strict=True)
    }


@pytest.mark.parametrize("other", ["train", "validation", "test"])
def test_splits_that_number_their_classes_differently_are_matched_by_name(other):
    data = {name: named(name, ["neg", "pos"]) for name in ("train", "validation", "test")}
    data[other] = named(other, ["pos", "neg"])
    by_number = make(DatasetDict(data))
    by_name = make(DatasetDict(data), label_words={"neg": " bad", "pos": " good"})

    assert classes_said(by_name) == {("neg", "neg"), ("pos", "pos")}
    first = ["pos", "neg"] if other == "train" else ["neg", "pos"]  # numbers are those of the first split
    assert classes_said(by_number) == set(enumerate(first))
    assert any("are matched by name" in note for note in by_number.notes)
    same = {name: named(name, ["neg", "pos"]) for name in data}
    assert not any("matched by name" in note for note in make(same).notes)


def test_a_split_with_names_instead_of_numbers_is_matched_by_name():
    data = {name: named(name, ["neg", "pos"]) for name in ("train", "validation")}
    data["test"] = [{"text": f"test {i} {name}", "label": name} for i, name in enumerate(["pos", "neg"] * 5)]
    assert classes_said(make(data)) == {(0, "neg"), (1, "pos")}


@pytest.mark.parametrize("words", [WORDS, {"neg": " bad", "pos": " good"}])
def test_a_split_without_a_name_that_another_has_is_refused(words):
    data = {name: named(name, ["neg", "pos"]) for name in ("train", "validation")}
    data["test"] = named("test", ["negative", "pos"])
    with pytest.raises(ValueError, match=r"not a label of split 'test' .*choose from 'negative', 'pos'"):
        make(data, label_words=words)


def test_roles_given_to_a_task_itself_must_number_their_classes_alike():

    splits = {role: named(role, ["neg", "pos"]) for role in ("train", "baseline", "select")}
    splits["report"] = named("report", ["pos", "neg"])
    with pytest.raises(
        ValueError, match="number their classes differently: 'train' has 'neg', 'pos' and 'report'"
    ):
        Task("toy", WORDS, splits, (0, 1))


def test_an_empty_cell_of_a_csv_files_pair_column_is_an_example_without_a_twin(tmp_path):
    path = tmp_path / "a.csv"
    lines = [f"text {n},{n % 2},{n // 2 if n < 16 else ''}" for n in range(24)]
    path.write_text("\n".join(["text,label,pair", *lines]))
    task = make(load_splits(path))
    twins = [int((task.units(role).pair >= 0).sum()) for role in ("train", "select", "report")]
    assert sum(twins) == 16


@pytest.mark.parametrize("seed", [None, 1.5, "a", -1, True, 2**63])
def test_a_seed_that_is_no_integer_from_zero_on_is_refused(seed):
    from tl_skillneurons import minimal_pairs

    one = three_splits()["train"]
    for draw in (
        lambda: make(one, seed=seed),
        lambda: make(three_splits(), seed=seed),
        lambda: make(one).limit(train=4, seed=seed),
        lambda: make(one).with_shuffled_labels(seed),
        lambda: minimal_pairs(n_pairs=8, seed=seed),
    ):
        with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
            draw()


def test_a_cell_of_pandas_missing_value_is_refused():
    data = three_splits()
    data["train"][3]["text"] = float("nan")
    with pytest.raises(ValueError, match="row 3: column 'text' is empty"):
        make(data)
    frame = pd.DataFrame(three_splits()["train"])
    frame.loc[3, "text"] = None
    with pytest.raises(ValueError, match="row 3: column 'text' is empty"):
        make(Dataset.from_pandas(frame))


def test_json_of_a_hub_like_line_with_a_lone_surrogate_is_refused_by_row(tmp_path):
    path = tmp_path / "a.jsonl"
    examples = [{"text": f"row {n}", "label": n % 2} for n in range(12)]
    examples[5]["text"] = "half \ud83d"
    path.write_text("\n".join(map(json.dumps, examples)))
    with pytest.raises(ValueError, match="row 5: column 'text' must be text that UTF-8 can write"):
        make(load_splits(path))
