"""A TransformerBridge: loading it, where its neurons are, its tokenizer, its batches, and what is kept of its texts.

Only this room and ``prompts`` know what is peculiar to the bridge; everything above knows hook names and ``cfg``.

=================== ===================================================================================
load_model          a model by name or folder, booted, frozen and in eval mode
verify              a model compared with the Hugging Face model inside it: what agrees, what is refused
Verification        the table that ``verify`` gives
packaged_model      the folder of small real weights that come out of a package registry
InputCache          keys and values of texts, computed once for every prompt, step and pass
prune               a copy with smaller MLPs, equal to holding the dropped neurons at given values
save_pruned         a pruned model's weights in one file, ``load_pruned`` reads it
load_pruned         the pruned model that ``save_pruned`` wrote
export_model        a model whose weights were changed (pruned, baked) as a Hugging Face folder
shuffle_layers      a copy whose layers stand in another order: trained parts that make no trained whole
register_encoders   let TransformerLens boot encoders that it has no adapter for, as ``load_model`` does
T5EncoderToRead     a T5's encoder, as ``boot_transformers(hf_model=...)`` takes it
keep_special_tokens after another boot: what the model's own tokenizer puts around a text
=================== ===================================================================================
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
