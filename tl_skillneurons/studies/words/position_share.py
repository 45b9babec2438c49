"""How much of a neuron's activation goes with the place at which a token stands in its text.

Over the tokens of all texts, with the place of each counted from its text's first one; special tokens, padding and
the prompt, which is in place, are left out. Of ``N`` tokens at ``K`` places::

    eta squared      = 1 - SS_within / SS_total                         SS_within: around the mean of each place
    epsilon squared  = 1 - SS_within / SS_total * (N - 1) / (N - K)

Eta squared is above 0 by luck, the more so the fewer tokens a place has; epsilon squared (Kelley, 1935) is 0 on
average when the tokens are put into another order, and may be below 0. Gurnee et al. (2024, "Universal neurons in GPT2
language models") call neurons position neurons by the variance that knowing the position takes away.

What it does not show: that the neuron reads positions. Texts begin and end with other words than stand in between, and
only long texts have late places. The control is built in: 0 is what tokens in another order give on average.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape
from tl_skillneurons.models.verification import require
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.tasks.chat import Chat


def position_share(
    model: TransformerBridge,
    prompt: SoftPrompt | None,
    texts: Sequence[str],
    neurons: Neurons,
    *,
    max_length: int | None = None,
    chat: Chat | None = None,
    run: RunOptions = RunOptions(),
) -> Float[Tensor, " neuron"]:
    """The share of each neuron's variance over the texts' own tokens that their place explains, epsilon squared.

    Memory: places times neurons of the set; activations are gone with their batch.

    Args:
        prompt: Stands beside the texts as ever, and is not looked at; ``None`` runs the texts alone.
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.
        chat: What stands around the texts in a conversation; by default what the prompt was tuned in.

    Returns:
        1 where the place settles the activation, about 0 where it says nothing or the activation never changes.

    Raises:
        ValueError: For an empty set, neurons outside the model, or a single text.
        RuntimeError: When a layer did not show its neurons once per batch, which would look like "no variance".

    Example:
        >>> skn.studies.position_share(model, prompt, texts, skill)
    """
    neurons = as_neurons(neurons)
    neurons.require_fits(*neuron_shape(model))
    if not len(neurons):
        raise ValueError("there is nothing to read of an empty set; give at least one neuron")
    prompted = PromptedModel(model, prompt, max_length=max_length, run=run, chat=chat)
    ids = prompted.encode(texts)
    if len(ids) < 2:
        raise ValueError(f"the share of variance that places explain takes at least 2 texts, got {len(ids)}")
    require(model, "neurons")
    names = neuron_hooks(model)
    columns = {layer: (neurons.layer == layer).nonzero()[:, 0] for layer in sorted(neurons.by_layer())}
    count = torch.zeros(max(map(len, ids)), dtype=torch.int64)
    total = torch.zeros(len(count), len(neurons), dtype=torch.float64)
    square = torch.zeros(len(neurons), dtype=torch.float64)
    with prompted.attached() as virtual, torch.no_grad():

        def run_batch(batch: list[int]) -> None:
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            own = tokens.is_text & ~tokens.is_special
            place = (own.cumsum(1) - 1)[own].cpu()
            found: list[tuple[int, Tensor, Tensor]] = []

            def at(layer: int) -> Callable[..., None]:
                def hook_function(act: Tensor, hook: HookPoint) -> None:
                    index = neurons.index[columns[layer]].to(act.device)
                    values = act[..., index][own.to(act.device)].cpu().double()
                    sums = torch.zeros(len(count), len(index), dtype=torch.float64)
                    found.append((layer, sums.index_add_(0, place, values), values.square().sum(0)))
                    if layer == max(columns):
                        raise StopAtLayerException(act)

                return hook_function

            prompted.forward(tokens, virtual, [(names[layer], at(layer)) for layer in columns])
            if (seen := [layer for layer, _, _ in found]) != list(columns):
                raise RuntimeError(f"expected layers {list(columns)} to show their neurons once, saw {seen}")
            count.add_(torch.bincount(place, minlength=len(count)))
            for layer, sums, squares in found:
                total[:, columns[layer]] += sums
                square[columns[layer]] += squares

        run_batches(prompted.batches(ids), run_batch)
    return epsilon_squared(count, total, square)


def epsilon_squared(
    count: Int[Tensor, " place"], total: Float[Tensor, "place column"], square: Float[Tensor, " column"]
) -> Float[Tensor, " column"]:
    """Epsilon squared from the values' number and sum at each place and the sum of all their squares.

    0 for a column that never changes, and NaN where each place has one value.
    """
    there = count > 0
    n, k = int(count.sum()), int(there.sum())
    between = (total[there].square() / count[there, None]).sum(0)
    around_mean = square - total.sum(0).square() / n
    constant = around_mean <= 1e-12 * square  # what rounding leaves
    ratio = (square - between).clamp(min=0) / torch.where(constant, 1, around_mean)
    return torch.where(constant, 0, 1 - ratio * (n - 1) / (n - k if n > k else torch.nan))
