"""The tests that are measured: of each, in how many shuffles it erred, and in how many it found what was planted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from calibration_settings import N_NEURONS, N_TEXTS, PLANTED, Setting, few_groups, settings
from torch import Tensor

from tl_skillneurons import NeuronSet
from tl_skillneurons.neurons.controls import draw_controls
from tl_skillneurons.scores.kinds import KINDS
from tl_skillneurons.scores.null import NullTally, permutation_null
from tl_skillneurons.scores.target_scores import _drawn  # the public way to it runs a model
from tl_skillneurons.stats import (
    Units,
    bootstrap_mean,
    equivalence,
    mcnemar,
    permutation_difference,
    rank_p_value,
    rate_interval,
    ratio_interval,
    sign_flip_test,
    two_level_bootstrap,
)

ALPHA = 0.05
MARGIN = 0.1
BLOCK = 50
"""Shuffles that see the same random signs or draws."""

_EQUIVALENT: dict[tuple[int, int, int], bool] = {}

_TEXTS, _GROUPS = settings()[0], settings()[4]
_PROMPTS = [(4, 0.1, _TEXTS), (4, 1.0, _TEXTS), (3, 0.3, _TEXTS), (10, 1.0, _TEXTS), (4, 0.3, _GROUPS)]

_LONG_TAILS = (26, 160)
_ANSWERS = (12, 26)

Measured = tuple[int, int | None]
"""In how many shuffles the test erred, and in how many it found what was planted."""


@dataclass(frozen=True)
class Row:
    """One test in one setting: ``measure(n_shuffles, seed)`` runs it.

    Attributes:
        note: Why the row is shown and not counted; empty for one that is.
    """

    setting: str
    test: str
    unit: str
    measure: Callable[[int, int], Measured]
    nominal: float = ALPHA
    note: str = ""


def all_rows() -> Iterator[Row]:
    """Setting after setting, and last what isn't of activations."""
    for setting in settings():
        yield from _rows_of(setting)
    yield from _weighted_rows()
    few = few_groups()
    yield Row(few.name, "bootstrap, 1 - coverage", _said(few), partial(_bootstrap, few))
    yield Row(few.name, "ratio, 1 - coverage", _said(few), partial(_ratio, few))
    for n_units in _LONG_TAILS:
        yield Row("long tail", "bootstrap, 1 - coverage", f"{n_units} text", partial(_long_tail, n_units))
    for n_prompts, spread, setting in _PROMPTS:
        name, unit = f"{n_prompts} prompts, apart by {spread:g}", f"{n_prompts} prompts x {_said(setting)}"
        yield Row(name, "two levels, 1 - coverage", unit, partial(_two_levels, n_prompts, spread, setting))
    for nominal in (ALPHA, 1 / 9):
        yield Row("1 of 9 neurons", "rank p, distinct", "control", partial(_rank, 9, 1, nominal), nominal)
    yield Row("1 of 9 neurons", "rank p, repeated draws", "control", _repeated, note="FAULT")
    yield Row("5 of 200 neurons", "rank p, distinct", "control", partial(_rank, 200, 5, ALPHA))
    for n_units in _ANSWERS:
        yield Row("0.85 right", "rate, 1 - coverage", f"{n_units} group", partial(_answers, n_units))


def _said(setting: Setting, units: Units | None = None) -> str:
    units = setting.units if units is None else units
    return f"{len(units)} {units.what}"


def _rows_of(setting: Setting) -> Iterator[Row]:
    unit = _said(setting)
    yield Row(setting.name, "family-wise null", unit, partial(_family_wise, setting, None))
    if setting.naive is not None:
        naive = _said(setting, setting.naive)
        measure = partial(_family_wise, setting, setting.naive)
        yield Row(setting.name, "family-wise null", naive, measure, note="FAULT")
    yield Row(setting.name, "sign flips", unit, partial(_sign_flips, setting))
    if setting.of_answers:
        yield Row(setting.name, "McNemar", unit, partial(_mcnemar, setting))
        yield Row(setting.name, f"equivalence within {MARGIN:g}", unit, partial(_equivalence, setting))
    yield Row(setting.name, "bootstrap, 1 - coverage", unit, partial(_bootstrap, setting))
    yield Row(setting.name, "ratio, 1 - coverage", unit, partial(_ratio, setting))
    if setting.class_id == 1:
        yield Row(setting.name, "label difference", unit, partial(_difference, setting))


def _family_wise(setting: Setting, permuted: Units | None, n: int, seed: int) -> Measured:
    generator = torch.Generator().manual_seed(seed)
    wrong = found = 0
    for shuffle in range(n):
        outcomes = setting.outcomes(generator)
        if permuted is not None:
            outcomes = replace(outcomes, units=permuted)
        options = {"n_permutations": 39, "seed": seed + shuffle, "class_id": setting.class_id}
        wrong += bool((permutation_null(outcomes, **options).family() <= ALPHA).any())
        if permuted is None:
            null = permutation_null(setting.planted(outcomes, generator), **options)
            found += bool(null.family()[0, 0] <= ALPHA)
    return wrong, (found if permuted is None else None)


