"""Encoders that TransformerLens has no adapter for, booted by adapters put together from its own parts.

XLM-RoBERTa and CamemBERT are RoBERTa by another name; DistilBERT, ELECTRA, MPNet, DeBERTa (1 to 3) and ModernBERT are
BERT's layers under other names, with another attention inside: it runs as Hugging Face wrote it, here is said only
where its parts are. What comes out is checked like every model's (:func:`~tl_skillneurons.models.verify`).

The hook points are BERT's: ``embed``, ``blocks.{i}.mlp.hook_post``, ``attn.hook_z``, ``mlm_head`` (the masked-LM head's
transform), ``ln_final`` (its norm) and ``unembed``. Queries, keys and values have hook points of their own where the
model has a projection for each; DeBERTa 1's and ModernBERT's are one matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from transformer_lens.factories import architecture_adapter_factory as factory
from transformer_lens.model_bridge import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    JointGateUpMLPBridge,
    LinearBridge,
    MLPBridge,
    NormalizationBridge,
    PosEmbedBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures import (
    BertArchitectureAdapter,
    RobertaArchitectureAdapter,
)
from transformer_lens.utilities.architectures import MASKED_LM_ARCHITECTURES
from transformers.models.mpnet.modeling_mpnet import create_position_ids_from_input_ids

from tl_skillneurons.models.t5_encoder import ARCHITECTURE, T5EncoderAdapter

_OPTIONAL = ("token_type_embed", "pos_embed", "embed_project")
_BERT_LAYER = {
    "attn": "attention",
    "q": "self.query",
    "k": "self.key",
    "v": "self.value",
    "o": "output.dense",
    "ln1": "attention.output.LayerNorm",
    "ln2": "output.LayerNorm",
    "in": "intermediate.dense",
    "out": "output.dense",
}
_BERT_EMBEDDINGS = {
    "embed": "embeddings.word_embeddings",
    "token_type_embed": "embeddings.token_type_embeddings",
    "pos_embed": "embeddings.position_embeddings",
    "embed_ln": "embeddings.LayerNorm",
}
_WITHOUT_TYPES = {name: at for name, at in _BERT_EMBEDDINGS.items() if name != "token_type_embed"}


@dataclass(frozen=True)
class Places:
    """Where the parts of a masked language model are.

    Attributes:
        stem: What the encoder is called in the model.
        body: The encoder's parts, from the encoder on.
        layer: A layer's parts, from the layer on; ``q``, ``k``, ``v`` and ``o`` from the attention on, the former left
            out where they are one matrix.
        head: The parts of the masked-LM head, from the model on.
    """

    stem: str
    body: Mapping[str, str]
    layer: Mapping[str, str]
    head: Mapping[str, str]


class EncoderAdapter(BertArchitectureAdapter):
    """BERT's adapter for an encoder whose parts have other names."""

    places: ClassVar[Places]

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        if "q" not in self.places.layer:
            self.weight_processing_conversions = {
                name: conversion
                for name, conversion in (self.weight_processing_conversions or {}).items()
                if ".attn.o." in name
            }
        body = {name: f"{self.places.stem}.{where}" for name, where in self.places.body.items()}
        self.component_mapping = {
            "embed": EmbeddingBridge(name=body["embed"]),
            "embed_ln": self._norm(body["embed_ln"]),
            "blocks": self._blocks(body["layers"]),
            "mlm_head": LinearBridge(name=self.places.head["mlm_head"]),
            "unembed": UnembeddingBridge(name=self.places.head["unembed"]),
            "ln_final": self._norm(self.places.head["ln_final"]),
        }
        kinds: dict[str, type[GeneralizedComponent]] = {
            "token_type_embed": EmbeddingBridge,
            "pos_embed": PosEmbedBridge,
            "embed_project": LinearBridge,
        }
        self.component_mapping |= {name: kinds[name](name=body[name]) for name in _OPTIONAL if name in body}

    def prepare_model(self, hf_model: Any) -> None:
        """Leave out what this model has no part for: token types, absolute positions, a projection."""
        encoder = getattr(hf_model, self.places.stem)
        for name in _OPTIONAL:
            part: Any = encoder
            for step in self.places.body.get(name, "").split("."):
                part = getattr(part, step, None)
            if part is None:
                self.components.pop(name, None)
        if "pos_embed" not in self.components and self.cfg.positional_embedding_type == "standard":
            self.cfg.positional_embedding_type = "none"

    def _norm(self, name: str) -> NormalizationBridge:
        return NormalizationBridge(name=name, config=self.cfg, use_native_layernorm_autograd=True)

    def _blocks(self, name: str) -> BlockBridge:
        layer = self.places.layer
        projections: dict[str, GeneralizedComponent] = {
            part: LinearBridge(name=layer[part]) for part in ("q", "k", "v", "o") if part in layer
        }
        attention = AttentionBridge(
            name=layer["attn"],
            config=self.cfg,
            submodules=projections,
            maintain_native_attention=True,
            fused_qkv="q" not in layer,
        )
        mlp = self._mlp()
        # an MLP of two siblings in the layer never runs as a whole
        aliases = {"hook_mlp_out": "mlp.out.hook_out", "hook_mlp_in": "mlp.in.hook_in"}
        return BlockBridge(
            name=name,
            hook_alias_overrides=aliases if mlp.name is None else None,
            submodules={
                "ln1": self._norm(layer["ln1"]),
                "ln2": self._norm(layer["ln2"]),
                "attn": attention,
                "mlp": mlp,
            },
        )

    def _mlp(self) -> MLPBridge:
        parts: dict[str, GeneralizedComponent] = {
            part: LinearBridge(name=self.places.layer[part]) for part in ("in", "out")
        }
        return MLPBridge(name=None, config=self.cfg, submodules=parts)


