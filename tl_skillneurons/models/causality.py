"""Which way a model's attention looks: measured, since what a configuration says need not be what runs.

One token in the middle of a made-up text is exchanged. Where the logits before it change, positions see later ones;
where those after it change, they see earlier ones.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models._quiet_run import made_up_text, plain_run

_MEASURED: WeakKeyDictionary[TransformerBridge, "Sight"] = WeakKeyDictionary()
_ROUNDING = 1e-6  # two runs of one shape give the same bits at positions that see the same


@dataclass(frozen=True)
class Sight:
    """What a position's logits depend on beside its own token."""

    earlier: bool
    later: bool

    def __str__(self) -> str:
        seen = [name for name in ("earlier", "later") if getattr(self, name)]
        return " and ".join(seen) + " ones" if seen else "themselves alone"


def sight(
    before: Float[Tensor, "pos d"], after: Float[Tensor, "pos d"], changed: int, rounding: float = _ROUNDING
) -> Sight:
    """What positions see, from the logits of a text ``before`` and ``after`` its token ``changed`` was exchanged."""
    before, after = before.double(), after.double()
    moved = (before - after).abs().amax(1) > rounding * float(before.abs().max())
    return Sight(earlier=bool(moved[changed + 1 :].any()), later=bool(moved[:changed].any()))


def measured_sight(model: TransformerBridge) -> Sight:
    """What the positions of ``model`` see; measured at the first call, see :func:`forget`."""
    if model not in _MEASURED:
        ids = made_up_text(model, 8, seed=1)
        other = ids.clone()
        other[4] = made_up_text(model, 1, seed=2, without=ids)[0]
        before, after = (plain_run(model, rows[None])[0] for rows in (ids, other))
        _MEASURED[model] = sight(before, after, 4)
    return _MEASURED[model]


def sight_at_a_glance(
    before: Float[Tensor, "pos d"], after: Float[Tensor, "pos d"], changed: int, clear: float
) -> Sight | None:
    """The same from two rows of one batch, which rounding may tell apart; ``None`` where a difference is neither none
    nor above ``clear``, as a share of the largest value."""
    before, after = before.double(), after.double()
    moved = (before - after).abs().amax(1) / before.abs().max()
    seen = [float(part.max()) for part in (moved[changed + 1 :], moved[:changed])]
    if not all(one <= _ROUNDING or one > clear for one in seen):
        return None
    return Sight(earlier=seen[0] > clear, later=seen[1] > clear)


def remember(model: TransformerBridge, seen: Sight) -> None:
    """What was seen of ``model`` elsewhere, until :func:`forget`."""
    _MEASURED[model] = seen


def forget(model: TransformerBridge) -> None:
    """Measure anew at the next call: the model is no longer what it was."""
    _MEASURED.pop(model, None)
