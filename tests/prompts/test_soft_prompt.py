"""Soft prompts: files, the models they fit, and the virtual tokens that they lend a model."""

import json

import pytest
import tiny
import torch
from safetensors import safe_open
from toy import QUIET

from tl_skillneurons import PromptedModel, SoftPrompt, fit_soft_prompts
from tl_skillneurons._files import save_tensors
from tl_skillneurons.models.records import model_record


def embedding(n=3, width=32, seed=0):
    return 0.3 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def suffix(**fields):
    return SoftPrompt(embedding(), placement="suffix", **fields)


@pytest.fixture(scope="module")
def llama():
    return tiny.bridge("llama")


@pytest.fixture(scope="module")
def bert():
    return tiny.bridge("bert")


# Files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_field_comes_back_from_a_file_bit_for_bit(tmp_path, dtype):
    prompt = SoftPrompt(
        embedding().to(dtype),
        placement="prefix",
        readout=embedding(2, seed=1).to(dtype),
        prepend_bos=False,
        initial=embedding(seed=2).to(dtype),
        seed=7,
        history=[{"step": 0, "loss": 0.1 + 0.2, "train_loss": None}],
        provenance={"task": {"name": "schön"}, "settings": {"init": ["a text"]}},
    )
    read = SoftPrompt.load(prompt.save(tmp_path / "new" / "prompt.safetensors"))
    for name in ("embedding", "readout", "initial"):
        one, other = getattr(prompt, name), getattr(read, name)
        assert one.dtype == other.dtype == dtype and torch.equal(one, other)
    for name in ("placement", "prepend_bos", "seed", "history", "provenance"):
        assert getattr(prompt, name) == getattr(read, name)
    assert read.embedding.requires_grad and not read.initial.requires_grad
    assert {name for name, _ in read.named_parameters()} == {"embedding", "readout"}


def test_what_a_prompt_lacks_it_lacks_after_a_file_too(tmp_path):
    read = SoftPrompt.load(suffix().save(tmp_path / "prompt"))
    assert (read.readout, read.initial, read.seed, read.prepend_bos) == (None,) * 4
    assert (read.history, read.provenance) == ([], {}) and read.n_virtual_tokens == 3


@pytest.mark.filterwarnings("ignore:.*not below chance")
def test_the_header_names_model_units_and_settings(llama, tmp_path):
    (prompt,) = fit_soft_prompts(
        llama, tiny.task(), n_virtual_tokens=2, n_steps=1, folder=tmp_path, run=QUIET
    )
    with safe_open(str(tmp_path / "prompt-seed0.safetensors"), framework="pt") as file:
        header = json.loads(file.metadata()["tl_skillneurons"])
    assert header["kind"] == "SoftPrompt" and header["units"] == "embed.hook_out"
    assert header["placement"] == "suffix" and header["package_version"]
    assert header["provenance"] == prompt.provenance
    assert header["provenance"]["model"] == {
        "name": "tiny",
        "architecture": "LlamaForCausalLM",
        "n_layers": 2,
        "d_model": 32,
        "d_vocab": tiny.D_VOCAB,
        "dtype": "float32",
    }
    assert header["provenance"]["settings"]["n_steps"] == 1 and header["provenance"]["embedding_scale"] == 1


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"not tensors"), "corrupt or not a safetensors file"),
        (lambda path: save_tensors(path, "NeuronScores", {"a": torch.ones(1)}, {}), "holds a NeuronScores"),
        (lambda path: path.write_bytes(suffix().save(path).read_bytes()[:-4]), "corrupt"),
    ],
)
def test_a_corrupt_or_foreign_file_is_refused(tmp_path, write, message):
    write(tmp_path / "prompt")
    with pytest.raises(ValueError, match=message):
        SoftPrompt.load(tmp_path / "prompt")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent"):
        SoftPrompt.load(tmp_path / "absent")


