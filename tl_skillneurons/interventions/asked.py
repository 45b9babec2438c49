"""What a measurement of effects is asked: whose examples answer, and what else is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass

from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.tasks.task import Task


@dataclass(frozen=True)
class Examples:
    """Whose answers count, and whose activations give reference values.

    Attributes:
        role: Whose examples answer; ``"report"`` has selected nothing.
        reference: Whose examples give means, spreads and values to resample. ``None`` for none: then only
            interventions that need none, and controls are matched on output weights alone.
        n_reference: Up to how many of them, evenly from the classes and from each class's units; ``None`` for all.
        max_length: Longest sequence in tokens; ``None`` for what each prompt was tuned with.
        on_chosen_examples: Measure neurons or heads on the examples that chose them all the same; every row says so.

    Example:
        >>> skn.measure_effects(model, prompt, task, skill, examples=Examples(n_reference=None, max_length=64))
    """

    role: str = "report"
    reference: str | None = "baseline"
    n_reference: int | None = 256
    max_length: int | None = None
    on_chosen_examples: bool = False


@dataclass(frozen=True)
class Beyond:
    """What else is looked at, beside the total effect on the task.

    Attributes:
        direct: Whether to give direct effects too (:mod:`~tl_skillneurons.interventions.direct_effects`).
        other_tasks: Tasks with a prompt of their own, or several, that the same neurons are tried on, held at their
            own reference values; they answer with the same role.
        plain_texts: Texts whose cross-entropy is measured without a prompt, under interventions at "text" and
            "all" positions; the neurons of such a run are held at the task's reference at the text, with its first
            prompt.
        most_difference: Refuse matched controls that differ from the set by more than so many standard deviations of
            their layers in what they are matched on; ``None`` says so in ``panel.notes``.
        as_band: Take fewer draws of the controls than a p-value of 0.05 needs, for a band beside a curve;
            ``smallest_p`` in the table says what they allow.

    Example:
        >>> beyond = Beyond(direct=True, other_tasks=[(other, its_prompt)])
        >>> skn.measure_effects(model, prompt, task, skill, beyond=beyond).specificity()
    """

    direct: bool = False
    other_tasks: Sequence[tuple[Task, SoftPrompt | Sequence[SoftPrompt]]] = ()
    plain_texts: Sequence[str] = ()
    most_difference: float | None = None
    as_band: bool = False
