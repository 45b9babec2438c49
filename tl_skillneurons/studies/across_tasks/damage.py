"""Does taking one task's skill neurons away hurt the other tasks? (Wang et al., 2022, section 5.2)

Accuracy of task B with the skill neurons of task A ablated, beside as many random neurons of the same layers, since any
neurons held are some harm, and beside random neurons that are as active and write as much::

    damage(A, B) = median accuracy on B with random neurons ablated - accuracy on B with A's neurons ablated

On the diagonal stand a task's own neurons: what others lose means something beside that.

What it does not show: that B uses these neurons for what A uses them for; nor, where nothing is lost, that B does not
use them, since others may stand in. Each p-value stands alone: of twenty cells one is at most 0.05 by luck.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_seed
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._terminal import shown
from tl_skillneurons.interventions.asked import Examples
from tl_skillneurons.interventions.controls import CONTROLS
from tl_skillneurons.interventions.effects import measure_effects
from tl_skillneurons.interventions.kinds import How
from tl_skillneurons.neurons.choice import THESE
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.studies._common import file_name, load_tables, records, save_tables
from tl_skillneurons.tasks.task import Task

KIND = "TaskDamage"
_ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class TaskDamage:
    """What every task loses without every task's neurons.

    Attributes:
        pairs: A row per ``ablated`` and ``measured`` task: accuracy ``intact``, ``ablated_accuracy``, the random
            controls' ``random_median``, ``random_min``, ``random_max``, ``damage`` (random median minus ablated:
            positive is more harm than random neurons do), the two-sided rank p-value ``p_random``; the same of the
            matched controls (``matched_median``, ..., ``p_matched``), and of the least predictive ones where the sets
            know which score chose them (``least_median``, ...); ``n_neurons`` and ``role``; ``neurons_chosen`` "on
            other examples", "on these examples" (by insistence) or "unknown".
        names: The tasks.
        settings: What each measured task's panel records, by its name, as plain JSON values.

    Example:
        >>> found = skn.studies.cross_task_damage(model, tasks, prompts, skill)
        >>> found.matrix(), found.matrix("p_random")
    """

    pairs: pd.DataFrame
    names: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        own = self.pairs.ablated == self.pairs.measured
        return one_line(
            self,
            tasks=list(self.names),
            damage_by_own=float(self.pairs.damage[own].mean()),
            damage_by_others=float(self.pairs.damage[~own].mean()),
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def matrix(self, column: str = "damage") -> pd.DataFrame:
        """One number of :attr:`pairs` by ablated task (rows) and measured task (columns)."""
        names = list(self.names)
        return self.pairs.pivot(index="ablated", columns="measured", values=column).loc[names, names]

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`pairs`."""
        return self.pairs.copy()

    def to_table(self) -> Table:
        """The damage as a table to print with rich; a star where both p-values are at most 0.05."""
        table = Table(
            title=shown(
                f"Accuracy lost on {records(self.pairs)[0]['role']} beyond random neurons", "table.title"
            ),
            title_justify="left",
            caption=f"* p at most {_ALPHA} beside random and beside matched neurons",
            caption_justify="left",
        )
        table.add_column("neurons of")
        for name in self.names:
            table.add_column(shown(name), justify="right")
        cells = {(row["ablated"], row["measured"]): row for row in records(self.pairs)}
        for ablated in self.names:
            of_ablated = [cells[ablated, measured] for measured in self.names]
            stars = [
                "*" if max(cell[f"p_{kind}"] for kind in _kinds(cell)) <= _ALPHA else " "
                for cell in of_ablated
            ]
            losses = (
                f"{cell['damage']:+.3f}{star}{' chosen here' if cell['neurons_chosen'] == THESE else ''}"
                for cell, star in zip(of_ablated, stars, strict=True)
            )
            table.add_row(shown(ablated), *losses)
        intact = [cells[self.names[0], measured]["intact"] for measured in self.names]
        table.add_section()
        table.add_row("intact accuracy", *(f"{accuracy:.3f} " for accuracy in intact))
        return table

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows to one JSON file, whole or not at all."""
        return save_tables(path, KIND, {**self.settings, "names": list(self.names)}, {"pairs": self.pairs})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TaskDamage":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tables, settings = load_tables(path, KIND, ("pairs",))
        return cls(tables["pairs"], tuple(settings.pop("names")), settings)


def cross_task_damage(
    model: TransformerBridge,
    tasks: Mapping[str, Task],
    prompts: Mapping[str, SoftPrompt | Sequence[SoftPrompt]],
    neurons: Mapping[str, Neurons],
    *,
    how: How = "mean",
    positions: str = "prompt",
    n_random: int = 20,
    seed: int = 0,
    examples: Examples = Examples(),
    folder: str | os.PathLike[str] | None = None,
    run: RunOptions = RunOptions(),
) -> TaskDamage:
    """Accuracy of every task with every task's neurons ablated, beside random and matched neurons.

    Args:
        tasks, prompts, neurons: By the task's name, the same names in each.
        how: The ablation, a short name or a value of :mod:`~tl_skillneurons.interventions.kinds`. Where it holds
            neurons at something, it is at what they do on reference examples of the task that is measured.
        positions: Where: "prompt", "text" or "all".
        n_random: Draws of each control.
        seed: Of the controls and of what the ablation draws.
        examples: Whose answers count, and where reference values come from.
        folder: Where what is measured of each task is kept; the same call goes on where it stopped.

    Raises:
        ValueError: When the names differ, for fewer draws than a p-value of 0.05 needs, or as
            :func:`~tl_skillneurons.measure_effects`.

    Example:
        >>> skill = {name: scores[name].top(0.005) for name in tasks}
        >>> found = skn.studies.cross_task_damage(model, tasks, prompts, skill)
        >>> found.matrix("damage"), found.matrix("p_random")
    """
    require_seed(seed)
    require_draws(n_random)
    for what, given in (("prompts", prompts), ("neurons", neurons)):
        if set(given) != set(tasks):
            raise ValueError(f"{what} must go by the names of the tasks, {list(tasks)}, got {list(given)}")
    sets = {name: as_neurons(one) for name, one in neurons.items()}
    rows, settings = [], {}
    for measured, task in tasks.items():
        panel = measure_effects(
            model,
            prompts[measured],
            task,
            sets,
            interventions=how,
            positions=positions,
            n_random=n_random,
            seed=seed,
            examples=examples,
            path=None if folder is None else Path(folder) / f"{file_name(measured)}.safetensors",
            run=run,
        )
        settings[measured] = panel.settings
        frame = panel.to_dataframe(each_prompt=False)
        frame = frame[frame.metric == "accuracy"].set_index("set")
        for ablated, chosen in sets.items():
            row = frame.loc[ablated]
            rows.append(
                {
                    "ablated": ablated,
                    "measured": measured,
                    "intact": row.intact,
                    "ablated_accuracy": row.value,
                    "damage": row.random_median - row.value,
                    **{
                        name: row[name]
                        for kind in _kinds(row)
                        for name in (f"{kind}_median", f"{kind}_min", f"{kind}_max", f"p_{kind}")
                    },
                    "n_neurons": len(chosen),
                    "neurons_chosen": row.neurons_chosen,
                }
            )
    return TaskDamage(pd.DataFrame(rows).assign(role=examples.role), tuple(tasks), {"panels": settings})


def _kinds(row: Any) -> list[str]:
    """The kinds of control that stand beside a row."""
    return [kind for kind in CONTROLS if pd.notna(row.get(f"p_{kind}"))]
