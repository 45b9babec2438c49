"""PEFT's prompt-tuning folders: theirs load here, ours load there, and both compute the same."""

import json

import families
import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from toy import QUIET

from tl_skillneurons import PromptedModel, SoftPrompt, score_neurons
from tl_skillneurons.prompts.peft_files import CONFIG, WEIGHTS

# peft 0.19 asks transformers 5 for a property under its old name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TEXTS = ["the film was good", "bad", "a slow plot and a dull cast"]
CAUSAL = ("llama", "gpt2")


def embedding(n=3, width=32, seed=0):
    return 0.3 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def prefix(provenance=(), **fields):
    known = {"times_inputs_embeds": 1.0}  # as tuning records it
    return SoftPrompt(embedding(), placement="prefix", provenance={**known, **dict(provenance)}, **fields)


def by_peft(folder, family):
    """Last-token logits of each text alone: PEFT's model on an untouched Hugging Face model."""
    model = peft.PeftModel.from_pretrained(tiny.hf_model(family), folder).eval()
    tokenizer = tiny.tokenizer(family)
    with torch.no_grad():
        return torch.stack(
            [model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1] for text in TEXTS]
        )


def written_by_peft(folder, family="llama"):
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, tokenizer_name_or_path=None, prompt_tuning_init="RANDOM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny.hf_model(family), config)
    model.save_pretrained(folder)
    return model.get_prompt_embedding_to_save("default").detach().clone()


@pytest.mark.parametrize("family", CAUSAL)
def test_a_prompt_written_here_gives_in_peft_the_logits_it_gives_here(tmp_path, family):
    model = tiny.bridge(family)
    prompt = prefix(provenance={"model": {"name": "tiny", "n_layers": 2}})
    assert prompt.to_peft(tmp_path / "adapter") == tmp_path / "adapter"
    logits = by_peft(tmp_path / "adapter", family)
    words = {0: "negative", 1: "positive", 2: "other"}
    ids = [tiny.VOCABULARY[word] for word in words.values()]
    prompted = PromptedModel(model, prompt, words, prepend_bos=True)
    with torch.no_grad():
        ours = prompted.class_logits(TEXTS)
        whole = torch.stack([prompted.run_with_hooks([text])[0, -1] for text in TEXTS])
        bare = PromptedModel(model, None, words, prepend_bos=True).class_logits(TEXTS)
    torch.testing.assert_close(
        ours, logits[:, ids], rtol=1e-4, atol=1e-5
    )  # float32, padded and fused otherwise
    torch.testing.assert_close(whole, logits, rtol=1e-4, atol=1e-5)
    assert (bare - ours).abs().min() > 1e-3


@pytest.mark.parametrize("family", CAUSAL)
def test_a_prompt_written_by_peft_loads_here_with_the_same_bits(tmp_path, family):
    theirs = written_by_peft(tmp_path, family)
    prompt = SoftPrompt.from_peft(tmp_path)
    assert torch.equal(prompt.embedding, theirs) and prompt.placement == "prefix" and prompt.readout is None
    assert prompt.provenance["source"] == "PEFT prompt tuning"
    with torch.no_grad():
        ours = PromptedModel(
            tiny.bridge(family), prompt, {0: "bad", 1: "good"}, prepend_bos=True
        ).class_logits(TEXTS)
    ids = [tiny.VOCABULARY[word] for word in ("bad", "good")]
    torch.testing.assert_close(ours, by_peft(tmp_path, family)[:, ids], rtol=1e-4, atol=1e-5)


def granite():
    return families.bridge("granite"), families.hf_model("granite")


def by_inputs_embeds(untouched, prompt, ids):
    rows = torch.cat([prompt, untouched.get_input_embeddings()(torch.tensor(ids))])
    with torch.no_grad():
        return untouched(inputs_embeds=rows[None]).logits[0, -1]


def test_a_model_that_scales_after_inputs_embeds_gets_pefts_units_and_gives_them_back(tmp_path):
    (model, untouched), theirs = granite(), written_by_peft(tmp_path / "theirs")
    prompt = SoftPrompt.from_peft(tmp_path / "theirs", model)
    prompted = PromptedModel(model, prompt, {0: "bad", 1: "good"})
    ids = [tiny.VOCABULARY[word] for word in ("bad", "good")]
    (text,) = prompted.encode([TEXTS[0]])
    found = prompted.class_logits([TEXTS[0]])[0].detach()
    torch.testing.assert_close(found, by_inputs_embeds(untouched, theirs, text)[ids], rtol=1e-4, atol=1e-5)
    assert torch.equal(prompt.embedding, 3 * theirs)
    ours = load_file(prompt.to_peft(tmp_path / "ours") / WEIGHTS)["prompt_embeddings"]
    torch.testing.assert_close(ours, theirs)


