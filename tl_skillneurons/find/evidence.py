"""How much evidence a run gathers: how many controls, permutations and examples."""

from dataclasses import dataclass

from tl_skillneurons._checks import require_int
from tl_skillneurons._results import html_of_fields
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.tasks.task import Task

SIZES = (0.25, 0.5, 1.0, 2.5)
"""The sizes of the curve, in sizes of the set of skill neurons: of 2 % they are 0.5, 1, 2 and 5 %."""


@dataclass(frozen=True)
class Evidence:
    """How much is measured. More examples and controls take proportionally more time, and nothing else changes.

    Attributes:
        n_random: Sets of random neurons beside every effect, and as many matched and least predictive ones; 19 at
            least.
        n_permutations: Label permutations for the chance level of the scores.
        n_examples: Most examples of ``report`` that answer with neurons held, drawn evenly by the seed; the prompts'
            accuracies and the rules are of all of them.
        n_curve_examples: Most examples of ``report`` for the curve over sizes.
        n_curve_random: Sets of each kind of control for the curve: a band, too few for a p-value.
        n_profiled: So many of the best skill neurons are looked at one by one: which texts and words drive them.

    Raises:
        ValueError: For numbers that are too small.

    Example:
        >>> skn.find_skill_neurons(model, task, out="run", evidence=Evidence(n_random=99, n_examples=1000))
    """

    _repr_html_ = html_of_fields

    n_random: int = 20
    n_permutations: int = 1000
    n_examples: int = 200
    n_curve_examples: int = 24
    n_curve_random: int = 3
    n_profiled: int = 20

    def __post_init__(self) -> None:
        require_draws(self.n_random)
        require_draws(self.n_permutations, name="n_permutations")
        for name in ("n_examples", "n_curve_examples"):
            require_int(getattr(self, name), name, minimum=2)
        require_int(self.n_curve_random, "n_curve_random")
        require_int(self.n_profiled, "n_profiled")


def examples_of(task: Task, n: int, seed: int) -> Task:
    """The task with at most ``n`` examples of ``report``, labels' shares and twins kept."""
    return task if task.n_examples["report"] <= n else task.limit(report=max(n, task.n_classes), seed=seed)


def best_few(skill: NeuronSet, n: int) -> NeuronSet:
    """The first ``n`` of the skill neurons, which stand best first; all where they are fewer."""
    layer, index = skill.layer[:n], skill.index[:n]
    return NeuronSet(layer, index, skill.n_layers, skill.d_mlp, skill.model, skill.choice)


def sizes_of(top: float | int, d_mlp: int) -> dict[str, float | int]:
    """The amounts per layer of the curve, by their names; those that leave enough others to be controls.

    Example:
        >>> sizes_of(0.02, 1536)
        {'0.5 %': 0.005, '1 %': 0.01, '2 %': 0.02, '5 %': 0.05}
        >>> sizes_of(2, 48)
        {'1 per layer': 1, '2 per layer': 2, '5 per layer': 5}
    """
    found: dict[str, float | int] = {}
    taken: set[int] = set()
    for size in SIZES:
        amount = round(top * size, 6) if isinstance(top, float) else max(1, round(top * size))
        n = int(amount * d_mlp) if isinstance(amount, float) else amount
        if n in taken or not n or (size != 1 and 3 * n > d_mlp):
            continue
        taken.add(n)
        found[f"{100 * amount:g} %" if isinstance(amount, float) else f"{amount} per layer"] = amount
    return found
