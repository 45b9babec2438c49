"""Tasks of many classes as several of two."""

import pytest
import torch
from texts import four_classes, make, rows, texts_of, three_splits

from tl_skillneurons.tasks.subtasks import against_rest


def test_one_vs_rest_puts_each_class_against_all_others():
    task = four_classes()
    subtasks = task.binary_subtasks()
    assert [s.name for s in subtasks][1] == "ag_news: sports against rest"
    sports = subtasks[1]
    assert sports.label_words == {0: " other", 1: " sports"} and sports.label_names == ("rest", "sports")
    assert texts_of(sports, "train") == texts_of(task, "train")
    assert sports.split("train")["label"][:] == [int(i == 1) for i in task.split("train")["label"]]
    assert sports.class_counts("report") == [30, 10]
    assert task.binary_subtasks(rest_word=5)[0].label_words[0] == 5


def test_pairs_leave_other_classes_out():
    task = four_classes()
    subtasks = task.binary_subtasks("pairs")
    assert len(subtasks) == 6 and subtasks[0].name == "ag_news: world against sports"
    assert subtasks[0].label_words == {0: " sports", 1: " world"}
    assert subtasks[0].class_counts("train") == [10, 10]
    assert texts_of(subtasks[0], "select")[:2] == ["validation 0", "validation 1"]
    assert subtasks[0].split("select")["label"][:2] == [1, 0]


def test_groupings_name_labels_or_class_ids():
    task = four_classes()
    one, two, three = task.binary_subtasks(
        [("sports", ["world", 2]), (["world", "business"], 3), ([0, 1], [2, 3])]
    )
    assert one.name == "ag_news: sports against world or business"
    assert one.label_words == {0: " other", 1: " sports"} and one.class_counts("train") == [20, 10]
    assert two.label_words == {0: " science", 1: " other"} and two.class_counts("train") == [10, 20]
    assert three.label_words == {0: " other", 1: " world"}


def test_integer_labels_are_titled_by_their_words_and_two_classes_stay_as_they_are():
    data = {name: rows(9, name, (1, 2, 3)) for name in ("train", "validation", "test")}
    task = make(data, label_words={1: " red", 2: " green", 3: 99})
    assert [s.name for s in task.binary_subtasks()][1:] == ["toy: green against rest", "toy: 3 against rest"]
    assert task.binary_subtasks([(3, 1)])[0].label_words == {0: " red", 1: 99}
    binary = make(three_splits())
    assert binary.binary_subtasks() == [binary] == binary.binary_subtasks("pairs")


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("one_vs_all", "scheme must be one of 'one_vs_rest', 'pairs', got 'one_vs_all'; did you mean"),
        ([("sport", "world")], "there is no label 'sport' in task 'ag_news'; did you mean 'sports'"),
        ([(4, 0)], "there is no label 4"),
        ([("sports", ["sports", "world"])], "each label must stand in a grouping once"),
        ([("sports", [])], "each group must have at least one label"),
        (["sports"], r"a grouping must be two groups of labels, \(labels, labels\), got 'sports'"),
    ],
)
def test_groupings_that_make_no_sense_are_refused(scheme, message):
    with pytest.raises(ValueError, match=message):
        four_classes().binary_subtasks(scheme)


def test_one_class_against_the_rest_is_how_its_subtask_has_the_labels():
    task = four_classes()
    labels = torch.tensor(task.split("report")["label"][:])
    for class_id, subtask in enumerate(task.binary_subtasks()):
        assert against_rest(labels, class_id).tolist() == subtask.split("report")["label"][:]
    drawn = torch.stack([labels, labels.flip(0)])
    assert torch.equal(against_rest(drawn, 2)[1], against_rest(labels, 2).flip(0))


def test_of_two_classes_the_second_leaves_the_labels_as_they_are_and_the_first_exchanges_them():
    labels = torch.tensor([0, 1, 1, 0])
    assert torch.equal(against_rest(labels, 1), labels) and torch.equal(against_rest(labels, 0), 1 - labels)
