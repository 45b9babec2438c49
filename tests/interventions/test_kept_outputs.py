"""A panel's file: an interrupted call goes on where it stopped, more goes into it, other settings do not."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import tiny
import torch
from toy import QUIET

from tl_skillneurons import EffectPanel, NeuronSet, PromptedModel, SoftPrompt
from tl_skillneurons.interventions import Beyond, Examples, Scale, measure_effects

TASK = tiny.task(n_train=8, n_select=10, n_report=6)
NEURONS = NeuronSet([1], [7])
BARE = Examples(reference=None)


def prompt(seed=0):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    return SoftPrompt(rows, placement="suffix", provenance={}, seed=seed)


BOTH = [prompt(0), prompt(1)]


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("llama")


def run(model, prompts=None, task=TASK, neurons=NEURONS, **changes):
    options = {"interventions": "zero", "n_random": 19, "examples": BARE, "run": QUIET, **changes}
    return measure_effects(model, prompts or BOTH, task, neurons, **options)


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """The content of a finished file."""
    path = tmp_path_factory.mktemp("finished") / "panel.safetensors"
    run(model, prompt(), path=path)
    return path.read_bytes()


def counted(monkeypatch, stop_after=None):
    """How many runs of all texts there were; raises before one too many."""
    real, calls = PromptedModel.answering, []

    @contextmanager
    def answering(self, texts):
        with real(self, texts) as logits:

            def counted(fwd_hooks=()):
                if len(calls) == stop_after:
                    raise KeyboardInterrupt
                calls.append(1)
                return logits(fwd_hooks)

            yield counted

    monkeypatch.setattr(PromptedModel, "answering", answering)
    return calls


def test_going_on_measures_only_what_is_left(model, tmp_path, monkeypatch):
    path = tmp_path / "new" / "panel.safetensors"
    options = {"beyond": Beyond(direct=True)}
    whole = run(model, **options)
    for n_done in (1, 59):  # within the first prompt, then within the second
        with monkeypatch.context() as patch:
            counted(patch, stop_after=n_done)
            with pytest.raises(KeyboardInterrupt):
                run(model, path=path, **options)
        with pytest.raises(ValueError, match="is of a call that was interrupted"):
            EffectPanel.load(path)
    calls = counted(monkeypatch)
    again = run(model, path=path, **options)
    assert len(calls) == 2 * (1 + 39) - (1 + 59)
    assert again.to_dataframe().equals(whole.to_dataframe())
    assert [file.name for file in path.parent.iterdir()] == ["panel.safetensors"]
    calls.clear()
    run(model, path=path, **options)
    assert not calls and EffectPanel.load(path).to_dataframe().equals(whole.to_dataframe())


def test_more_interventions_positions_and_draws_go_into_the_same_file_and_the_rest_is_kept(
    model, tmp_path, monkeypatch, finished
):
    path = tmp_path / "panel.safetensors"
    path.write_bytes(finished)
    first = EffectPanel.load(path)
    calls = counted(monkeypatch)
    more = run(model, prompt(), path=path, n_random=20)
    assert len(calls) == 2  # a twentieth draw of each control
    [old], [new] = first.measured, more.measured
    assert all(torch.equal(new.outputs[key], old.outputs[key]) for key in old.outputs)
    calls.clear()
    run(model, prompt(), path=path, interventions=["zero", Scale(0.5)], positions=["prompt", "all"])
    assert len(calls) == 3 * 39
    calls.clear()
    run(model, prompt(), path=path, n_random=20)
    assert not calls  # what an earlier call measured is still there


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompts": prompt(9)}, "prompts: "),
        ({"prompts": BOTH}, "prompts: .*; max_length: "),
        (
            {"neurons": NeuronSet([1], [8])},
            r"neurons.whole: \[\[1, 7\]\] there, \[\[1, 8\]\] now\)",
        ),
        ({"neurons": {"skill": NEURONS}}, r"neurons\.whole: .*; neurons\.skill: "),
        ({"task": replace(TASK, template="{text}!")}, "tasks: "),
        ({"seed": 1}, r"seed: 0 there, 1 now\)"),
        ({"examples": Examples(role="select", reference=None)}, r"role: 'report' there, 'select' now\)"),
        ({"examples": Examples()}, "matched_on: .*; reference: "),
        (
            {"examples": Examples(reference=None, max_length=40)},
            r"max_length: \[\[48\]\] there, \[\[40\]\] now\)",
        ),
        ({"beyond": Beyond(direct=True)}, r"direct: False there, True now\)"),
    ],
)
def test_a_file_of_other_settings_is_refused_naming_them(model, tmp_path, finished, changes, named):
    path = tmp_path / "panel.safetensors"
    path.write_bytes(finished)
    with pytest.raises(ValueError, match=rf"is from another run \(.*{named}"):
        run(model, **{"prompts": prompt(), "path": path, **changes})
    assert path.read_bytes() == finished


def test_a_file_of_another_model_or_none_of_ours_is_refused(model, tmp_path, finished):
    path = tmp_path / "panel.safetensors"
    path.write_bytes(finished)
    with pytest.raises(ValueError, match=r"is from another run \(model\."):
        run(tiny.bridge("mistral"), prompt(), path=path)
    saved = prompt().save(tmp_path / "prompt.safetensors")
    with pytest.raises(ValueError, match="holds a SoftPrompt, expected a EffectPanel"):
        run(model, prompt(), path=saved)
    path.write_text("{")
    with pytest.raises(ValueError, match="is corrupt or not a safetensors file"):
        run(model, prompt(), path=path)
