"""A model's norms as the linear maps they are at one run's scales.

At a fixed scale a LayerNorm or RMSNorm is affine, ``y = g (x - mean x) w + b`` (RMSNorm: without the mean). Here ``w``
and ``b`` are measured on each norm itself by three inputs, and ``g`` of each position is what fits its output; a norm
that doesn't fit is refused. So norms with an offset weight, without weights, without hook points, or that run twice in
a forward are all treated alike. Values stay those of the run to the last bit; only gradients see the linear map.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.records import model_label


@dataclass(frozen=True, eq=False)
class Slope:
    """How a norm's output follows its input at fixed scales: ``gain * weight * (change - its mean, if centred)``."""

    weight: Float[Tensor, " d"]
    gain: Float[Tensor, "*position 1"]
    centred: bool

    def __call__(self, change: Float[Tensor, "*position d"]) -> Float[Tensor, "*position d"]:
        if self.centred:
            change = change - change.mean(-1, keepdim=True)
        return change * (self.gain * self.weight).to(change)


def slope_of(
    norm: Callable[[Tensor], Tensor], x: Float[Tensor, "*position d"], y: Float[Tensor, "*position d"]
) -> Slope | None:
    """The slope of a norm where it took ``x`` to ``y``; ``None`` where it is no LayerNorm or RMSNorm."""
    d = x.shape[-1]
    sign = torch.where(torch.arange(d, device=x.device) % 2 == 0, 1.0, -1.0).to(x.dtype)[None, None]
    up, down, raised = norm(torch.cat([sign, -sign, sign + 3], 1))[0].double()
    bias = (up + down) / 2
    centred = bool((raised - up).abs().max() <= 0.05 * (up - bias).abs().max().clamp(min=1e-30))
    probe = sign[0, 0].double()
    weight = (up - bias) / (probe - probe.mean() if centred else probe)
    inner = x.double()
    if centred:
        inner = inner - inner.mean(-1, keepdim=True)
    inner = inner * weight
    out = y.double() - bias
    gain = (out * inner).sum(-1, keepdim=True) / inner.square().sum(-1, keepdim=True).clamp(min=1e-60)
    exact = 1e-3 if x.dtype in (torch.float32, torch.float64) else 3e-2
    fits = (out - gain * inner).abs().max() <= exact * y.double().abs().max().clamp(min=1e-30)
    return Slope(weight, gain, centred) if fits else None


@dataclass(eq=False)
class FrozenNorms:
    """What the norms did in a run, call by call.

    Attributes:
        calls: Input, output and slope of each.
    """

    calls: list[tuple[Tensor, Tensor, Slope]] = field(default_factory=list)
    _next: int | None = None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """In here the norms are the same affine maps, whatever comes in; one forward run at a time."""
        self._next = 0
        try:
            yield
        finally:
            self._next = None

    def put(self, norm: Callable[[Tensor], Tensor], name: str, x: Tensor, y: Tensor) -> Tensor:
        """What stands in a norm's output's place."""
        if self._next is not None:
            was, gave, slope = self.calls[self._next]
            self._next += 1
            return gave + slope(x - was)
        with torch.no_grad():
            found = slope_of(norm, x.detach(), y.detach())
        if found is None:
            raise ValueError(
                f"{name} is neither a LayerNorm nor an RMSNorm of {x.shape[-1]} numbers, so what goes through it "
                "can't be told apart into parts; study total effects by ablation"
            )
        self.calls.append((x.detach(), y.detach(), found))
        return y.detach() + found(x - x.detach())


@contextmanager
def frozen_norms(model: TransformerBridge) -> Iterator[FrozenNorms]:
    """In here every norm of the residual stream keeps the scale that it has, as far as gradients go.

    Raises:
        ValueError: While the model runs, for a norm that is not affine at a fixed scale.
    """
    frozen = FrozenNorms()
    with _at_norms(model, frozen.put):
        yield frozen


@contextmanager
def watched_norms(model: TransformerBridge) -> Iterator[list[str]]:
    """In here every norm of the residual stream runs as ever and is looked at; the list is filled with what is to be
    said of those that are not affine at a fixed scale."""
    misfits: list[str] = []

    def look(norm: Callable[[Tensor], Tensor], name: str, x: Tensor, y: Tensor) -> None:
        try:
            FrozenNorms().put(norm, name, x[:1], y[:1])  # one row of a batch tells
        except Exception as error:  # whatever a norm of somebody else's may raise
            misfits.append(str(error))

    with _at_norms(model, look):
        yield misfits


@contextmanager
def _at_norms(model: TransformerBridge, put: Callable[..., Tensor | None]) -> Iterator[None]:
    """``put`` is given each norm of the residual stream, its name, input and output, and may exchange the output."""
    width, inside = model.cfg.d_model, False

    def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        nonlocal inside
        x = args[0] if args else kwargs.get("hidden_states")
        if inside or not isinstance(x, Tensor) or not isinstance(out, Tensor) or x.shape[-1] != width:
            return None
        inside = True  # the norm itself runs again, to be measured
        try:
            norm: Any = getattr(part, "original_component", part)
            return put(norm, f"{names[part]} of {model_label(model)}", x, out)
        finally:
            inside = False

    names = _norms(model)
    handles = [part.register_forward_hook(hook, with_kwargs=True) for part in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _norms(model: TransformerBridge) -> dict[nn.Module, str]:
    """The outermost module of each norm that the Hugging Face model runs, and its name there."""
    found: dict[nn.Module, str] = {}
    wrapped: set[int] = set()
    for name, part in model.original_model.named_modules():  # a wrapper comes before what it wraps
        original = getattr(part, "original_component", part)
        if "Norm" in type(original).__name__ and id(part) not in wrapped:
            wrapped.add(id(original))
            found[part] = name.replace("._original_component", "")
    return found
