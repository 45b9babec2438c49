"""A model is checked before it is believed: a bridge against the Hugging Face model inside it, on made-up texts.

Compared are, in one run each, a fraction of a second in all on a small model: logits, neurons (the hook against the
input of the down projection, its width, its values, and an edit), a soft prompt against ``inputs_embeds``, the same
inside a batch padded on the left and on the right, the prompt on top of kept keys and values, the heads' outputs,
the vocabulary's matrix as it can be read against the module that runs, and whether each norm of the residual stream is
linear at a fixed scale, which direct effects and decompositions rest on. What differs by more than rounding, or can't
be had, is refused for the operations that it would spoil, and for no other.

It is done once per model, when the model is loaded or first used, and again when its weights or its configuration
were changed. The environment variable ``TL_SKILLNEURONS_VERIFY=off`` switches it off: nothing is compared then, and
nothing refused.

What it does not show: that a model is right for texts of another kind, longer ones say.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._results import html_of
from tl_skillneurons.models import _verify_runs as runs
from tl_skillneurons.models._quiet_run import quietly
from tl_skillneurons.models._verify_subject import LONG, Subject
from tl_skillneurons.models.causality import forget
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import hf_config, mend_head_shapes, require_supported
from tl_skillneurons.models.special_tokens import token_differences
from tl_skillneurons.models.untouched import Untouched, untouched

SWITCH = "TL_SKILLNEURONS_VERIFY"

_CHECKS: dict[str, Callable[[Subject], float]] = {
    "logits": runs.logits,
    "neurons": runs.neurons,
    "prompt": runs.prompt,
    "padding left": runs.prompt_left,
    "padding right": runs.prompt_right,
    "kept texts": runs.cached,
    "heads": runs.heads,
    "output head": runs.output_head,
    "norms": runs.norms,
}
_DONE: WeakKeyDictionary[TransformerBridge, tuple[Any, "Verification"]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: What was compared.
        difference: The largest difference, as a share of the largest value; ``None`` where nothing could be compared.
        refused: Why what needs this is refused; ``None`` where it is not.
    """

    name: str
    difference: float | None
    refused: str | None

    @property
    def ok(self) -> bool:
        """Whether the two agree to rounding."""
        return self.refused is None

    @property
    def told(self) -> str:
        """ "ok", "differs by ..." or "refused: ..."."""
        return "ok" if self.refused is None else self.refused

    @property
    def shown(self) -> str:
        """The same for a table: "ok" or "refused: ..."."""
        return self.told if self.ok or self.told.startswith("refused: ") else f"refused: it {self.told}"