def test_units_that_are_not_known_are_refused_rather_than_guessed(tmp_path):
    (model, _), theirs = granite(), written_by_peft(tmp_path)
    with pytest.raises(
        ValueError, match=r"multiplies by 3 before embed\.hook_out; .*from_peft\(folder, model\)"
    ):
        PromptedModel(model, SoftPrompt.from_peft(tmp_path))
    bare = SoftPrompt(theirs, placement="prefix")
    with pytest.raises(ValueError, match=r"doesn't say how its model scales .*; give to_peft the model"):
        bare.to_peft(tmp_path / "ours")
    ours = load_file(bare.to_peft(tmp_path / "ours", model) / WEIGHTS)["prompt_embeddings"]
    torch.testing.assert_close(ours, theirs / 3)


def test_a_prompt_goes_to_peft_and_back_unchanged(tmp_path):
    prompt = prefix(provenance={"model": {"name": "tiny", "n_layers": 2}})
    read = SoftPrompt.from_peft(prompt.to_peft(tmp_path))
    assert torch.equal(read.embedding, prompt.embedding)
    assert read.provenance == {
        "source": "PEFT prompt tuning",
        "base_model": "tiny",
        "units": "inputs_embeds",
    }
    again = SoftPrompt.from_peft(read.to_peft(tmp_path / "again"))
    assert again.provenance == read.provenance
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [CONFIG, WEIGHTS]


def test_a_prefix_of_a_causal_model_is_not_scored_at_its_own_positions(tmp_path):
    model, task = tiny.bridge("llama"), tiny.task()
    prompt = SoftPrompt.from_peft(prefix().to_peft(tmp_path))
    with pytest.raises(ValueError, match=r"prefix and the model is causal: .* never see it"):
        score_neurons(model, prompt, task, run=QUIET)
    scores = score_neurons(model, prompt, task, positions="last", run=QUIET)
    bare = score_neurons(model, None, task, positions="last", run=QUIET)
    assert scores.predictivity.isfinite().all() and not torch.equal(scores.baseline, bare.baseline)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            SoftPrompt(embedding(), placement="suffix"),
            r"no place for virtual tokens after the text \(a suffix\)",
        ),
        (prefix(readout=torch.ones(2, 32)), r"no place for a linear read-out; use save\(\)"),
    ],
)
def test_what_peft_has_no_place_for_is_refused(tmp_path, prompt, message):
    with pytest.raises(ValueError, match=message):
        prompt.to_peft(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cant_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"can't write .*; choose a folder that can be written"):
        prefix().to_peft(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def change_config(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / CONFIG).unlink(), FileNotFoundError, "has no adapter_config.json; give the folder"),
        (
            lambda f: (f / WEIGHTS).unlink(),
            FileNotFoundError,
            "has no adapter_model.safetensors; give the folder",
        ),
        (lambda f: (f / CONFIG).write_text("{"), ValueError, "is corrupt"),
        (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe{"), ValueError, "is corrupt"),
        (lambda f: (f / CONFIG).write_text("[]"), ValueError, "of type None; only PROMPT_TUNING"),
        (lambda f: (f / WEIGHTS).write_bytes(b"?" * 40), ValueError, "is corrupt"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-4]), ValueError, "is corrupt"),
        (
            lambda f: change_config(f, peft_type="LORA"),
            ValueError,
            "PEFT adapter of type LORA; only PROMPT_TUNING",
        ),
        (lambda f: change_config(f, peft_type="PREFIX_TUNING"), ValueError, "of type PREFIX_TUNING"),
        (
            lambda f: change_config(f, num_virtual_tokens=4),
            ValueError,
            r"says \[num_virtual_tokens, token_dim\] = \[4, 32\], its tensor is \[3, 32\]",
        ),
        (
            lambda f: save_file({"lora_A": torch.ones(2)}, f / WEIGHTS),
            ValueError,
            r"must hold 'prompt_embeddings', got \['lora_A'\]",
        ),
    ],
)
def test_folders_that_hold_no_prompt_are_refused(tmp_path, spoil, error, message):
    folder = prefix().to_peft(tmp_path / "adapter")
    spoil(folder)
    with pytest.raises(error, match=message):
        SoftPrompt.from_peft(folder)


def test_an_adapter_of_another_kind_written_by_peft_is_refused(tmp_path):
    with torch.random.fork_rng():
        model = peft.get_peft_model(tiny.hf_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a PEFT adapter of type LORA"):
        SoftPrompt.from_peft(tmp_path)
