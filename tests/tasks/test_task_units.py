"""What belongs together is one unit: word pairs, groups, twins, equal texts; single texts otherwise."""

import itertools

import pytest
import torch
from texts import make, rows

from tl_skillneurons.tasks.groups import units_of
from tl_skillneurons.tasks.pairs import minimal_pairs

PAIRED = [
    {"text": f"film {k} is {'good' if label else 'bad'}", "label": label, "pair": f"p{k}"}
    for k in range(40)
    for label in (0, 1)
]


def roles_of(task, keys):
    """Role -> what ``keys`` gives for the texts of train, select and report."""
    return {role: {keys[text] for text in task.split(role)["text"]} for role in ("train", "select", "report")}


def test_texts_that_share_nothing_are_units_of_their_own():
    units = make(rows(20, "x")).units("train")
    assert units.are_single and units.what == "text" and units.pair is None


@pytest.mark.parametrize("kind", ["movie_reviews", "subject_verb"])
@pytest.mark.parametrize("disjoint_words", [False, True])
def test_the_unit_of_a_built_in_task_is_the_word_pair_and_labels_flip_in_all_its_texts_or_none(
    kind, disjoint_words
):
    task = minimal_pairs(kind, n_pairs=400, disjoint_words=disjoint_words)
    units = task.units("select")
    assert units.what == "word pair" and len(units) < 75 < len(task.pairs("select")) == 100
    words = [
        tuple(next(both for both in zip(a.split(), b.split(), strict=True) if both[0] != both[1]))
        for a, b in task.pairs("select")
    ]
    bare = [tuple(word.strip(".,:;!?") for word in both) for both in words]
    number = {both: int(units.member[2 * k]) for k, both in enumerate(bare)}
    assert units.member.tolist() == [number[both] for both in bare for _ in (0, 1)]
    labels = torch.tensor(task.split("select")["label"])
    for drawn in units.permuted(labels, 20):
        turned = (drawn != labels).long()
        assert all(len(set(turned[units.member == unit].tolist())) == 1 for unit in range(len(units)))
    assert task.units("baseline").member.tolist() == task.units("train").member.tolist()


def test_the_disjoint_word_pairs_of_the_audit_are_26_on_select():
    assert len(minimal_pairs("movie_reviews", n_pairs=400, disjoint_words=True).units("select")) <= 26


def test_groups_twins_and_equal_texts_join_and_the_unit_is_named_by_what_joined():
    texts, labels = ["a", "b", "c", "d", "e", " a "], [0, 1, 0, 1, 0, 0]

    def units(**columns):
        return units_of({"text": texts, "label": labels, **columns})

    assert repr(units()) == "Units(5 of 6 examples: text)"  # " a " is "a" again
    assert units(group=[0, 0, 1, 2, 3, 4]).what == "group and text"
    assert units(group=[0, 1, 2, 3, 4, 0]).what == "group"  # the equal texts are in one group already
    of_pairs = units(pair=[0, 0, 1, 1, 2, 3])
    assert of_pairs.member.tolist() == [0, 0, 1, 1, 2, 0] and of_pairs.what == "pair of twins and text"
    assert of_pairs.pair.tolist() == [0, 0, 1, 1, -1, -1]
    everything = units(unit=[0, 0, 1, 1, 2, 3], pair=[0, 0, 1, 1, 2, 3], group=[0, 1, 1, 2, 3, 4])
    assert everything.what == "word pair and group and text" and everything.member.tolist() == [0] * 4 + [
        1,
        0,
    ]


def test_a_text_that_lost_its_twin_leaves_the_others_labels_within_their_pairs():
    task = minimal_pairs(n_pairs=80)
    columns = {name: task.split("select")[name][1:] for name in ("text", "label", "pair")}
    units = units_of(columns)
    labels = torch.tensor(columns["label"])
    assert units.what == "pair of twins" and units.pair[0] == -1
    for drawn in units.permuted(labels, 50):
        assert drawn[0] == labels[0] and (drawn[1::2] != drawn[2::2]).all()