@dataclass(frozen=True)
class Verification:
    """What was compared of a model with the Hugging Face model inside it, and what came out.

    Attributes:
        model: The model's name and class.
        causal: Whether positions see earlier ones alone, as measured.
        embedding_scale: How many times ``inputs_embeds`` the activation at ``embed.hook_out`` is; ``None`` where it
            is no multiple.
        reference: What it was compared with.
    """

    _repr_html_ = html_of

    model: str
    causal: bool
    embedding_scale: float | None
    reference: str
    checks: tuple[Check, ...]

    def __getitem__(self, name: str) -> Check:
        return {check.name: check for check in self.checks}[name]

    @property
    def surprises(self) -> tuple[Check, ...]:
        """What is refused beyond what every model of its kind lacks: a bidirectional one's texts can't be kept."""
        return tuple(c for c in self.checks if not c.ok and (self.causal or c.name != "kept texts"))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per check: check, result, difference."""
        rows = [{"check": c.name, "result": c.told, "difference": c.difference} for c in self.checks]
        return pd.DataFrame(rows, columns=["check", "result", "difference"])

    def __repr__(self) -> str:
        way = "positions see earlier ones alone" if self.causal else "positions see later ones too"
        lines = [f"{self.model}, {way}; compared with {self.reference}"]
        return "\n".join([*lines, *(f"  {check.name:<14} {check.shown}" for check in self.checks)])


def verify(model: TransformerBridge, tokenizer: Any = None) -> Verification:
    """Compare a model with the Hugging Face model inside it, on a few short made-up texts, and say what agrees.

    Args:
        tokenizer: The model's own tokenizer as it is loaded afresh; its ids are compared with those after booting.

    Returns:
        A table of checks: each "ok", "differs by ..." or "refused: ..." with the reason.

    Raises:
        TypeError, ValueError: For what is no model in which neurons can be found, or runs no text.

    Example:
        >>> print(skn.models.verify(model))
    """
    require_supported(model)
    mend_head_shapes(model)
    with quietly(model):
        forget(model)
        subject, compared_with = _subject(model)
        _require_runs(subject)
        checks = [_checked(name, compare, subject) for name, compare in _CHECKS.items()]
        checks.append(_tokens(model, tokenizer))
        result = Verification(
            model_label(model), subject.causal, _try_scale(subject), compared_with, tuple(checks)
        )
    _DONE[model] = (_state(model), result)
    return result


def verified(model: TransformerBridge) -> Verification:
    """What :func:`verify` found, now or the last time, where the model is still what it was."""
    state, result = _DONE.get(model, (None, None))
    if result is None or state != _state(model):
        return verify(model)
    return result


def require(model: TransformerBridge, *names: str) -> None:
    """Return if each of these checks of ``model`` came out right; see :func:`verify`.

    Raises:
        ValueError: Naming the first that did not, and by how much.
    """
    if is_switched_off():
        return
    result = verified(model)
    for name in names:
        if not (check := result[name]).ok:
            raise ValueError(
                f"{result.model} can't be used for this: {check.name} {check.told} (against {result.reference}); "
                f"print(skn.models.verify(model)) shows what can be used, {SWITCH}=off believes it all the same"
            )


def agrees(model: TransformerBridge, name: str) -> bool:
    """Whether this check of ``model`` came out right: whether a shortcut that rests on it may be taken."""
    return is_switched_off() or verified(model)[name].ok


def embedding_scale(model: TransformerBridge) -> float:
    """How many times ``inputs_embeds`` the activation at ``embed.hook_out`` is, as measured.

    Raises:
        ValueError: Where it is no multiple.
    """
    scale = verified(model).embedding_scale
    if scale is None:
        raise ValueError(
            f"embed.hook_out of {model_label(model)} is no multiple of its inputs_embeds, so a prompt can't be brought "
            "from the units of one into those of the other"
        )
    return scale


def is_switched_off() -> bool:
    """Whether nothing is to be compared: the environment says ``TL_SKILLNEURONS_VERIFY=off``."""
    return os.environ.get(SWITCH, "").lower() in ("off", "0", "no", "false")


def _subject(model: TransformerBridge) -> tuple[Subject, str]:
    """The model beside its reference, and what that is."""
    try:
        subject = Subject(model, untouched(model))
        _ = subject.referred
        return subject, "the Hugging Face model inside it, without the bridge's parts"
    except Exception as error:  # whatever a model of somebody else's may raise
        parts = {id(part): part for part in model.original_model.modules()}
        told = _first_line(error)
        return Subject(model, Untouched(model.original_model, parts)), (
            f"the Hugging Face model inside it, with the bridge's parts ({told})"
        )


def _require_runs(subject: Subject) -> None:
    """Refuse a model that runs no text at all."""
    try:
        _ = subject.causal
    except Exception as error:  # whatever a model of somebody else's may raise
        raise ValueError(
            f"{model_label(subject.model)} can't be used, since its bridge runs no text (of {LONG} tokens): "
            f"{_first_line(error)}; use another model of its family"
        ) from error


def _checked(name: str, compare: Callable[[Subject], float], subject: Subject) -> Check:
    try:
        off = compare(subject)
    except Exception as error:  # whatever a model of somebody else's may raise
        return Check(name, None, f"refused: {_first_line(error)}")
    if off <= subject.rounding:
        return Check(name, off, None)
    return Check(name, off, f"differs by {off:.2g} of the largest value")


def _tokens(model: TransformerBridge, tokenizer: Any) -> Check:
    try:
        differs = token_differences(model, tokenizer)
    except Exception as error:  # as above, of a tokenizer
        return Check("special tokens", None, f"refused: {_first_line(error)}")
    return Check("special tokens", None, differs and f"differs: {differs}")


def _try_scale(subject: Subject) -> float | None:
    try:
        return subject.scale
    except Exception:  # as above; the check of the prompt says why
        return None


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0].partition(". ")[0]
    if isinstance(error, KeyError):
        return f"it has no hook point {text}"
    return text or type(error).__name__


def _state(model: TransformerBridge) -> Any:
    """Changes with the weights, the modules and the configuration, as far as that can be seen without reading them."""
    config = hf_config(model)
    said = json.dumps(config.to_dict(), default=str, sort_keys=True) if hasattr(config, "to_dict") else ""
    said += str(getattr(config, "_attn_implementation", "")) + str(model.compatibility_mode)
    said += f"{id(model.tokenizer)}"  # one put in its place has a rule of its own for special tokens
    weights = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
    return said, weights