def _blocks(n: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n, BLOCK):
        yield start, min(BLOCK, n - start)


def _sign_flips(setting: Setting, n: int, seed: int) -> Measured:
    generator = torch.Generator().manual_seed(seed)
    count = [0, 0]
    for start, size in _blocks(n):
        for planted in (False, True):
            rows = setting.differences(size, generator, planted=planted)
            p = sign_flip_test(rows, units=setting.units, n_draws=999, seed=seed + start)
            count[planted] += int((p <= ALPHA).sum())
    return count[0], count[1]


def _mcnemar(setting: Setting, n: int, seed: int) -> Measured:
    """Of 0.4 of the units that change, half are lost, or 0.65."""
    generator = torch.Generator().manual_seed(seed)
    count = []
    for share in (0.5, PLANTED):
        pairs = zip(*setting.changes(n, generator, 0.4 * share, 0.4 * (1 - share)), strict=True)
        count.append(sum(mcnemar(*pair, units=setting.units).p_value <= ALPHA for pair in pairs))
    return count[0], count[1]


def _equivalence(setting: Setting, n: int, seed: int) -> Measured:
    """At the margin, with 0.02 of the units gained; and with 0.01 lost and gained each."""
    generator = torch.Generator().manual_seed(seed)
    count = []
    for lost, gained in ((0.02 + MARGIN, 0.02), (0.01, 0.01)):
        count.append(0)
        for before, after in zip(*setting.changes(n, generator, lost, gained), strict=True):
            net = setting.units.sums(after.long() - before.long())
            # here a unit changes as a whole, so these numbers decide
            key = (len(setting.units), int((net < 0).sum()), int((net > 0).sum()))
            if key not in _EQUIVALENT:
                p = equivalence(before, after, margin=MARGIN, units=setting.units).p_value
                _EQUIVALENT[key] = p <= ALPHA
            count[-1] += _EQUIVALENT[key]
    return count[0], count[1]


def _bootstrap(setting: Setting, n: int, seed: int) -> Measured:
    """How often the interval leaves out the true mean, 0; and how often it leaves out 0 where it should."""
    generator = torch.Generator().manual_seed(seed)
    count = [0, 0]
    for start, size in _blocks(n):
        for planted in (False, True):
            rows = setting.differences(size, generator, planted=planted)
            low, high = bootstrap_mean(rows, n_draws=999, units=setting.units, seed=seed + start)
            count[planted] += int(((low > 0) | (high < 0)).sum())
    return count[0], count[1]


def _long_tail(n_units: int, n: int, seed: int) -> Measured:
    """Exponential values: how often the interval leaves out their mean, 1; and how often it leaves out 0.6."""
    generator = torch.Generator().manual_seed(seed)
    count = [0, 0]
    for start, size in _blocks(n):
        rows = torch.empty(size, n_units, dtype=torch.float64).exponential_(generator=generator)
        low, high = bootstrap_mean(rows, n_draws=999, seed=seed + start)
        for planted, value in enumerate((1.0, 0.6)):
            count[planted] += int(((low > value) | (high < value)).sum())
    return count[0], count[1]


def _answers(n_units: int, n: int, seed: int) -> Measured:
    """Answers of groups of 4 that agree: how often the interval leaves out 0.85; and how often it leaves out 0.5."""
    generator = torch.Generator().manual_seed(seed)
    units = Units.of([torch.arange(n_units).repeat_interleave(4).tolist()], what="group")
    count = [0, 0]
    for shuffle in range(n):
        right = torch.rand(n_units, generator=generator).lt(0.85)[units.member]
        low, high = rate_interval(right, units, seed=seed + shuffle)
        for planted, rate in enumerate((0.85, 0.5)):
            count[planted] += bool(low > rate or high < rate)
    return count[0], count[1]


def _ratio(setting: Setting, n: int, seed: int) -> Measured:
    """How often the interval of a recovered fraction of 0.4 leaves it out, where the gap is 1 and scatters by a half;
    and how often it leaves out 0, beside twice as much noise."""
    generator = torch.Generator().manual_seed(seed)
    count = [0, 0]
    for k in range(n):
        gap = 1 + setting.differences(1, generator)[0] / 2
        noise = setting.differences(1, generator)[0]
        for planted, part in enumerate((0.4 * gap + noise / 2, 0.4 * gap + noise)):
            low, high = ratio_interval(part, gap, n_draws=499, units=setting.units, seed=seed + k)
            truth = 0.0 if planted else 0.4
            count[planted] += bool((low > truth) | (high < truth))
    return count[0], count[1]


