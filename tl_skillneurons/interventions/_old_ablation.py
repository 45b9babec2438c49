"""Hold chosen MLP neurons at a value that carries no information while the model runs.

Zero ablation holds them at 0, which may be far from any value they take; mean ablation at their mean over
reference data, or over the reference data of one class; resample ablation at the value they have on another
example; Gaussian noise is added to them, one vector per example and layer, the same at every position (Wang et
al., 2022, section 4); scaling multiplies them, and several factors make a dose-response curve. The control is
the same done to ``neurons.random_like(seed)``: without it a drop says only that the model was disturbed.

Hooks are pairs of hook-point name and function, for ``model.run_with_hooks(fwd_hooks=...)`` and
``model.hooks(fwd_hooks=...)``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.positions import columns, current_tokens

Hook = tuple[str, Callable[..., Tensor]]
"""A hook point's name and the function to run there."""

METHODS = ("zero", "mean", "class_mean", "resample", "noise", "scale")
_NAMED = ("all", "prompt", "text")


def ablate(
    neurons: NeuronSet,
    *,
    how: str = "zero",
    values: Float[Tensor, "layer neuron"] | Float[Tensor, "reference layer neuron"] | None = None,
    positions: str | slice | Sequence[int] | Int[Tensor, " pos"] = "all",
    sigma: float = 0.1,
    factor: float | int = 0.0,
    classes: Sequence[int] | Int[Tensor, " example"] | None = None,
    seed: int = 0,
) -> list[Hook]:
    """Hooks that ablate ``neurons``, one per layer that has any.

    Args:
        how: ``"zero"``, ``"mean"``, ``"class_mean"``, ``"resample"``, ``"noise"`` or ``"scale"``.
        values: For ``"mean"`` what each neuron is held at, ``[layer, neuron]`` (``scores.mean_baseline()``); for
            ``"class_mean"`` the same for each class, ``[class, layer, neuron]``.
            For ``"resample"`` reference activations ``[example, layer, neuron]``
            (:func:`~tl_skillneurons.prompts.neuron_activations`), of which each example of the run takes all its
            neurons from one, drawn by ``seed``. For ``"noise"`` the standard deviations that ``sigma`` counts
            in (``scores.mean_std()``), or ``None`` for a ``sigma`` in the activation's own units.
        positions: ``"all"``; ``"prompt"`` or ``"text"``, in :class:`~tl_skillneurons.PromptedModel` and
            inside ``attached``; or a slice or indices into the sequence, virtual tokens included, from the
            example's first token where padding is known.
        sigma: Standard deviation of the noise; the paper's default is 0.1.
        factor: What ``"scale"`` multiplies by; 0 is zero ablation, 1 changes nothing.
        classes: For ``"class_mean"``: whose mean each example gets, by its place in the caller's order. Its own
            label takes away all but the class, another class says the wrong one.
        seed: For ``"resample"`` and ``"noise"``: with it, what an example gets depends on its place in the
            caller's order alone, not on the batches it is run in.

    Returns:
        Pairs of hook-point name and function. An ablation of no neuron is an empty list.

    Raises:
        ValueError: For an unknown option, values that are missing or of the wrong shape; and, when the model
            runs, for neurons outside the model or positions that nobody knows.
    """
    require_option(how, "how", METHODS)
    require_int(seed, "seed", minimum=0)
    if isinstance(positions, str):
        require_option(positions, "positions", _NAMED)
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    if not 0 <= factor < float("inf"):
        raise ValueError(f"factor must be at least 0 and finite, got {factor}")
    _require_values(neurons, how, values)
    of_class = _require_classes(how, classes, values)
    hooks: list[Hook] = []
    for layer, index in neurons.by_layer().items():
        chosen = None if values is None else values[..., layer, index]
        width = neurons.d_mlp if values is None else values.shape[-1]
        edit = _EDITS[how]
        settings = {"sigma": sigma, "factor": factor, "classes": of_class, "seed": seed}
        act_on = partial(edit, chosen=chosen, layer=layer, n=len(index), **settings)
        hooks.append((f"blocks.{layer}.mlp.hook_post", _hook_function(index, width, positions, act_on)))
    return hooks


