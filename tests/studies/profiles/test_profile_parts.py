"""What a neuron writes, what it does alone, and who writes into it: against slow loops and planted truth."""

import families
import planted
import pytest
import tiny
import torch
from toy import QUIET, TASK, prompt_for

import tl_skillneurons as skn
from tl_skillneurons import NeuronSet
from tl_skillneurons.interventions import direct_effects
from tl_skillneurons.studies import NeuronProfiles, profile_neurons
from tl_skillneurons.studies.profiles import output_words as words_written
from tl_skillneurons.studies.profiles.single_effects import estimated_totals

NEURONS = NeuronSet([1, 0, 1], [3, 7, 40])
TEXTS = list(TASK.split("report")["text"])


@pytest.fixture(scope="module")
def of_planted():
    model, prompt, task = planted.model(), planted.prompt(), planted.task()
    scores = skn.score_neurons(model, prompt, task, run=QUIET)
    neurons = planted.NEURONS | planted.DECOY
    return profile_neurons(model, prompt, task, scores, neurons, n_texts=2, run=QUIET)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bert"])
def test_what_a_neuron_writes_is_what_its_direct_effect_says_of_every_word(family):
    model, prompt = tiny.bridge(family), prompt_for(family)
    prompted = skn.PromptedModel(model, prompt, {0: "negative", 1: "positive"})
    rows = {0: torch.tensor([7, 2]), 1: torch.tensor([3, 40])}
    found = words_written._pushed(prompted, TEXTS[:3], rows)
    with prompted.attached() as virtual, torch.enable_grad():
        _, gain = direct_effects.readout_gain(prompted, prompted.tokens(TEXTS[:3]), virtual)
    for layer, index in rows.items():
        logits = found[layer] @ model.W_U[:, prompted.label_ids]
        expected = gain[layer].mean(0)[:, index].T
        cap = expected.norm() / logits.norm()  # a softcap's slope, which is nearly the same for all
        assert float(cap) == pytest.approx(1, abs=0.05 if family == "gemma2" else 1e-4)
        torch.testing.assert_close(
            logits * cap, expected, rtol=1e-2 if family == "gemma2" else 1e-3, atol=1e-4
        )


def test_the_planted_answer_is_written_by_the_planted_neurons_and_not_by_the_decoy(of_planted):
    for layer, index in planted.NEURONS:
        profile = of_planted.of(layer, index)
        assert (profile.raised[0][0], profile.lowered[0][0]) == ("positive", "negative")
        assert profile.output_null["largest"] > profile.output_null["random_median"]
    decoy = of_planted.of(*next(iter(planted.DECOY)))
    assert decoy.output_words.logit.abs().max() < 1e-3 * profile.output_words.logit.abs().max()
    assert abs(decoy.effects["direct"]) < 1e-5


