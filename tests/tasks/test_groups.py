"""Groups of examples stay in one role: sources by a column, near-duplicates by their words."""

import itertools

import pytest

import tl_skillneurons as skn
from tl_skillneurons.tasks.groups import near_duplicates

WORDS = {0: " no", 1: " yes"}


def rows(n=60, n_authors=12):
    return [
        {"text": f"text number {i} of the data", "label": i % 2, "author": f"author {i * 7 % n_authors}"}
        for i in range(n)
    ]


def make(data, **settings):
    return skn.Task.from_datasets(data, template="{text}", label_words=WORDS, name="toy", **settings)


def authors_of(task, role):
    author = {row["text"]: row["author"] for row in rows()}
    return {author[text] for text in task.split(role)["text"]}


def test_a_lone_split_is_divided_by_whole_groups_in_the_shares_of_the_labels():
    task = make(rows(), group="author")
    for one, other in itertools.combinations(("train", "select", "report"), 2):
        assert not authors_of(task, one) & authors_of(task, other)
    counts = task.n_examples
    assert sum(counts[role] for role in ("train", "select", "report")) == 60
    assert counts == {"train": 40, "baseline": 40, "select": 10, "report": 10}  # 12 authors of 5 texts each
    assert all(min(task.class_counts(role)) >= 5 for role in counts)
    again = make(rows(), group="author")
    assert again.fingerprint == task.fingerprint
    assert any(make(rows(), group="author", seed=s).fingerprint != task.fingerprint for s in (1, 2))


def test_a_group_in_two_given_splits_is_dropped_from_the_earlier_and_counted_or_refused():
    data = {"train": rows()[:40], "validation": rows()[40:45], "test": rows()[45:50]}
    task = make(data, group="author")
    assert not authors_of(task, "train") & (authors_of(task, "select") | authors_of(task, "report"))
    late = {row["author"] for row in rows()[40:50]}
    assert task.dropped["train"] == sum(row["author"] in late for row in rows()[:40]) > 0
    with pytest.raises(ValueError, match=r"text or its group stands in two roles: .* of train"):
        make(data, group="author", drop=())


def slow_groups(texts, threshold):
    """Every pair compared, then everything connected joined."""

    def words(text):
        own = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        return {tuple(own[i : i + 3]) for i in range(max(1, len(own) - 2))}

    group = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        a, b = words(texts[i]), words(texts[j])
        if len(a & b) / len(a | b) >= threshold:
            low, high = sorted((group[i], group[j]))
            group = [low if g == high else g for g in group]
    return group


def test_near_duplicates_are_those_that_a_comparison_of_all_pairs_finds():
    import random

    generator = random.Random(0)
    base = [" ".join(generator.choice("a b c d e f g h".split()) for _ in range(12)) for _ in range(40)]
    texts = []
    for text in base:
        changed = text.split()
        changed[generator.randrange(12)] = "x"
        texts += [text, " ".join(changed), text[:9].upper() + "!" + text[9:]]
    texts += ["Short one", "short, one", "short"]
    for threshold in (0.3, 0.5, 0.7, 1.0):
        found, expected = near_duplicates(texts, threshold), slow_groups(texts, threshold)
        assert [found.index(g) for g in found] == [expected.index(g) for g in expected]


def test_near_duplicates_never_straddle_roles():
    data = [
        {
            "text": f"the {i // 2} th film has a plot that nobody {i // 2} believes in{'.' * (i % 2)}",
            "label": i // 2 % 2,
        }
        for i in range(80)
    ]
    task = make(data, near_duplicates=0.8)
    kept = {
        role: {text.rstrip(".") for text in task.split(role)["text"]}
        for role in ("train", "select", "report")
    }
    assert sum(len(task.split(role)) for role in kept) == 80
    for one, other in itertools.combinations(kept.values(), 2):
        assert not one & other


def test_a_column_and_near_duplicates_together_join_their_groups():
    data = [{"text": f"one two three {i}", "label": i % 2, "source": i // 4} for i in range(40)]
    data[0]["text"] = data[39]["text"] + "!"
    task = make(data, group="source", near_duplicates=0.9)
    numbers = {
        role: {int(text.rstrip("!").split()[-1]) // 4 for text in task.split(role)["text"]}
        for role in ("train", "select", "report")
    }
    holding = [role for role, sources in numbers.items() if sources & {0, 9}]
    assert len(holding) == 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"group": "writer"}, "group column 'writer' is not in split 'data'"),
        ({"near_duplicates": 1.5}, r"near_duplicates must be a similarity in \(0, 1\], got 1.5"),
    ],
)
def test_groups_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(rows(), **settings)


def test_a_missing_group_is_named_by_its_row():
    data = rows()
    data[3]["author"] = None
    with pytest.raises(
        ValueError, match="row 3: a group must be an integer or a string that is not empty, got None"
    ):
        make(data, group="author")