def test_a_folder_that_cant_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"can't write .*; choose a folder that can be written"):
        suffix().save(tmp_path / "file" / "prompt")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# What a prompt may be


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SoftPrompt(torch.empty(0, 32), placement="suffix"),
            r"at least one virtual token, .*\(0, 32\)",
        ),
        (lambda: SoftPrompt(embedding() * float("nan"), placement="suffix"), "values that are not finite"),
        (lambda: SoftPrompt(embedding() / 0, placement="suffix"), "values that are not finite"),
        (
            lambda: SoftPrompt(embedding(), placement="sufix"),
            "placement must be one of .* did you mean 'suffix'",
        ),
    ],
)
def test_what_is_no_prompt_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_prompt_keeps_its_own_copy():
    mine = embedding()
    prompt = SoftPrompt(mine, placement="suffix", initial=mine)
    mine.zero_()
    assert prompt.embedding.all() and prompt.initial.all()


def test_a_prompt_says_what_it_is():
    assert "3 virtual tokens of width 32, placement='suffix', seed=5" in repr(suffix(seed=5))


# Which model it fits


def test_a_prompt_of_another_width_is_refused(llama):
    trained = {"model": {"name": "big"}}
    prompt = SoftPrompt(embedding(width=16), placement="suffix", provenance=trained)
    message = "the prompt's embeddings are 16 wide .trained on big., those of tiny are 32; use a prompt"
    for use in (lambda: prompt.attached(llama).__enter__(), lambda: PromptedModel(llama, prompt)):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_suffix_is_refused_by_a_bidirectional_model(bert):
    with pytest.raises(ValueError, match="tiny is bidirectional and takes its prompt as a prefix"):
        suffix().require_fits(bert)
    SoftPrompt(embedding(), placement="prefix").require_fits(bert)


def test_another_model_of_the_same_width_is_warned_of_with_what_differs(llama):
    here = model_record(llama)
    other = here | {"name": "other", "d_vocab": 9, "dtype": "bfloat16"}
    with pytest.warns(UserWarning) as caught:
        suffix(provenance={"model": other}).require_fits(llama)
    assert [str(w.message) for w in caught] == [
        "this soft prompt was trained on another model "
        "(name: 'other' then, 'tiny' here; d_vocab: 9 then, "
        f"{here['d_vocab']} here)"
    ]
    for kind in ({"n_layers": 9}, {"architecture": "GPT2LMHeadModel"}):
        with pytest.raises(
            ValueError, match=r"trained on tiny, another model of equal width \(.* then, .* here\)"
        ):
            suffix(provenance={"model": here | kind}).require_fits(llama)
    suffix(provenance={"model": here | {"dtype": "bfloat16"}}).require_fits(
        llama
    )  # the same in another dtype
    suffix().require_fits(llama)


# Virtual tokens


def hooks_of(model):
    return {
        name: (list(point.fwd_hooks), dict(point.ctx), len(point._forward_hooks))
        for name, point in model.hook_dict.items()
    }


