"""How neurons are steered, and how the model writes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons.interventions.kinds import How, Intervention, Scale, Shift, as_intervention
from tl_skillneurons.studies.steering.directions import DIRECTIONS

_PLACES = ("generated", "text", "all")
_SHORT = ("scale", "shift")


@dataclass(frozen=True)
class SteeringOptions:
    """How neurons are steered, and how the model writes.

    Attributes:
        how: What a dose is: "scale" (a factor, 1 changes nothing), "shift" (standard deviations towards the class, 0
            changes nothing), or a function from a dose to an intervention.
        positions: Where: "generated" (what the model writes, from the second token on, since the first is read off the
            text), "text", or "all".
        max_new_tokens: Most tokens of an answer.
        temperature: Draws tokens, at this temperature; ``None`` takes the likeliest one.
        seed: Of the controls and of what is drawn, the same at every dose.
        reference: Whose examples say what neurons do at text, for shifts and to match controls.
        n_reference: Up to how many of them, evenly from the classes; ``None`` for all.
        rivals: Directions over all neurons of the same layers, steered along beside the neurons, as far at each dose:
            "probe" (the weights of a logistic regression on the reference examples), "mean_difference" (between the
            classes' means there), or several of them.
        on_chosen_texts: Write after texts that chose the neurons, or that a direction was fitted on, all the same;
            every row says so.

    Example:
        >>> shifted = skn.studies.SteeringOptions(how="shift", positions="all")
        >>> skn.studies.steer(model, prompts, task, skill, toward=1, doses=[-2.0, 2.0, 4.0], options=shifted)
        >>> beside = skn.studies.SteeringOptions(how="shift", rivals="probe")
        >>> skn.studies.steer(model, prompts, task, skill, toward=1, doses=[2.0, 4.0], options=beside).comparison
    """

    how: str | Callable[[float], How] = "scale"
    positions: str = "generated"
    max_new_tokens: int = 24
    temperature: float | int | None = None
    seed: int = 0
    reference: str = "baseline"
    n_reference: int | None = 256
    rivals: str | Sequence[str] = ()
    on_chosen_texts: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.how, str):
            require_option(self.how, "how", _SHORT)
        elif not callable(self.how):
            raise TypeError(
                f"how must be 'scale', 'shift' or a function from a dose to an intervention, got {self.how!r}"
            )
        require_option(self.positions, "positions", _PLACES)
        require_int(self.max_new_tokens, "max_new_tokens")
        require_seed(self.seed)
        if self.n_reference is not None:
            require_int(self.n_reference, "n_reference")
        for name in self.rival_names:
            require_option(name, "a rival", DIRECTIONS)

    @property
    def rival_names(self) -> tuple[str, ...]:
        """The rivals, each once."""
        return tuple(dict.fromkeys([self.rivals] if isinstance(self.rivals, str) else self.rivals))

    @property
    def neutral(self) -> float:
        """The dose that changes nothing: doses above it go toward the class, those below away from it."""
        return 1.0 if self.how == "scale" else 0.0

    def interventions(self, doses: Sequence[float | int], toward: int) -> list[Intervention]:
        """What is done at each dose.

        Raises:
            ValueError: For no dose, one that is not finite or given twice, or what goes by an example's class.
        """
        if not len(doses):
            raise ValueError("doses must hold at least one dose, got none")
        for dose in doses:
            if isinstance(dose, bool) or not isinstance(dose, int | float) or not math.isfinite(dose):
                raise ValueError(f"doses must be finite numbers, got {dose!r}")
        found: list[Intervention] = []
        for dose in map(float, doses):
            if self.how == "scale":
                found.append(Scale(dose))
            elif self.how == "shift":
                found.append(Shift(toward, dose))
            else:
                assert callable(self.how)  # for type checkers
                found.append(as_intervention(self.how(dose), "what how(dose) gives"))
        if by_class := [one.name for one in found if one.needs_labels]:
            raise ValueError(
                f"intervention {by_class[0]!r} goes by the class of an example, and texts to write after have none; "
                "give Scale or Shift"
            )
        if self.rival_names and any(one.edits_others for one in found):
            raise ValueError(
                "a rival goes as far as the chosen neurons do, in their layers, and Keep changes all others; leave "
                "rivals out, or give Scale or Shift"
            )
        names = [one.name for one in found]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"two doses are {twice[0]!r}; give each dose once, and interventions their own names"
            )
        return found