def test_scores_of_words_are_in_standard_deviations_and_a_direction_that_moves_all_alike_has_none():
    logits = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    z = words_written.vocabulary_scores(logits)
    torch.testing.assert_close(z, torch.tensor([[-1.2247449, 0.0, 1.2247449], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_an_estimated_total_is_the_slope_toward_the_mean_at_all_prompt_positions(family):
    model, prompt = tiny.bridge(family, dtype=torch.float64), prompt_for(family)
    prompted = skn.PromptedModel(model, prompt, {0: "negative", 1: "positive"})
    held_at = torch.randn(2, 48, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels = torch.tensor(TASK.split("report")["label"])
    found, every = estimated_totals(prompted, TEXTS, labels, NEURONS, held_at)
    of_chosen = every[NEURONS.layer, NEURONS.index].double()
    torch.testing.assert_close(of_chosen, found.mean(0), rtol=1e-5, atol=1e-7)
    step = 1e-6
    for example in (0, 5):
        at = prompted.tokens([TEXTS[example]]).prompt_columns()[0]
        for number, (layer, index) in enumerate(NEURONS):

            def toward(act, hook, where=(layer, index), at=at):
                moved = act.clone()
                moved[:, at, where[1]] += step * (held_at[where] - act[:, at, where[1]])
                return moved

            hooks = [(f"blocks.{layer}.mlp.out.hook_in", toward)]
            with torch.no_grad():
                before, after = (prompted.class_logits([TEXTS[example]], h)[0] for h in ([], hooks))
            change = (after - before) / step
            slope = float(change[1] - change[0]) * (1 if labels[example] else -1)
            assert float(found[example, number]) == pytest.approx(slope, rel=1e-3, abs=1e-8)


def test_every_neurons_effect_stands_beside_and_the_decoy_that_reads_as_well_moves_nothing(of_planted):
    driving = of_planted.driving
    assert driving.shape == planted.SHAPE
    assert {divmod(int(at), planted.D_MLP) for at in driving.flatten().argsort()[:3]} == set(planted.NEURONS)
    assert driving[planted.DECOY.layer, planted.DECOY.index].abs().item() < 0.1 * driving.abs().max()
    for layer, index in planted.NEURONS:
        total = of_planted.of(layer, index).effects["total"]
        assert driving[layer, index].item() == pytest.approx(total, rel=1e-4)


def test_the_planted_neurons_help_the_answer_and_the_planted_heads_write_the_label_into_them(of_planted):
    for layer, index in planted.NEURONS:
        profile = of_planted.of(layer, index)
        effects = profile.effects
        assert effects["direct"] < 0 and effects["direct_high"] < 0 and effects["total"] < 0
        assert effects["direct_low"] <= effects["direct"] <= effects["direct_high"]
        strongest = profile.heads.iloc[0]
        assert (strongest.head_layer, strongest["head"]) in planted.HEADS and strongest.p_family <= 0.05
        assert (profile.heads.random_in_sd < abs(strongest.in_sd)).all()
        assert (profile.heads.random_p_family > 0.05).all()


def test_parts_come_back_from_their_file(of_planted, tmp_path):
    again = NeuronProfiles.load(of_planted.save(tmp_path / "profiles.safetensors"))
    for name in ("output_words", "output_null", "effects", "heads"):
        assert getattr(again, name).equals(getattr(of_planted, name))
    assert again.of(1, 7).raised == of_planted.of(1, 7).raised
    assert {"word", "p_word", "direct", "total", "p_head"} <= set(again.to_dataframe())


def test_a_part_that_can_not_be_had_is_left_out_with_its_reason_and_the_others_stay():
    model = tiny.bridge("bert")
    model.original_model.config.architectures = ["BertModel"]
    words = prompt_for("bert")
    prompt = skn.SoftPrompt(words.embedding.detach(), placement="prefix", readout=torch.randn(2, 32))
    scores = skn.score_neurons(model, prompt, TASK, run=QUIET)
    found = profile_neurons(model, prompt, TASK, scores, NEURONS, run=QUIET)
    assert set(found.left_out) == {"output_words"} and found.output_words is None
    assert "has no language-model head, so its neurons write no words" in found.left_out["output_words"]
    assert found.of(1, 3).raised == [] and found.effects is not None
    bare = prompt_for("bert")
    scores = skn.score_neurons(model, bare, TASK, run=QUIET)
    found = profile_neurons(model, bare, TASK, scores, NEURONS, run=QUIET)
    assert set(found.left_out) == {"answers", "effects", "output_words"} and found.answers is None
    assert found.of(1, 3).highest[0].answer is None and found.of(1, 3).highest[0].pieces


def test_values_that_do_not_show_leave_out_words_alone():
    model, prompt = families.bridge("gemma4"), prompt_for("gemma4")
    scores = skn.score_neurons(model, prompt, TASK, run=QUIET)
    found = profile_neurons(model, prompt, TASK, scores, NeuronSet([1], [3]), run=QUIET)
    assert set(found.left_out) == {"words"} and "do not give what its heads wrote" in found.left_out["words"]
    assert found.heads is not None