@pytest.mark.parametrize("family", ["llama", "bert", "gemma2"])
def test_ids_beyond_the_vocabulary_stand_for_the_virtual_tokens(family):
    """The run equals one with the embeddings put in by hand."""
    model = tiny.bridge(family)
    prompt = SoftPrompt(embedding(), placement="suffix" if family != "bert" else "prefix")
    text = torch.tensor([[5, 6, 7]])
    with prompt.attached(model) as virtual:
        assert virtual.ids.tolist() == [tiny.D_VOCAB, tiny.D_VOCAB + 1, tiny.D_VOCAB + 2]
        logits = model(torch.cat([text, virtual.ids[None]], dim=1))
        reordered = model(torch.cat([virtual.ids.flip(0)[None], text], dim=1))
    rows = model.original_model.get_input_embeddings()(text)

    def run(rows):
        put = ("embed.hook_out", lambda act, hook: rows)
        return model.run_with_hooks(torch.full(rows.shape[:2], 5), fwd_hooks=[put])

    own = prompt.embedding[None]
    torch.testing.assert_close(logits, run(torch.cat([rows, own], 1)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reordered, run(torch.cat([own.flip(1), rows], 1)), rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_embedding_and_nothing_else(llama):
    prompt = suffix()
    with prompt.attached(llama) as virtual:
        logits = llama(torch.cat([torch.tensor([5, 6]), virtual.ids[:2]])[None])
        logits[0, -1, 7].backward()
    assert prompt.embedding.grad[:2].any(1).all() and not prompt.embedding.grad[2].any()
    assert all(parameter.grad is None for parameter in llama.parameters())


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_hooks_are_as_before_afterwards(llama, error):
    own = []
    llama.add_hook("embed.hook_out", lambda act, hook: own.append(1), is_permanent=True)
    before = hooks_of(llama)
    try:
        with suffix().attached(llama) as virtual:
            llama(virtual.ids[None])
            assert hooks_of(llama) != before
            if error is not None:
                raise error("stop")
    except (ValueError, KeyboardInterrupt):
        pass
    assert hooks_of(llama) == before
    n_runs = len(own)
    llama(torch.tensor([[5]]))
    assert len(own) == n_runs + 1
    llama.hook_dict["embed.hook_out"].remove_hooks(including_permanent=True)


def test_a_prompt_that_does_not_fit_leaves_no_hook(llama):
    before = hooks_of(llama)
    with pytest.raises(ValueError), SoftPrompt(embedding(width=8), placement="suffix").attached(llama):
        pass
    assert hooks_of(llama) == before


def test_resetting_hooks_inside_keeps_the_virtual_tokens(llama):
    with suffix().attached(llama) as virtual:
        before = llama(virtual.ids[None])
        llama.reset_hooks()
        assert torch.equal(llama(virtual.ids[None]), before)
        logits, cache = llama.run_with_cache(virtual.ids[None])
    assert torch.equal(logits, before)
    assert torch.equal(cache["embed.hook_out"][0], suffix().embedding)


def test_other_hooks_see_the_rows_whenever_they_were_added(llama):
    prompt, seen = suffix(), []

    def look(act, hook):
        seen.append(act[0].detach().clone())

    llama.add_hook("embed.hook_out", look)
    with prompt.attached(llama) as virtual:
        llama.add_hook("embed.hook_out", look)
        llama(virtual.ids[None])
    llama.reset_hooks()
    assert len(seen) == 2 and all(torch.equal(rows, prompt.embedding) for rows in seen)


@pytest.mark.parametrize("beyond", [0, 5])
def test_ids_out_of_range_are_refused(llama, beyond):
    with suffix().attached(llama) as virtual:
        n = tiny.D_VOCAB + 3
        message = rf"token ids must be below {n} \({tiny.D_VOCAB} of .* 3 virtual tokens\), got {n + beyond}"
        with pytest.raises(ValueError, match=message):
            llama(torch.tensor([[5, n + beyond]]))
        llama(virtual.ids[None])


def test_running_on_embeddings_is_refused(llama):
    rows = llama.original_model.get_input_embeddings()(torch.tensor([[5, 6]])).detach()
    refused = pytest.raises(RuntimeError, match="soft prompts need token input, not embeddings")
    with suffix().attached(llama), refused:
        llama.embed.hook_out(rows)


@pytest.mark.parametrize("pad_id", [0, 1])
def test_the_placeholder_is_never_the_pad_token(pad_id):
    """RoBERTa takes position ids from where the pad id stands, so virtual tokens would have none."""
    model = tiny.bridge("roberta")
    model.tokenizer.pad_token = {0: "<pad>", 1: "<s>"}[pad_id]
    prompt, seen = SoftPrompt(embedding(), placement="prefix"), []
    point = model.hook_dict["embed.hook_in"]
    with prompt.attached(model) as virtual:
        model.add_hook("embed.hook_in", lambda ids, hook: seen.append(ids.clone()))
        model(torch.cat([torch.tensor([4]), virtual.ids, torch.tensor([5])])[None])
        model.reset_hooks()
    assert point.fwd_hooks == []
    assert pad_id not in seen[0][0, 1:4].tolist() and seen[0][0, [0, 4]].tolist() == [4, 5]


def test_a_prompt_inside_another_stands_alone_and_leaves_the_outer_one(llama):
    outer, inner = suffix(), SoftPrompt(embedding(seed=1), placement="suffix")
    with outer.attached(llama) as virtual:
        ids = virtual.ids[None]
        by_outer = llama(ids)
        with inner.attached(llama):
            by_inner = llama(ids)
        assert torch.equal(llama(ids), by_outer)
    with inner.attached(llama):
        assert torch.equal(llama(ids), by_inner) and not torch.equal(by_inner, by_outer)