def _difference(setting: Setting, n: int, seed: int) -> Measured:
    """The largest difference of class means of all neurons; the planted one is 1 or 0, right on 0.65 of the units."""
    generator = torch.Generator().manual_seed(seed)
    wrong = found = 0
    for shuffle in range(n):
        labels, acts = setting.drawn(generator)
        rows = acts.mean(0).T
        options = {"n_draws": 39, "seed": seed + shuffle, "units": setting.units}
        wrong += bool((permutation_difference(rows, labels, **options).p_family <= ALPHA).any())
        right = (torch.rand(len(setting.units), generator=generator) < PLANTED)[setting.units.member]
        rows[0] = torch.where(right, labels, 1 - labels)
        found += bool(permutation_difference(rows, labels, **options).p_family[0] <= ALPHA)
    return wrong, found


def _two_levels(n_prompts: int, spread: float, setting: Setting, n: int, seed: int) -> Measured:
    """Prompts whose means have this standard deviation, units whose values have 1; a mean of 0.4 is to be found."""
    generator = torch.Generator().manual_seed(seed)
    count = [0, 0]
    for start, size in _blocks(n):
        of_prompt = spread * torch.randn(size, n_prompts, 1, generator=generator)
        of_text = setting.differences(size, generator)[:, None]
        own = torch.stack([setting.differences(size, generator) for _ in range(n_prompts)], 1)
        values = of_prompt + of_text + own
        for planted in (False, True):
            shifted = values + 0.4 * planted
            low, high = two_level_bootstrap(shifted, n_draws=499, units=setting.units, seed=seed + start)
            count[planted] += int(((low > 0) | (high < 0)).sum())
    return count[0], count[1]


def _weighted_rows() -> Iterator[Row]:
    unit = f"{N_TEXTS} text"
    yield Row("weighted by |target|", "family-wise null", unit, partial(_weighted, True))
    yield Row("weighted by |target|", "target without weight", unit, partial(_weighted, False), note="FAULT")


def _weighted(together: bool, n: int, seed: int) -> Measured:
    """Pearson's r of each activation with a target that says how much a text counts."""
    generator = torch.Generator().manual_seed(seed)
    units = Units.single(N_TEXTS)
    wrong = found = 0
    for shuffle in range(n):
        target = torch.randn(N_TEXTS, generator=generator, dtype=torch.float64)
        acts = torch.randn(N_TEXTS, N_NEURONS, generator=generator)
        rows, weights = _drawn(units, target, target.abs(), 39, seed + shuffle)
        if not together:
            rows = torch.cat([target[None], units.permuted(target, 39, seed=seed + shuffle)])
            weights = target.abs().expand_as(rows)
        wrong += bool((_correlated(acts, rows, weights) <= ALPHA).any())
        if together:
            right = torch.rand(N_TEXTS, generator=generator) < PLANTED
            acts[:, 0] = acts[:, 0].abs() * torch.where(right, target.sign(), -target.sign())
            found += bool(_correlated(acts, rows, weights)[0, 0] <= ALPHA)
    return wrong, (found if together else None)


def _correlated(acts: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    tally = NullTally(1, 1, N_NEURONS, len(rows) - 1, "mean", slack=1e-9)
    tally.add(0, slice(0, N_NEURONS), KINDS["pearson"].score(acts, rows, weights).abs()[None])
    return tally.null(0).family()


def _rank(d_mlp: int, size: int, nominal: float, n: int, seed: int) -> Measured:
    """The mean accuracy of a set of neurons beside that of its controls, on texts whose labels mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    count = [0, 0]
    for shuffle in range(n):
        chosen = torch.randperm(d_mlp, generator=generator)[:size]
        neurons = NeuronSet([0] * size, chosen.tolist(), n_layers=1, d_mlp=d_mlp)
        others = [one.index for one in draw_controls(neurons, 20, seed=seed + 1000 * shuffle).sets]
        accuracy = (torch.rand(N_TEXTS, d_mlp, generator=generator) < 0.5).double().mean(0)
        accuracy += 1e-9 * torch.rand(d_mlp, generator=generator)  # ties are their own question
        drawn = [float(accuracy[index].mean()) for index in others]
        right = (torch.rand(N_TEXTS, size, generator=generator) < PLANTED).double().mean()
        for planted, value in enumerate((float(accuracy[chosen].mean()), float(right))):
            count[planted] += rank_p_value(value, drawn, "greater") <= nominal + 1e-12
    return count[0], count[1]


def _repeated(n: int, seed: int) -> Measured:
    """Twenty draws among eight neurons."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, 9, generator=generator)
    drawn = torch.randint(1, 9, (n, 20), generator=generator)
    pairs = zip(values[:, 0].tolist(), values.gather(1, drawn).tolist(), strict=True)
    return sum(rank_p_value(value, other, "greater") <= ALPHA for value, other in pairs), None