class DistilBertAdapter(EncoderAdapter):
    """``DistilBertForMaskedLM``: no token types, and no pooler."""

    places = Places(
        stem="distilbert",
        body=_WITHOUT_TYPES | {"layers": "transformer.layer"},
        layer={
            "attn": "attention",
            "q": "q_lin",
            "k": "k_lin",
            "v": "v_lin",
            "o": "out_lin",
            "ln1": "sa_layer_norm",
            "ln2": "output_layer_norm",
            "in": "ffn.lin1",
            "out": "ffn.lin2",
        },
        head={"mlm_head": "vocab_transform", "ln_final": "vocab_layer_norm", "unembed": "vocab_projector"},
    )


class ElectraAdapter(EncoderAdapter):
    """``ElectraForMaskedLM``, the generator; its embeddings may be narrower than its layers."""

    places = Places(
        stem="electra",
        body=_BERT_EMBEDDINGS | {"embed_project": "embeddings_project", "layers": "encoder.layer"},
        layer=_BERT_LAYER,
        head={
            "mlm_head": "generator_predictions.dense",
            "ln_final": "generator_predictions.LayerNorm",
            "unembed": "generator_lm_head",
        },
    )


class MPNetAdapter(EncoderAdapter):
    """``MPNetForMaskedLM``: positions relative and absolute, the latter counted from where padding stands."""

    places = Places(
        stem="mpnet",
        body=_WITHOUT_TYPES | {"layers": "encoder.layer"},
        layer=_BERT_LAYER
        | {"q": "attn.q", "k": "attn.k", "v": "attn.v", "o": "attn.o", "ln1": "attention.LayerNorm"},
        head={"mlm_head": "lm_head.dense", "ln_final": "lm_head.layer_norm", "unembed": "lm_head.decoder"},
    )

    def prepare_model(self, hf_model: Any) -> None:
        """Leave position ids to the model, which counts them from its ``padding_idx`` on, and take the rows that are
        reserved for that off ``n_ctx``."""
        super().prepare_model(hf_model)
        embeddings = hf_model.mpnet.embeddings
        # the name by which TransformerLens knows that a model counts its positions itself; MPNet's is no method
        embeddings.create_position_ids_from_input_ids = create_position_ids_from_input_ids
        self.cfg.n_ctx = embeddings.position_embeddings.num_embeddings - (embeddings.padding_idx + 1)


class DebertaAdapter(EncoderAdapter):
    """``DebertaForMaskedLM``: queries, keys and values are one matrix."""

    places = Places(
        stem="deberta",
        body=_BERT_EMBEDDINGS | {"embed_project": "embeddings.embed_proj", "layers": "encoder.layer"},
        layer={name: at for name, at in _BERT_LAYER.items() if name not in "qkv"},
        head={
            "mlm_head": "cls.predictions.transform.dense",
            "ln_final": "cls.predictions.transform.LayerNorm",
            "unembed": "cls.predictions.decoder",
        },
    )

    def prepare_model(self, hf_model: Any) -> None:
        """Refuse the head that multiplies by the embeddings itself."""
        super().prepare_model(hf_model)
        if not hasattr(hf_model, "cls"):
            raise ValueError(
                "DeBERTa's head of the newer kind (legacy=False in its config) has no output projection to hook; load "
                "it with legacy=True, as a bare encoder"
            )