def test_a_pair_column_is_kept_and_twins_stand_in_one_role():
    pair_of = {row["text"]: row["pair"] for row in PAIRED}
    for data in (PAIRED, {"train": PAIRED[:41], "validation": PAIRED[41:62], "test": PAIRED[62:]}):
        task = make(data)
        for one, other in itertools.combinations(roles_of(task, pair_of).values(), 2):
            assert not one & other
        assert "pair" in task.split("select").column_names
        assert task.units("report").what == "pair of twins"
        assert all(zero.replace("bad", "good") == one for zero, one in task.pairs("report"))
    assert task.dropped == {"train": 1, "baseline": 1, "select": 0, "report": 0}
    assert make(PAIRED, pair=None).units("select").are_single


def test_pairs_and_groups_together_stay_whole():
    data = [{**row, "author": k // 6} for k, row in enumerate(PAIRED)]
    task = make(data, group="author")
    author = {row["text"]: row["author"] for row in data}
    for one, other in itertools.combinations(roles_of(task, author).values(), 2):
        assert not one & other
    assert task.units("train").what == "group" and task.units("train").pair is not None


def test_examples_without_a_twin_are_counted_and_a_limit_draws_whole_pairs_first():
    data = [*PAIRED[:60], *({**row, "pair": None} for row in PAIRED[60:])]
    task = make({"train": data, "validation": PAIRED[:10], "test": PAIRED[10:20]})
    assert task.n_examples["train"] == 60 and "20 of the 60 texts of train have no twin." in task.notes
    units = task.units("train")
    assert len(units) == 40 and int((units.pair < 0).sum()) == 20
    for limit, n_pairs, n in ((21, 10, 21), (40, 20, 40), (51, 20, 51)):
        limited = task.limit(train=limit)
        assert (
            limited.n_examples["train"] == n and int((limited.units("train").pair >= 0).sum()) == 2 * n_pairs
        )


def test_equal_texts_in_a_role_are_found_and_counted():
    data = rows(20, "x")
    data[3] = {**data[1], "text": f"  {data[1]['text']}"}
    task = make({"train": rows(20, "a"), "validation": data, "test": rows(20, "b")})
    assert task.notes == ("1 of the 20 texts of select stand there already: equal texts are one unit.",)
    assert repr(task.units("select")) == "Units(19 of 20 examples: text)"


def test_units_stay_through_limits_subtasks_and_shuffled_labels():
    task = minimal_pairs(n_pairs=200)
    (flipped,) = task.binary_subtasks([("negative", "positive")])
    for other in (task.limit(select=60), flipped, task.with_shuffled_labels(roles=("select",))):
        assert other.units("select").what == "word pair"
    assert task.with_shuffled_labels(roles=("select",)).units("select").pair is None


THREE = [*PAIRED[:2], {"text": "again", "label": 1, "pair": "p0"}]
ALIKE = [PAIRED[0], {"text": "again", "label": 0, "pair": "p0"}, PAIRED[3]]


def test_two_of_one_label_and_three_of_one_pair_are_a_unit_and_no_twins():
    columns = {"text": list("abcde"), "label": [0, 1, 1, 1, 0], "pair": [3, 3, 5, 5, 5]}
    units = units_of(columns)
    assert units.member.tolist() == [0, 0, 1, 1, 1] and units.pair.tolist() == [3, 3, -1, -1, -1]


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (
            THREE,
            {},
            r"row 2: the twins of pair 'p0' must be two examples of different labels, got rows 0, 1, 2",
        ),
        (ALIKE, {}, r"row 1: the twins of pair 'p0' .* of labels 0, 0; give pair=None"),
        ([{**PAIRED[0], "pair": 1.5}], {}, "row 0: a pair must be an integer, a string or None, got 1.5"),
        (
            {"train": PAIRED[:41], "validation": PAIRED[41:62], "test": PAIRED[62:]},
            {"drop": ()},
            "text or its pair stands in two roles: 1 of train",
        ),
    ],
)
def test_pairs_that_are_none_are_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        make(data, **settings)


def test_a_role_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"role must be one of .* did you mean 'select'"):
        make(rows(20, "x")).units("selct")
