"""A soft prompt: a few trained embeddings that stand beside the text, everything else frozen (Lester et al.,
2021).

The embeddings are kept in the units of ``embed.hook_out``, the hook point at which they replace the rows of
placeholder tokens; there they equal Hugging Face's ``inputs_embeds``. Gemma scales embeddings before that
point and Granite after it, so a prompt is not in the units of ``W_E``.

:meth:`SoftPrompt.attached` makes the virtual tokens tokens of the model: ids from ``d_vocab`` on. Every
TransformerLens tool that takes token ids then works on the real model.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._pictures import plotted
from tl_skillneurons.models.records import model_differences
from tl_skillneurons.models.sites import (
    SITE,
    embedding_width,
    is_causal,
    require_supported,
)
from tl_skillneurons.models.verification import embedding_scale, require
from tl_skillneurons.prompts.attached import VirtualTokens, attach
from tl_skillneurons.prompts.peft_files import read_peft, write_peft
from tl_skillneurons.prompts.positions import PLACEMENTS
from tl_skillneurons.tasks.chat import Chat

KIND = "SoftPrompt"


class SoftPrompt(nn.Module):
    """Virtual tokens, where they stand, and how they came about.

    Args:
        embedding: One row per virtual token, in ``embed.hook_out`` units.
        placement: ``"suffix"`` after the text (causal models) or ``"prefix"`` before it (bidirectional ones).
        readout: A linear read-out for encoders without a language-model head; ``None`` reads label words.
        prepend_bos: Whether texts get a BOS token; ``None`` follows the model (``cfg.default_prepend_bos``).
        chat: What stands around the text in a conversation, for a chat model's prompt, which then stands where the
            answer would begin; ``None`` for texts that stand alone.
        max_length: The longest sequence in tokens, virtual tokens included, that it was tuned with; whatever runs
            the prompt cuts texts to it unless told otherwise. ``None`` for what the model takes.
        initial: The embedding that training started from.
        snapshots, readout_snapshots: The embedding (and the linear read-out, if any) at each evaluation during
            training, one for each entry of ``history``; ``None`` where they were not kept.
        seed: The seed that training was started with.
        history: One dict per evaluation during training: step, losses, accuracy.
        provenance: Plain JSON values that say where the prompt comes from (model, task, settings, outcome).

    Example:
        >>> prompt = skn.SoftPrompt(torch.randn(4, model.cfg.d_model) * 0.02, placement="suffix")
        >>> skn.PromptedModel(model, prompt, {0: " bad", 1: " good"}).class_logits(["What a film."]).shape
        torch.Size([1, 2])
    """

    initial: Tensor | None  # buffers, whose types torch doesn't know
    snapshots: Tensor | None
    readout_snapshots: Tensor | None

    def __init__(
        self,
        embedding: Float[Tensor, "virtual_token d_embed"],
        *,
        placement: str,
        readout: Float[Tensor, "n_classes d_model"] | None = None,
        prepend_bos: bool | None = None,
        chat: Chat | None = None,
        max_length: int | None = None,
        initial: Float[Tensor, "virtual_token d_embed"] | None = None,
        snapshots: Float[Tensor, "evaluation virtual_token d_embed"] | None = None,
        readout_snapshots: Float[Tensor, "evaluation n_classes d_model"] | None = None,
        seed: int | None = None,
        history: list[dict[str, Any]] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not embedding.numel():
            raise ValueError(
                f"a soft prompt needs at least one virtual token, got shape {tuple(embedding.shape)}"
            )
        if not torch.isfinite(embedding).all():
            raise ValueError("the soft prompt holds values that are not finite")
        self.embedding = nn.Parameter(embedding.detach().clone())
        self.readout = None if readout is None else nn.Parameter(readout.detach().clone())
        buffers = {"initial": initial, "snapshots": snapshots, "readout_snapshots": readout_snapshots}
        for name, tensor in buffers.items():
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())
        self.placement = require_option(placement, "placement", PLACEMENTS)
        if chat is not None and prepend_bos is not None:
            raise ValueError(
                "a chat template says which special tokens stand around a text, got "
                f"prepend_bos={prepend_bos} beside chat; leave it out"
            )
        self.prepend_bos, self.chat = prepend_bos, chat
        self.max_length = None if max_length is None else require_int(max_length, "max_length")
        self.seed = seed
        self.history = history or []
        _require_snapshots_match(self)
        self.provenance = provenance or {}

    @property
    def n_virtual_tokens(self) -> int:
        """How many virtual tokens the prompt has."""
        return len(self.embedding)

    plot = plotted("plot_tuning")

    def extra_repr(self) -> str:
        n, width = self.embedding.shape
        return f"{n} virtual tokens of width {width}, placement={self.placement!r}, seed={self.seed}"

    def require_fits(self, model: TransformerBridge) -> None:
        """Refuse a model that can't take this prompt, or is surely another than it was trained on; warn of one with
        another name or vocabulary, which may be a copy or a checkpoint of it.

        Raises:
            ValueError: When the model's embeddings have another width, its attention another direction, or when it has
                another architecture or number of layers than the prompt records.
        """
        require_supported(model)
        width = embedding_width(model)
        if self.embedding.shape[1] != width:
            trained = self.provenance.get("model", {}).get("name", "another model")
            raise ValueError(
                f"the prompt's embeddings are {self.embedding.shape[1]} wide (trained on {trained}), "
                f"those of {model.cfg.model_name} are {width}; use a prompt trained on this model"
            )
        if self.provenance.get("units") == "inputs_embeds" and (scale := embedding_scale(model)) != 1:
            raise ValueError(
                f"this prompt is in the units of inputs_embeds, which {model.cfg.model_name} multiplies by {scale:g} "
                "before embed.hook_out; load it with SoftPrompt.from_peft(folder, model)"
            )
        if self.placement == "suffix" and not is_causal(model):
            raise ValueError(
                f"{model.cfg.model_name} is bidirectional and takes its prompt as a prefix, this one is a suffix; "
                "train a prompt on this model"
            )
        recorded = self.provenance.get("model", {})
        kind = {name: recorded[name] for name in ("architecture", "n_layers") if name in recorded}
        if other := model_differences(kind, model):
            raise ValueError(
                f"the prompt was trained on {recorded.get('name', 'another model')}, another model of equal width "
                f"({other}); use a prompt trained on this model"
            )
        differs = model_differences(recorded, model)
        if differs:
            warnings.warn(f"this soft prompt was trained on another model ({differs})", stacklevel=3)

    @contextmanager
    def attached(self, model: TransformerBridge) -> Iterator["VirtualTokens"]:
        """A context in which ids from ``d_vocab`` on stand for the virtual tokens of this prompt.

        Yields:
            The :class:`VirtualTokens`: put its ``ids`` into your token tensors where the prompt belongs
            (after the text for a suffix; ``[mask] [ids] [text]`` for a bidirectional model) and use ``model``
            as ever. Gradients reach ``embedding``. Hooks and everything else are as before afterwards.

        Raises:
            ValueError: When the model can't take the prompt.
        """
        self.require_fits(model)
        require(model, "prompt")
        with attach(model, self.embedding) as virtual:
            yield virtual

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the prompt to one safetensors file, whole or not at all."""
        tensors = dict([*self.named_parameters(), *self.named_buffers()])
        header = {
            "placement": self.placement,
            "prepend_bos": self.prepend_bos,
            "max_length": self.max_length,
            "site": SITE,
            "units": "embed.hook_out",
            "seed": self.seed,
            "history": self.history,
            "provenance": self.provenance,
        }
        if self.chat is not None:
            header["chat"] = self.chat.record
        return save_tensors(path, KIND, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SoftPrompt":
        """The prompt that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        fields = ("placement", "prepend_bos", "max_length", "seed", "history", "provenance")
        with sound(path, KIND):
            given: dict[str, Any] = {**tensors, **{name: header[name] for name in fields}}
            chat = None if header.get("chat") is None else Chat(**header["chat"])
            return cls(**given, chat=chat)

    @classmethod
    def from_peft(
        cls, folder: str | os.PathLike[str], model: TransformerBridge | None = None
    ) -> "SoftPrompt":
        """The prompt in a PEFT prompt-tuning folder; a prefix, since PEFT knows no other place.

        Under a causal mask a prefix never sees the text: it loads and runs, but its own positions can't be
        scored.

        Args:
            model: The model it belongs to, where that scales its embeddings after ``inputs_embeds``, PEFT's units
                (Granite does): they are brought into the units of ``embed.hook_out``, by the factor that
                :func:`~tl_skillneurons.models.verify` measured. Without it the units are taken to be the same, and
                a model in which they aren't refuses the prompt.

        Raises:
            FileNotFoundError: When the folder lacks one of PEFT's two files.
            ValueError: When the folder holds another kind of adapter, or tensors of another shape than it
                says.
        """
        embedding, provenance = read_peft(folder)
        if model is None:
            provenance["units"] = "inputs_embeds"
        else:
            scale = embedding_scale(model)
            embedding, provenance["times_inputs_embeds"] = embedding * scale, scale
        return cls(embedding, placement="prefix", provenance=provenance)

    def to_peft(self, folder: str | os.PathLike[str], model: TransformerBridge | None = None) -> Path:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT's prompt tuning reads them.

        Args:
            model: The model it belongs to; needed where neither tuning nor :meth:`from_peft` has recorded by which
                factor that model scales its embeddings after ``inputs_embeds``, PEFT's units.

        Raises:
            ValueError: When that factor isn't known, and for what PEFT has no place for: a suffix, or a prompt with
                a read-out of its own.
        """
        if self.placement != "prefix" or self.readout is not None:
            what = (
                "a linear read-out"
                if self.readout is not None
                else "virtual tokens after the text (a suffix)"
            )
            raise ValueError(f"PEFT prompt tuning has no place for {what}; use save() to keep this prompt")
        scale = (
            1.0
            if self.provenance.get("units") == "inputs_embeds"
            else self.provenance.get("times_inputs_embeds")
        )
        if model is not None:
            self.require_fits(model)
            scale = embedding_scale(model)
        if scale is None:
            raise ValueError(
                "PEFT's prompts are in the units of inputs_embeds, this one in those of embed.hook_out, and it doesn't "
                "say how its model scales between them; give to_peft the model"
            )
        return write_peft(folder, self.embedding.detach() / scale, self.provenance)


def _require_snapshots_match(prompt: SoftPrompt) -> None:
    """Refuse snapshots of another shape, or of other evaluations, than the prompt's."""
    for name, own in (("snapshots", prompt.embedding), ("readout_snapshots", prompt.readout)):
        kept = getattr(prompt, name)
        wanted = None if own is None or prompt.snapshots is None else (len(prompt.history), *own.shape)
        if (None if kept is None else tuple(kept.shape)) != wanted:
            shape = "none" if kept is None else tuple(kept.shape)
            raise ValueError(
                f"{name} must be {'none' if wanted is None else wanted}, one for each of {len(prompt.history)} entries "
                f"of history, got {shape}"
            )
