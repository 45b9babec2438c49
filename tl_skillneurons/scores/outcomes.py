"""Whether each neuron was above its threshold on each example: one bit per example, position and neuron.

What a rule answers under other labels, on resampled examples or together with other neurons follows from these
bits alone: counts are matrix products with them, and no model runs again. Memory: ``n_prompts * n_examples *
n_layers * n_positions * d_mlp / 8`` bytes (18 MB for a prompt of 8 virtual tokens, 400 examples and the 46,080
neurons of SmolLM2-135M); what is unpacked at a time is bounded by :data:`MOST_NUMBERS`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tl_skillneurons._results import html_of_fields
from tl_skillneurons._widths import Width, in_layer, widest
from tl_skillneurons.stats.units import Units

MOST_NUMBERS = 2**24
"""Numbers that a chunk of counts may hold: 64 MB in float32."""


@dataclass(frozen=True, eq=False)
class RuleOutcomes:
    """Where each neuron was above its baseline, packed eight neurons to a byte.

    Attributes:
        above: The bits; the last axis is ``ceil(d_mlp / 8)`` bytes of the widest layer, the lowest neuron in the
            highest bit.
        labels: Class of each example, in the task's order.
        d_mlp: Neurons per layer, or each layer's own number.
        role: Where the examples come from.
        units: Which examples belong together; without them each stands alone.

    Example:
        >>> scores = skn.score_neurons(model, prompts, task, keep_outcomes=True)
        >>> scores.outcomes.units
        Units(400 of 400 examples: text)
    """

    _repr_html_ = html_of_fields

    above: UInt8[Tensor, "prompt example layer position byte"]
    labels: Int[Tensor, " example"]
    d_mlp: Width
    role: str = "select"
    units: Units = None  # type: ignore[assignment]  # from the number of examples, below

    def __post_init__(self) -> None:
        if self.units is None:
            object.__setattr__(self, "units", Units.single(len(self.labels)))
        if self.units.n_examples != len(self.labels):
            raise ValueError(
                f"units must be of the outcomes' {len(self.labels)} examples, got those of {self.units.n_examples}"
            )

    def __repr__(self) -> str:
        n_prompts, n_examples, n_layers, n_positions, _ = self.above.shape
        return (
            f"RuleOutcomes({n_prompts} prompts, {n_layers} layers x {widest(self.d_mlp)} neurons, "
            f"{n_positions} positions, {n_examples} examples of {self.role}, {described(self.units)})"
        )

    def require_shape(self, n_prompts: int, n_examples: int, n_layers: int, n_positions: int) -> None:
        """Refuse outcomes of other scores.

        Raises:
            ValueError: When they are not of so many prompts, examples, layers and positions.
        """
        shape = (n_prompts, n_examples, n_layers, n_positions, (widest(self.d_mlp) + 7) // 8)
        if self.above.shape != shape or len(self.labels) != n_examples:
            raise ValueError(
                f"outcomes must have the shape {shape} and {n_examples} labels, got {tuple(self.above.shape)} and "
                f"{len(self.labels)}"
            )

    def replaced(
        self, bits: Bool[Tensor, " example"], *, layer: int, position: int, neuron: int
    ) -> "RuleOutcomes":
        """These outcomes with one neuron's at one position replaced, for every prompt."""
        above = self.above.clone()
        byte, shift = neuron // 8, 7 - neuron % 8
        others = above[:, :, layer, position, byte] & (0xFF ^ (1 << shift))
        above[:, :, layer, position, byte] = others | (bits.to(torch.uint8) << shift)
        return replace(self, above=above)

    def chunks(self, n_rows: int) -> Iterator[tuple[int, slice]]:
        """Layer and neurons of one chunk after another, for products with ``n_rows`` rows of weights."""
        _, n_examples, n_layers, n_positions, _ = self.above.shape
        wide = max(1, MOST_NUMBERS // (8 * n_positions * max(n_rows, n_examples)))
        for layer in range(n_layers):
            own = in_layer(self.d_mlp, layer)
            for first in range(0, (own + 7) // 8, wide):
                yield layer, slice(first * 8, min((first + wide) * 8, own))

    def unpack(self, prompt: int, layer: int, neurons: slice) -> Float[Tensor, "example position neuron"]:
        """1 where above, else 0; ``neurons`` starts at a multiple of eight."""
        packed = self.above[prompt, :, layer, :, neurons.start // 8 : (neurons.stop + 7) // 8]
        bits = np.unpackbits(packed.numpy(), axis=-1, count=neurons.stop - neurons.start)
        return torch.from_numpy(bits).float()

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of them, by name."""
        kept = {"outcomes_above": self.above, "outcomes_labels": self.labels}
        if not self.units.are_single:
            kept["outcomes_units"] = self.units.member
        return kept if self.units.pair is None else {**kept, "outcomes_pairs": self.units.pair}

    @classmethod
    def of_tensors(
        cls, tensors: dict[str, Tensor], d_mlp: Width, *, unit: str = "text"
    ) -> "RuleOutcomes | None":
        """The outcomes of role ``select`` that :meth:`tensors` gave, where there are any; ``unit`` says what its
        units are.
        """
        if "outcomes_above" not in tensors:
            return None
        above, labels = tensors["outcomes_above"], tensors["outcomes_labels"]
        member, pair = tensors.get("outcomes_units"), tensors.get("outcomes_pairs")
        member = torch.arange(len(labels)) if member is None else member
        return cls(above, labels, d_mlp, units=Units(member, unit, pair))

    @classmethod
    def of_prompts(cls, outcomes: Sequence["RuleOutcomes"]) -> "RuleOutcomes":
        """Those of several prompts on the same examples, in the order given."""
        first = outcomes[0]
        above = torch.cat([one.above for one in outcomes])
        if not all(torch.equal(one.units.member, first.units.member) for one in outcomes):
            raise ValueError("outcomes of one set must be of the same units")
        return cls(above, first.labels, first.d_mlp, first.role, first.units)

    def of_prompt(self, prompt: int) -> "RuleOutcomes":
        """Those of one prompt."""
        return replace(self, above=self.above[prompt : prompt + 1])


def described(units: Units) -> str:
    """How many units there are, and what one is: what every result says of them."""
    return f"{len(units)} units ({units.what})"


def pack(above: Bool[Tensor, "*axes neuron"]) -> UInt8[Tensor, "*axes byte"]:
    """Eight neurons to a byte."""
    return torch.from_numpy(np.packbits(above.cpu().numpy(), axis=-1))


def count_right(
    outcomes: RuleOutcomes, weights: Int[Tensor, "row example"], labels: Int[Tensor, "row example"]
) -> Iterator[tuple[int, slice, list[Float[Tensor, "row position neuron"]]]]:
    """For chunk after chunk of neurons, of each prompt: ``2 * right - total`` of the rule "above means label 1".

    Args:
        weights: How often each example counts in each row.
        labels: 0 or 1, the labels of each row.

    Yields:
        Layer, neurons, and for each prompt whole numbers, exact in float32 (totals below 2^23).
    """
    sign = (2 * labels - 1) * weights
    twice = 2.0 * sign.float()
    constant = -sign.sum(1, keepdim=True).float()  # what a rule that never fires scores
    for layer, neurons in outcomes.chunks(len(sign)):
        counted = []
        for prompt in range(len(outcomes.above)):
            bits = outcomes.unpack(prompt, layer, neurons)
            flat = rearrange(bits, "example pos neuron -> example (pos neuron)")
            right = torch.addmm(constant, twice, flat)
            counted.append(rearrange(right, "row (pos neuron) -> row pos neuron", pos=bits.shape[1]))
        yield layer, neurons, counted
