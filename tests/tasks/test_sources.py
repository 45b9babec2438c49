"""Data by name: local files, folders of splits, datasets of the hub."""

import datasets
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from texts import make, rows, three_splits

from tl_skillneurons.tasks.sources import load_splits


@pytest.fixture
def written(tmp_path):
    """One file of each kind, all with the same examples."""
    examples = [{"text": 'said "no",\ntwice', "label": 1}, {"text": "NA", "label": 0}]
    data = Dataset.from_list(examples)
    data.to_pandas().to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    data.to_pandas().to_json(tmp_path / "a.json", orient="records")
    data.to_pandas().to_csv(tmp_path / "a.csv", index=False)
    data.to_pandas().to_parquet(tmp_path / "a.parquet")
    return tmp_path, examples


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_local_files_of_each_kind_hold_the_same(written, ending):
    folder, examples = written
    if ending == ".csv":  # where all is text
        examples = [{name: str(value) for name, value in row.items()} for row in examples]
    assert list(load_splits(folder / f"a{ending}")) == examples
    assert list(load_splits(str(folder / f"a{ending}"))) == examples


def test_a_folder_with_splits_is_a_dataset_dict(tmp_path):
    for name, split in three_splits(12).items():
        Dataset.from_list(split).to_pandas().to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "README.md").write_text("about")
    data = load_splits(tmp_path)
    assert sorted(data) == ["test", "train", "validation"]
    assert make(data).fingerprint == make(three_splits(12)).fingerprint


def test_class_names_of_a_parquet_file_are_kept(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    path = tmp_path / "a.parquet"
    table = Dataset.from_list(rows(20, "x"), features=features).data.table
    pyarrow.parquet.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), path)
    assert make(load_splits(path), label_words={"positive": " good", "negative": " bad"}).n_classes == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"a\.jsonl can't be read as \.jsonl: line 2"),
        ("a.jsonl", b"[1]\n", "example 0 must be a JSON object, got list"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl can't be read"),
        ("a.json", b"{", r"a\.json can't be read"),
        ("a.csv", b"text,label\na,1,2\n", r"a\.csv can't be read"),
        ("a.csv", b"text,label\na\xff,1\n", r"a\.csv can't be read as \.csv: .*utf-8"),
        ("a.csv", b"text,label\na,1\nb\n", r"line 3 has 1 cells, and the header 2 \('text', 'label'\)"),
        ("a.csv", b"text;label\na;1\n", "its columns are separated by ';'; separate them by commas"),
        ("a.csv", b'text,label\n"a"b,1\n', "line 2: a quote that opens a cell must close it"),
        ("a.csv", b'text,label\n"a,1\nb,0\n"c" d,1\n', "line 4: a quote that opens a cell must close it"),
        ("a.csv", b'text,label\n"a,1\nb,0\n', "line 3: a quote that opens a cell must close it"),
        ("a.csv", b"text,label,text\na,1,b\n", "the column 'text' stands there twice"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "line 1: the column 'text' stands there twice"),
        (
            "a.jsonl",
            b'{"text": ' + b"[" * 100_000,
            r"a\.jsonl can't be read as \.jsonl: line 1: .*nested too deeply",
        ),
        ("a.json", b"[" * 100_000, r"a\.json can't be read as \.json: its values are nested too deeply"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", r"a\.jsonl can't be read as \.jsonl: line 1: "),
        ("a.csv", b"", r"a\.csv can't be read"),
        ("a.parquet", b"not parquet", r"a\.parquet can't be read as \.parquet"),
        ("a.txt", b"words", r"a\.txt must end in \.jsonl, \.json, \.csv, \.parquet, got '\.txt'"),
    ],
)
def test_corrupt_and_foreign_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_splits(path)


def test_a_folder_without_splits_or_with_two_files_for_one_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"has no split; expected a \.jsonl.* found notes\.md"):
        load_splits(tmp_path)
    for ending in ("csv", "jsonl"):
        (tmp_path / f"train.{ending}").write_text("")
    with pytest.raises(ValueError, match="more than one file for the split 'train'"):
        load_splits(tmp_path)


@pytest.mark.parametrize(
    "name", ["reviews.jsonl", "./reviews", "/no/such/place", "here/reviews", "~/no-such-folder-here"]
)
def test_what_looks_local_but_is_absent_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load_splits(name)


@pytest.mark.parametrize("error", [ConnectionError("offline"), OSError("no route to host")])
def test_a_hub_out_of_reach_is_one_error_that_names_the_local_forms(monkeypatch, error):
    def unreachable(*_):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    was = datasets.are_progress_bars_disabled()
    with pytest.raises(
        ConnectionError, match=r"'stanfordnlp/sst2' .*give a \.jsonl, .* folder with such files"
    ):
        load_splits("stanfordnlp/sst2")
    assert datasets.are_progress_bars_disabled() == was


def test_the_hub_is_asked_for_name_and_configuration_without_progress_bars(monkeypatch):
    asked = []

    def load(name, config):
        asked.append((name, config, datasets.are_progress_bars_disabled()))
        return DatasetDict()

    monkeypatch.setattr(datasets, "load_dataset", load)
    load_splits("nyu-mll/glue:sst2")
    load_splits("imdb")
    assert asked == [("nyu-mll/glue", "sst2", True), ("imdb", None, True)]


def test_a_name_that_the_hub_does_not_know_says_so(monkeypatch):
    def missing(*_):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'x/y' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(FileNotFoundError, match="there is no dataset 'x/y' on the hub"):
        load_splits("x/y")


def test_offline_the_real_hub_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="without it, give a"):
        load_splits("tl-skillneurons/no-such-dataset")
