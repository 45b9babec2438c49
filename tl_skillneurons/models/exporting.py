"""A model whose weights were changed (pruned, baked) as a Hugging Face folder, for any tool that reads one.

Hugging Face's own class is built from the configuration, given the weights and compared with the model that runs here;
only then is a folder written, whole or not at all.
"""

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models._comparisons import difference, rounding
from tl_skillneurons.models.layers import neuron_widths
from tl_skillneurons.models.packaged import quiet
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import has_language_model_head, hf_config, output_projection
from tl_skillneurons.models.special_tokens import fresh_tokenizer

_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim")
"""What configs call the number of neurons of every layer."""
_OF_A_RUN = {"output_attentions": False, "output_hidden_states": False}
"""What TransformerLens asks of a model when it boots one, which its files never said."""
_INSTEAD = "run it here, or keep a pruned one by save_pruned"


def export_model(model: TransformerBridge, folder: str | os.PathLike[str]) -> Path:
    """Write a model as a Hugging Face folder that ``from_pretrained`` reads, whole or not at all, with its tokenizer.

    Of a pruned model every layer must have the same width. Output biases that the MLPs had not before (a held
    neuron's constant) need an architecture with a place for them: one with biases in its MLPs, or with ``mlp_bias`` in
    its config, as Llama's. An encoder whose language-model head is random is written without it, and without a pooler.

    Raises:
        ValueError: Where the format can't hold the model, or what would be written answers otherwise; the message
            says why.
        FileExistsError: When there is something in ``folder`` already.

    Example:
        >>> folder = skn.models.export_model(small, "pruned-gpt2")
        >>> transformers.AutoModelForCausalLM.from_pretrained(folder)
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty; choose another folder")
    written = _as_hugging_face_has_it(model)
    tokenizer = _own_tokenizer(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary,
        torch.random.fork_rng(devices=[]),
        quiet(),
    ):
        whole = Path(temporary) / "model"
        written.save_pretrained(whole)
        del written
        _require_equal(model, whole)
        if not has_language_model_head(model):
            read = _read(model, whole).base_model
            shutil.rmtree(whole)
            read.save_pretrained(whole)
        if tokenizer is not None:
            tokenizer.save_pretrained(whole)
        whole.rename(folder)
    return folder


def can_hold_output_biases(model: TransformerBridge) -> bool:
    """Whether the Hugging Face format of a model has a place for a bias in every MLP's output projection."""
    return hasattr(hf_config(model), "mlp_bias") or all(b is not None for b in _output_biases(model).values())


def _own_tokenizer(model: TransformerBridge) -> Any:
    """The model's tokenizer as its files have it, without the rule for BOS that TransformerLens writes; the booted one
    where there are no files, or where tokens were added since."""
    booted, own = model.tokenizer, fresh_tokenizer(model)
    if booted is None or own is None or own.get_vocab() != booted.get_vocab():
        return booted
    own.chat_template = booted.chat_template
    return own


def _output_biases(model: TransformerBridge) -> dict[str, Tensor | None]:
    """The bias of each output projection, under the name that Hugging Face has for it."""
    projections = [
        output_projection(model, layer).original_component
        for layer, width in enumerate(neuron_widths(model))
        if width or hasattr(model.blocks[layer].mlp, "W_out")
    ]
    names = {id(part): _own(name) for name, part in model.original_model.named_modules()}
    return {f"{names[id(part)]}.bias": part.bias for part in projections}


def _own(name: str) -> str:
    """A name in Hugging Face's model, for one in the model that the bridge has put its parts into."""
    return name.replace("._original_component", "")


def _as_hugging_face_has_it(model: TransformerBridge) -> Any:
    """The Hugging Face model of its own class, with the weights that run here."""
    config, kind = hf_config(model), type(model.original_model)
    cant = f"{model_label(model)} can't be exported"
    if not kind.__module__.startswith("transformers."):
        raise ValueError(
            f"{cant}: {kind.__name__} is no class of transformers', which would read it; {_INSTEAD}"
        )
    state = {_own(name): value for name, value in model.original_model.state_dict().items()}
    config = type(config).from_dict({**config.to_dict(), **_OF_A_RUN})
    biases = {name for name, bias in _output_biases(model).items() if bias is not None}
    if biases and hasattr(config, "mlp_bias"):
        config.mlp_bias = True
    if not _fits(kind, config, state):
        setattr(config, *_other_width(model))
    built: Any = kind
    with torch.random.fork_rng(devices=[]):  # weights that are drawn, only to be replaced
        written = built(config).to(model.W_E.dtype).eval()
    if lost := sorted(biases - written.state_dict().keys()):
        raise ValueError(
            f"{cant}: the Hugging Face format of {config.model_type} has no place for an output bias in the MLP "
            f"({lost[0]}); {_INSTEAD}"
        )
    try:
        # The bridge knows its parts by further names as well, so only what is missing counts.
        missing, _ = written.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{cant}: {str(error).strip().splitlines()[-1].strip()}; {_INSTEAD}") from error
    if getattr(config, "mlp_bias", False):  # then the projections into the neurons have biases too
        with torch.no_grad():
            for name in missing:
                if name.endswith(".bias"):
                    written.get_parameter(name).zero_()
        missing = [name for name in missing if not name.endswith(".bias")]
    if missing:
        raise ValueError(f"{cant}: no weights for {sorted(missing)[0]}; {_INSTEAD}")
    own_generation = getattr(model.original_model, "generation_config", None)
    if own_generation is not None:
        written.generation_config = copy.deepcopy(own_generation)
    return written


def _fits(kind: Any, config: Any, state: dict[str, Tensor]) -> bool:
    """Whether a model of this config has weights of these shapes."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        shapes = {name: value.shape for name, value in kind(copy.deepcopy(config)).state_dict().items()}
    return all(shapes[name] == value.shape for name, value in state.items() if name in shapes)


def _other_width(model: TransformerBridge) -> tuple[str, int]:
    """The config's word for the number of neurons in a layer, and how many a pruned model has."""
    config, sizes = hf_config(model), sorted(set(neuron_widths(model)))
    if len(sizes) > 1:
        raise ValueError(
            f"a Hugging Face config has one width for all layers, this model has {sizes}; prune every layer to "
            "the same number of neurons, or use save_pruned"
        )
    named = next((name for name in _WIDTHS if hasattr(config, name)), None)
    if named is None:
        raise ValueError(
            f"the Hugging Face config of {config.model_type} has no word for the width of its MLPs that is known here "
            f"({', '.join(_WIDTHS)}); use save_pruned"
        )
    return named, sizes[0]


@torch.no_grad()
def _require_equal(model: TransformerBridge, folder: Path) -> None:
    """Refuse a folder that Hugging Face reads as a model with other logits."""
    written = _read(model, folder)
    ids = torch.arange(1, 7)[None] % model.W_E.shape[0]
    off = difference(written(ids).logits, model(ids.to(model.cfg.device)).to("cpu"))
    if not off <= rounding(model.W_E.dtype):
        raise ValueError(
            f"{model_label(model)} can't be exported: Hugging Face reads its weights as a model with other logits, off "
            f"by {off:.2g} of the largest (hooks that stand on the model, compatibility mode, or weights that the "
            f"bridge holds in another form); {_INSTEAD}"
        )


def _read(model: TransformerBridge, folder: Path) -> Any:
    kind: Any = type(model.original_model)
    return kind.from_pretrained(folder, dtype=model.W_E.dtype).eval()
