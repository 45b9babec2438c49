"""Reference examples are drawn evenly by class and by units."""

import doctest

import pytest
import tiny
import torch
from toy import QUIET, TASK, prompt_for

import tl_skillneurons as skn
from tl_skillneurons import PromptedModel, Task, minimal_pairs
from tl_skillneurons.interventions import references
from tl_skillneurons.interventions.ablation import ablate_where_known
from tl_skillneurons.interventions.kinds import Mean
from tl_skillneurons.interventions.references import evenly, measure_references, reference_rows
from tl_skillneurons.stats.units import Units


def by_scanning(labels, units, quota):
    """Classes in turn, and of each class the row that is lowest by the rule as it is written."""
    chosen = []
    for _ in range(quota):
        for c in labels.unique().tolist():
            places = []
            for row in (labels == c).nonzero().flatten().tolist():
                same = [labels[one] == c for one in chosen if units.member[one] == units.member[row]]
                if row not in chosen:
                    places.append((sum(map(int, same)), len(same), row))
            chosen += [row for _, _, row in sorted(places)[:1]]
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(3))
def test_classes_take_turns_and_each_takes_the_unit_it_has_taken_least(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (60,), generator=generator)
    units = Units.of([torch.randint(12, (60,), generator=generator).tolist()])
    for quota in (1, 5, 9, 60):
        rows = evenly(labels, units, quota)
        assert rows.tolist() == by_scanning(labels, units, quota)
        for c in range(3):
            there = units.member[labels == c].unique()
            own = units.member[rows[labels[rows] == c]]
            assert len(own.unique()) == min(len(there), len(own))  # no unit twice before each was taken


def test_of_single_texts_they_are_the_first_of_each_class():
    labels = torch.tensor([0] * 7 + [1] * 3)
    assert evenly(labels, Units.single(10), 4).tolist() == [0, 1, 2, 3, 7, 8, 9]
    assert evenly(labels, Units.single(10), 10).tolist() == list(range(10))


def test_a_task_gives_as_many_of_its_groups_as_it_can():
    def some(authors):
        return [
            {"text": f"text {author} {n}", "label": n % 2, "author": str(author)}
            for author in authors
            for n in range(8)
        ]

    task = Task.from_datasets(
        {"train": some([0, 1]), "validation": some([2, 3]), "test": some([4, 5])},
        roles={"select": "validation", "report": "test"},
        template="{text}",
        label_words={0: " bad", 1: " good"},
        group="author",
        name="authors",
    )
    chosen = reference_rows(task, "report", 4)  # the first two of each class are all of one author
    assert task.units("report").what == "group"
    assert {task.split("report")["text"][row].split()[1] for row in chosen.tolist()} == {"4", "5"}


def test_a_built_in_tasks_references_are_of_distinct_word_pairs_while_there_are_some():
    task = minimal_pairs("movie_reviews", n_pairs=100)
    units, labels = task.units("baseline"), torch.tensor(task.split("baseline")["label"])
    rows = reference_rows(task, "baseline", 2 * len(units))
    assert len(rows) == 2 * len(units)
    for c in (0, 1):
        assert len(units.member[rows[labels[rows] == c]].unique()) == len(units)


def test_a_class_without_a_reference_example_has_no_mean_and_is_named():
    one = references.Reference(torch.ones(3, 1, 2), torch.tensor([0, 2, 2]))
    with pytest.raises(ValueError, match=r"no example of class 1, .* every class from 0 to 2"):
        _ = one.class_mean


def test_the_examples_in_docstrings_give_what_they_say():
    for function in (evenly, references.absent_classes, references.class_means):
        [example] = doctest.DocTestFinder().find(function, function.__name__, globs=vars(references))
        assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_means_at_the_text_and_what_is_held_at_them_cover_the_same_positions(family):
    """The special tokens around a text are no part of it: they have means of their own, and are held at these."""
    prompted = PromptedModel(tiny.bridge(family, dtype=torch.float64), prompt_for(family))
    texts = [
        list(TASK.split("baseline")["text"])[row] for row in reference_rows(TASK, "baseline", 6).tolist()
    ]
    places = ["prompt", "text", "special"]
    found = measure_references(prompted, TASK, "baseline", 6, places)
    name, tokens = "blocks.1.mlp.hook_post", prompted.tokens(texts)
    kinds = {
        "prompt": tokens.is_prompt,
        "text": tokens.is_text & ~tokens.is_special,
        "special": tokens.is_special,
    }
    _, cache = prompted.run_with_cache(texts, names_filter=name)
    for place, here in kinds.items():
        by_hand = torch.stack([act[own].mean(0) for act, own in zip(cache[name], here, strict=True)]).mean(0)
        torch.testing.assert_close(found[place].mean[1], by_hand, check_dtype=False, rtol=1e-6, atol=1e-7)
    held = {}

    def keep(act, hook):
        held["act"] = act

    neurons = skn.NeuronSet([1], [3])
    for where, touched in (("text", ["text"]), ("special", ["special"]), ("all", places)):
        hooks = ablate_where_known(neurons, Mean(), where, found, labels=None, seed=0)
        prompted.run_with_hooks(texts, [*hooks, (name, keep)])
        for place, here in kinds.items():
            now, before = (act[here][:, 3] for act in (held["act"], cache[name]))
            expected = found[place].mean[1, 3].expand_as(now) if place in touched else before
            torch.testing.assert_close(now, expected, check_dtype=False, rtol=1e-6, atol=1e-7)


def test_without_special_tokens_all_positions_are_the_prompt_and_the_text_and_special_ones_are_refused():
    model, bare = tiny.bridge("gpt2"), prompt_for("gpt2", prepend_bos=False)
    neurons, options = skn.NeuronSet([1], [3]), {"n_random": 19, "run": QUIET}
    panel = skn.measure_effects(model, bare, TASK, neurons, interventions="mean", positions="all", **options)
    assert panel.settings["positions"] == ["all"]
    with pytest.raises(ValueError, match="positions='special' needs special tokens around the texts"):
        skn.measure_effects(model, bare, TASK, neurons, interventions="mean", positions="special", **options)
