"""What TransformerLens' own tools ask for, from neuron sets and soft prompts: one line each.

The tools run on the real model inside ``with prompt.attached(model)``, unmodified, and take token ids: rows of
one length (:func:`token_rows`), because none of them passes a mask. Positions are those of the whole sequence,
virtual tokens included; those of a suffix prompt are the last ones, so ``-1`` is the last virtual token::

    generic_activation_patch(model, rows, clean_cache, metric, patch_neuron, "post",
                             index_df=patching_index(neurons, [-1]))
    neuron_basis(d_mlp, neuron_index(neurons, layer))
    fit_sparse_probe(skn.prompts.set_activations(model, prompt, texts, neurons), labels, k=1)
    with with_gradients(model):
        attribution_patch(model, clean_rows, corrupted_rows, metric)

``attribution_patch`` runs row by row, so its metric must not index labels by row: give it rows of one label.

Whatever such a tool shows for a neuron set, the control is the same for ``neurons.random_like(seed)``.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int
from tl_skillneurons.models.hooks import remove_hook
from tl_skillneurons.models.sites import require_supported
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons
from tl_skillneurons.prompts.prompted_model import PromptedModel

__docformat__ = "google"


def neuron_index(neurons: Neurons, layer: int) -> Int[Tensor, " neuron"]:
    """The indices of the set's neurons in one layer, as ``interchange.neuron_basis(d_mlp, ...)`` takes them.

    Raises:
        ValueError: When the set has no neuron in that layer.

    Example:
        >>> basis = neuron_basis(d_mlp, neuron_index(skill, layer=3))  # [d_mlp, n_neurons]
    """
    neurons = as_neurons(neurons)
    require_int(layer, "layer", minimum=0)
    of_layer = neurons.by_layer()
    if layer not in of_layer:
        raise ValueError(f"the set has no neuron in layer {layer}; its layers are {sorted(of_layer)}")
    return of_layer[layer]


def patching_index(neurons: Neurons, positions: Sequence[int]) -> pd.DataFrame:
    """One row per neuron and position, columns layer, pos and neuron: ``generic_activation_patch``'s ``index_df``.

    Each row costs that function one forward pass of the whole batch.

    Args:
        positions: Columns of the token rows, virtual tokens included; negative ones count from the end.

    Raises:
        ValueError: When there is no neuron or no position.

    Example:
        >>> patching_index(skill, positions=[-1])  # at the last virtual token of a suffix prompt
    """
    neurons = as_neurons(neurons)
    positions = [int(position) for position in positions]
    if not len(neurons) or not positions:
        raise ValueError(
            f"patching needs at least one neuron and one position, got {len(neurons)} neurons and "
            f"{len(positions)} positions"
        )
    rows = [(layer, position, index) for layer, index in neurons for position in positions]
    return pd.DataFrame(rows, columns=["layer", "pos", "neuron"])


def patch_neuron(
    corrupted: Float[Tensor, "batch pos neuron"],
    index: Sequence[int],
    clean: Float[Tensor, "batch pos neuron"],
) -> Float[Tensor, "batch pos neuron"]:
    """The corrupted run's activations with one neuron at one position from the clean run: a ``patch_setter``.

    Args:
        index: Layer, position and neuron, a row of :func:`patching_index`.

    Example:
        >>> index = patching_index(skill, [-1])
        >>> generic_activation_patch(model, rows, clean_cache, metric, patch_neuron, "post", index_df=index)
    """
    _, position, neuron = (int(number) for number in index)
    patched = corrupted.clone()  # other hooks may keep the original
    patched[:, position, neuron] = clean[:, position, neuron]
    return patched


def token_rows(prompted: PromptedModel, texts: Sequence[str]) -> Int[Tensor, "batch pos"]:
    """The texts' token ids with the virtual tokens in place, all of one length, for tools that pass no mask.

    Raises:
        ValueError: When the texts differ in their number of tokens, so that some would be padded.

    Example:
        >>> rows = token_rows(prompted, ["a good film", "a bad film"])
        >>> with prompt.attached(model):
        ...     logits, cache = model.run_with_cache(rows)
    """
    tokens = prompted.tokens(texts)
    if tokens.is_padding.any():
        lengths = tokens.attention_mask.sum(1)
        row = int(lengths.argmin())
        raise ValueError(
            f"TransformerLens' tools pass no attention mask, so all texts must have equally many tokens; text {row} "
            f"has {int(lengths[row])} and the longest {int(lengths.max())}, prompt included; group texts by length"
        )
    return tokens.ids


@contextmanager
def with_gradients(model: TransformerBridge) -> Iterator[None]:
    """A context in which a frozen model's runs have a graph, for tools that take gradients of activations.

    The graph starts at ``embed.hook_out``, behind the virtual tokens: parameters, the soft prompt's too, get
    no gradient and stay frozen. Runs under ``torch.no_grad()`` stay without a graph.

    Raises:
        ValueError: When gradients are switched off all around (``torch.no_grad``, ``torch.inference_mode``).
        TypeError: When it is not a ``TransformerBridge``.

    Example:
        >>> with prompt.attached(model), with_gradients(model):
        ...     attribution_patch(model, clean_rows, corrupted_rows, metric)
    """
    require_supported(model)
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        how = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        raise ValueError(f"there can be no graph inside {how}; call gradient tools outside of it")

    def start_graph(tensor: Tensor, hook: HookPoint) -> Tensor | None:
        return tensor.detach().requires_grad_(True) if torch.is_grad_enabled() else None

    point = model.hook_dict["embed.hook_out"]
    handle = point.add_hook(start_graph, is_permanent=True)  # a tool's reset_hooks() leaves it
    try:
        with warnings.catch_warnings():
            # the graph starts inside a hook point, which torch points out to backward hooks on it
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        remove_hook(point, handle)