def _hook_function(
    index: Int[Tensor, " neuron"], width: int | None, positions: Any, edit: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    def hook_function(act: Float[Tensor, "batch pos neuron"], hook: Any) -> Float[Tensor, "batch pos neuron"]:
        if index.max() >= act.shape[-1] or (width is not None and width != act.shape[-1]):
            raise ValueError(
                f"{hook.name} has {act.shape[-1]} neurons, the ablation was made for "
                f"{width or 'at least ' + str(int(index.max()) + 1)}; use neurons and values of this model"
            )
        here = index.to(act.device)
        old = act[..., here]
        new = edit(old, hook=hook)
        if not (isinstance(positions, str) and positions == "all"):
            new = torch.where(columns(positions, act, hook)[..., None], new, old)
        return act.index_copy(-1, here, new)  # a new tensor: other hooks may keep the original

    # PromptedModel asks what a run of some positions alone would do to it
    hook_function.acts_at = positions if isinstance(positions, str) else "chosen"
    return hook_function


def _zero(old: Tensor, **_: Any) -> Tensor:
    return torch.zeros_like(old)


def _mean(old: Tensor, *, chosen: Tensor, **_: Any) -> Tensor:
    return chosen.to(old).expand_as(old)


def _class_mean(old: Tensor, *, chosen: Tensor, classes: Tensor, hook: Any, **_: Any) -> Tensor:
    examples = _examples(old, hook)
    if max(examples) >= len(classes):
        raise ValueError(
            f"classes names the class of {len(classes)} examples, and example {max(examples)} runs; "
            "give one for each text, in their order"
        )
    return chosen[classes[examples]].to(old)[:, None].expand_as(old)


def _scale(old: Tensor, *, factor: float, **_: Any) -> Tensor:
    return old * factor


def _resample(old: Tensor, *, chosen: Tensor, seed: int, hook: Any, **_: Any) -> Tensor:
    drawn = [
        int(torch.randint(len(chosen), (), generator=_generator(seed, example)))
        for example in _examples(old, hook)
    ]  # the same example in every layer
    return chosen[drawn].to(old)[:, None].expand_as(old)


def _noise(
    old: Tensor, *, chosen: Tensor | None, layer: int, n: int, sigma: float, seed: int, hook: Any, **_: Any
) -> Tensor:
    noise = torch.stack(
        [torch.randn(n, generator=_generator(seed, example, layer)) for example in _examples(old, hook)]
    )
    scale = sigma if chosen is None else sigma * chosen.to(noise)
    return old + (scale * noise).to(old)[:, None]


_EDITS = {
    "zero": _zero,
    "mean": _mean,
    "class_mean": _class_mean,
    "resample": _resample,
    "noise": _noise,
    "scale": _scale,
}


def _examples(act: Tensor, hook: Any) -> list[int]:
    """Each row's number in the caller's order; its row where nobody said otherwise."""
    tokens = current_tokens(hook)
    return list(range(len(act))) if tokens is None else tokens.example.tolist()


def _generator(*numbers: int) -> torch.Generator:
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)


def _require_values(neurons: NeuronSet, how: str, values: Tensor | None) -> None:
    needed = {"mean": 2, "class_mean": 3, "resample": 3}.get(how)
    if values is None:
        if needed is not None:
            source = {
                "mean": "scores.mean_baseline()",
                "class_mean": "each class's mean, [class, layer, neuron]",
                "resample": "neuron_activations(model, prompt, texts)",
            }[how]
            raise ValueError(
                f"how={how!r} needs values to hold the neurons at, got none; give values={source}"
            )
        return
    if how in ("zero", "scale"):
        raise ValueError(f"how={how!r} takes no values; use how='mean' to hold neurons at values")
    n_dims = needed or 2
    first = "class" if how == "class_mean" else "example"
    axes = f"[{first}, layer, neuron]" if n_dims == 3 else "[layer, neuron]"
    if values.ndim != n_dims:
        raise ValueError(f"values for how={how!r} must be {axes}, got shape {tuple(values.shape)}")
    if not len(values):
        raise ValueError(f"values for how={how!r} must not be empty, got shape {tuple(values.shape)}")
    if not values.isfinite().all():
        raise ValueError(f"values for how={how!r} must be finite")
    neurons.require_fits(*values.shape[-2:])


def _require_classes(how: str, classes: Any, values: Tensor | None) -> Int[Tensor, " example"] | None:
    if how != "class_mean":
        if classes is not None:
            raise ValueError(f"classes are for how='class_mean', got them with how={how!r}")
        return None
    if classes is None:
        raise ValueError("how='class_mean' needs classes: whose mean each example gets, in their order")
    found = torch.as_tensor(classes, device="cpu")
    if found.ndim != 1 or found.is_floating_point() or not len(found):
        raise ValueError(f"classes must be a list of integers, one per example, got {classes!r}")
    if found.min() < 0 or found.max() >= len(values):
        raise ValueError(
            f"classes must be in [0, {len(values)}), the classes that values has, got {int(found.min())} to "
            f"{int(found.max())}"
        )
    return found.long()
