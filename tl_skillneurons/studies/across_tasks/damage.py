"""Does taking one task's skill neurons away hurt the other tasks? (Wang et al., 2022, section 5.2)

Accuracy of task B with the skill neurons of task A ablated, beside as many random neurons of the same layers, since any
neurons held are some harm. On the diagonal stand a task's own neurons: what others lose means something beside that.

What it does not show: that B uses these neurons for what A uses them for; nor, where nothing is lost, that B does not
use them, since others may stand in. Each p-value stands alone: of twenty cells one is at most 0.05 by luck.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from tl_skillneurons.interventions.effects import ablation_effect
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.intervals import require_draws
from tl_skillneurons.tasks.task import Task

_ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class TaskDamage:
    """What every task loses without every task's neurons.

    Attributes:
        pairs: A row per ``ablated`` and ``measured`` task: accuracy ``intact``, ``ablated_accuracy``, the random
            controls' ``random_median``, ``random_min``, ``random_max``, ``damage`` (random median minus ablated:
            positive is more harm than random neurons do), the rank p-value ``p_random``, ``n_neurons`` and ``role``.
        names: The tasks.
    """

    pairs: pd.DataFrame
    names: tuple[str, ...]

    def matrix(self, column: str = "damage") -> pd.DataFrame:
        """One number of :attr:`pairs` by ablated task (rows) and measured task (columns)."""
        names = list(self.names)
        return self.pairs.pivot(index="ablated", columns="measured", values=column).loc[names, names]

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`pairs`."""
        return self.pairs.copy()

    def to_table(self) -> Table:
        """The damage as a table to print with rich; a star where ``p_random`` is at most 0.05."""
        table = Table(
            title=f"Accuracy lost on {self.pairs.role.iloc[0]} beyond random neurons",
            title_justify="left",
            caption=f"* p at most {_ALPHA}",
            caption_justify="left",
        )
        table.add_column("neurons of")
        for name in self.names:
            table.add_column(name, justify="right")
        damage, p_random = self.matrix(), self.matrix("p_random")
        for ablated in self.names:
            cells = [
                f"{damage.loc[ablated, measured]:+.3f}{'*' if p_random.loc[ablated, measured] <= _ALPHA else ' '}"
                for measured in self.names
            ]
            table.add_row(ablated, *cells)
        intact = [self.pairs[self.pairs.measured == name].intact.iloc[0] for name in self.names]
        table.add_section()
        table.add_row("intact accuracy", *(f"{accuracy:.3f} " for accuracy in intact))
        return table


def measure_damage(
    model: Any,
    tasks: Mapping[str, Task],
    prompts: Mapping[str, SoftPrompt | Sequence[SoftPrompt]],
    neurons: Mapping[str, NeuronSet],
    *,
    values: Mapping[str, Sequence[Float[Tensor, "layer neuron"]]] | None = None,
    how: str = "mean",
    positions: str = "prompt",
    n_random: int = 20,
    role: str = "report",
    seed: int = 0,
    **options: Any,
) -> TaskDamage:
    """Accuracy of every task with every task's neurons ablated, beside random neurons.

    Args:
        tasks, prompts, neurons: By the task's name, the same names in each.
        values: By the task that is measured, what its prompts' runs are ablated with, for ``how="mean"``
            (``[scores.mean_baseline(k) for k in ...]``).
        options: Of :func:`~tl_skillneurons.interventions.ablation_effect`.

    Raises:
        ValueError: When the names differ, or for fewer draws than a p-value of 0.05 needs.
    """
    require_draws(n_random)
    for what, given in (("prompts", prompts), ("neurons", neurons), ("values", values)):
        if given is not None and set(given) != set(tasks):
            raise ValueError(f"{what} must go by the names of the tasks, {list(tasks)}, got {list(given)}")
    rows = []
    for measured, task in tasks.items():
        for ablated, chosen in neurons.items():
            effect = ablation_effect(
                model,
                prompts[measured],
                task,
                chosen,
                values=None if values is None else values[measured],
                how=how,
                positions=positions,
                n_random=n_random,
                role=role,
                seed=seed,
                **options,
            )
            intact, held, random = effect.mean_over_prompts()
            rows.append(
                {
                    "ablated": ablated,
                    "measured": measured,
                    "intact": intact,
                    "ablated_accuracy": held,
                    "random_median": float(random.quantile(0.5)),
                    "random_min": float(random.min()),
                    "random_max": float(random.max()),
                    "damage": float(random.quantile(0.5)) - held,
                    "p_random": effect.p_value,
                    "n_neurons": len(chosen),
                }
            )
    return TaskDamage(pd.DataFrame(rows).assign(role=role), tuple(tasks))