class DebertaV2Adapter(DebertaAdapter):
    """``DebertaV2ForMaskedLM``, DeBERTa 2 and 3."""

    places = replace(
        DebertaAdapter.places,
        layer=_BERT_LAYER | {"q": "self.query_proj", "k": "self.key_proj", "v": "self.value_proj"},
    )


class ModernBertAdapter(EncoderAdapter):
    """``ModernBertForMaskedLM``: norms before attention and MLP, a gated MLP, rotary positions, local attention in most
    layers. ``ln1`` of the first layer does nothing there, ``encoder_norm`` is the norm after the last layer."""

    places = Places(
        stem="model",
        body={"embed": "embeddings.tok_embeddings", "embed_ln": "embeddings.norm", "layers": "layers"},
        layer={"attn": "attn", "o": "Wo", "ln1": "attn_norm", "ln2": "mlp_norm", "in": "Wi", "out": "Wo"},
        head={"mlm_head": "head.dense", "ln_final": "head.norm", "unembed": "decoder"},
    )
    supports_center_writing_weights = False  # the first layer's attention reads the stream as it is

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.positional_embedding_type = "rotary"
        self.cfg.gated_mlp = True
        self.components["encoder_norm"] = self._norm("model.final_norm")

    def _mlp(self) -> JointGateUpMLPBridge:
        layer = self.places.layer
        out: dict[str, GeneralizedComponent] = {"out": LinearBridge(name=layer["out"])}
        return JointGateUpMLPBridge("mlp", config=self.cfg, submodules=out, fused_attr=layer["in"])


ADAPTERS: dict[str, type[ArchitectureAdapter]] = {
    "XLMRobertaForMaskedLM": RobertaArchitectureAdapter,
    "CamembertForMaskedLM": RobertaArchitectureAdapter,
    "DistilBertForMaskedLM": DistilBertAdapter,
    "ElectraForMaskedLM": ElectraAdapter,
    "MPNetForMaskedLM": MPNetAdapter,
    "DebertaForMaskedLM": DebertaAdapter,
    "DebertaV2ForMaskedLM": DebertaV2Adapter,
    "ModernBertForMaskedLM": ModernBertAdapter,
    ARCHITECTURE: T5EncoderAdapter,
}
"""By the name of the Hugging Face class."""

MASKED_LM: dict[str, tuple[str, tuple[str, ...]]] = {
    "bert": ("BertForMaskedLM", ("cls.",)),
    "roberta": ("RobertaForMaskedLM", ("lm_head.",)),
    "xlm-roberta": ("XLMRobertaForMaskedLM", ("lm_head.",)),
    "camembert": ("CamembertForMaskedLM", ("lm_head.",)),
    "distilbert": ("DistilBertForMaskedLM", ("vocab_",)),
    "electra": ("ElectraForMaskedLM", ("generator_",)),
    "mpnet": ("MPNetForMaskedLM", ("lm_head.",)),
    "deberta": ("DebertaForMaskedLM", ("cls.",)),
    "deberta-v2": ("DebertaV2ForMaskedLM", ("cls.",)),
    "modernbert": ("ModernBertForMaskedLM", ("head.", "decoder.")),
}
"""By the model type of a config: the masked language model, and how the names of its head's weights begin."""


def register_encoders() -> None:
    """Let ``TransformerBridge.boot_transformers`` take these encoders too; :func:`load_model` does so by itself.

    An adapter that somebody else has registered for one of them stays.

    Example:
        >>> skn.models.register_encoders()
        >>> model = TransformerBridge.boot_transformers("distilbert-base-uncased")
    """
    for name, adapter in ADAPTERS.items():
        if name not in factory.SUPPORTED_ARCHITECTURES:  # where a config's architecture is looked up
            factory.SUPPORTED_ARCHITECTURES[name] = adapter
            factory.ArchitectureAdapterFactory.register_adapter(name, adapter)
            if name.endswith("ForMaskedLM"):
                MASKED_LM_ARCHITECTURES.add(name)
