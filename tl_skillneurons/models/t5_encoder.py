"""T5's encoder on its own: one stack of layers that see the whole text, as BERT's do.

An encoder-decoder model has two stacks, so a layer and a neuron don't name one place; its encoder alone has one. It has
no language-model head (T5's is the decoder's), so it is read out by a linear read-out, at the sentinel
``<extra_id_0>``, which is what T5 was trained to put in the place of words that are left out.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    RMSNormalizationBridge,
    T5BlockBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import MT5EncoderModel, T5EncoderModel, T5PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

T5_ENCODERS = {"t5": T5EncoderModel, "mt5": MT5EncoderModel}
"""By the model type of a config, that of the whole model or of its encoder."""
ARCHITECTURE = "T5EncoderModel"


class T5EncoderToRead(T5PreTrainedModel):
    """The encoder of a T5, with the parts that a bridge of an encoder has.

    ``mlm_head`` gives the encoder's hidden states as they are. The logits are their products with the token
    embeddings, and mean nothing: no T5 was trained for that.

    Args:
        model: A T5 or mT5, or its encoder; the parts are shared with it.

    Raises:
        ValueError: For another kind of model, a UMT5 or LongT5 among them.

    Example:
        >>> skn.models.register_encoders()
        >>> encoder = skn.models.T5EncoderToRead(T5EncoderModel.from_pretrained("google-t5/t5-small"))
        >>> model = TransformerBridge.boot_transformers("t5", hf_model=encoder, tokenizer=tokenizer)
    """

    def __init__(self, model: Any) -> None:
        if model.config.model_type not in T5_ENCODERS:
            raise ValueError(
                f"a {type(model).__name__} is no T5: only the encoders of {' and '.join(T5_ENCODERS)} can be read so"
            )
        encoder = model.encoder
        config = encoder.config
        config.architectures = [ARCHITECTURE]
        super().__init__(config)
        self.encoder = encoder
        self.mlm_head = nn.Identity()
        with torch.device("meta"):
            self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.unembed.weight = encoder.embed_tokens.weight
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's token embedding."""
        return self.encoder.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The same matrix as a linear layer."""
        return self.unembed

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Hugging Face's encoder; its positions are relative, so ``position_ids`` change nothing."""
        kwargs.pop("position_ids", None)
        out = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )
        hidden = self.mlm_head(out.last_hidden_state)
        return MaskedLMOutput(
            logits=self.unembed(hidden), hidden_states=out.hidden_states, attentions=out.attentions
        )


class T5EncoderAdapter(ArchitectureAdapter):
    """Where the parts of :class:`T5EncoderToRead` are, by the names of BERT's bridge."""

    supports_generation = False
    supports_fold_ln = False
    supports_center_writing_weights = False

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        cfg.normalization_type, cfg.final_rms = "RMS", True
        cfg.positional_embedding_type = "relative_positional_bias"
        cfg.attn_only, cfg.attention_dir = False, "bidirectional"
        cfg.gated_mlp = bool(getattr(cfg, "is_gated_act", False))
        self.weight_processing_conversions = {}
        projections: dict[str, GeneralizedComponent] = {part: LinearBridge(name=part) for part in "qkvo"}
        attention = AttentionBridge(
            name="layer.0.SelfAttention",
            config=cfg,
            submodules=projections,
            requires_relative_position_bias=True,
        )
        self.component_mapping = {
            "embed": EmbeddingBridge(name="encoder.embed_tokens"),
            "blocks": T5BlockBridge(
                name="encoder.block",
                config=cfg,
                submodules={
                    "ln1": RMSNormalizationBridge(name="layer.0.layer_norm", config=cfg),
                    "attn": attention,
                    "ln2": RMSNormalizationBridge(name="layer.1.layer_norm", config=cfg),
                    "mlp": self._mlp(),
                },
            ),
            "ln_final": RMSNormalizationBridge(name="encoder.final_layer_norm", config=cfg),
            "mlm_head": GeneralizedComponent(name="mlm_head"),
            "unembed": UnembeddingBridge(name="unembed"),
        }

    def prepare_model(self, hf_model: Any) -> None:
        """Take the sizes that the config's general names don't tell: ``d_kv``, ``d_ff`` and the activation.

        Raises:
            ValueError: For an encoder that isn't a :class:`T5EncoderToRead`.
        """
        if not isinstance(hf_model, T5EncoderToRead):
            raise ValueError(
                f"a {type(hf_model).__name__} has no place to read out at; boot T5EncoderToRead(model) with hf_model=, "
                "or load its folder by load_model"
            )
        self.cfg.d_head, self.cfg.d_mlp = hf_model.config.d_kv, hf_model.config.d_ff
        self.cfg.act_fn = hf_model.config.dense_act_fn

    def _mlp(self) -> MLPBridge:
        name = "layer.1.DenseReluDense"
        if self.cfg.gated_mlp:
            return self._gated_mlp(name, gate="wi_0", up="wi_1", down="wo")
        return self._ungated_mlp(name, up="wi", down="wo")
