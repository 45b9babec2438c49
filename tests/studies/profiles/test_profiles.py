"""What drives each neuron: extreme texts, words that moved it against a slow loop, refusals, files."""

import math

import planted
import pytest
import tiny
import torch
from toy import QUIET, TASK, prompt_for, read

import tl_skillneurons as skn
from tl_skillneurons import NeuronSet, RunOptions
from tl_skillneurons.attention import decompose
from tl_skillneurons.neurons.choice import THESE
from tl_skillneurons.scores import evaluate_rules
from tl_skillneurons.studies import NeuronProfiles, profile_neurons
from tl_skillneurons.studies.profiles.one_neuron import PARTS_OF_TOTAL

NEURONS = NeuronSet([1, 0, 1], [3, 7, 40])
TEXTS = list(TASK.split("report")["text"])


@pytest.fixture(scope="module")
def scored():
    """By family: the model in float64, two prompts and their scores."""
    found = {}
    for family in ("gpt2", "bert", "llama"):
        model, prompts = (
            tiny.bridge(family, dtype=torch.float64),
            [prompt_for(family), prompt_for(family, seed=1)],
        )
        found[family] = model, prompts, TASK, skn.score_neurons(model, prompts, TASK, run=QUIET)
    return found


@pytest.fixture(scope="module")
def profiled(scored):
    parts = ["words"]
    return {
        family: profile_neurons(*args, NEURONS, n_texts=3, parts=parts, run=QUIET)
        for family, args in scored.items()
    }


@pytest.fixture(scope="module")
def of_planted():
    model, prompt, task = planted.model(torch.float64), planted.prompt(), planted.task()
    scores = skn.score_neurons(model, prompt, task, run=QUIET)
    return profile_neurons(
        model, prompt, task, scores, planted.NEURONS, n_texts=4, parts=["words"], run=QUIET
    )


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_texts_are_the_extremes_of_the_activation_at_the_neurons_own_position(scored, profiled, family):
    model, prompts, _, scores = scored[family]
    found = profiled[family]
    for number, prompt in enumerate(prompts):
        acts = read(model, prompt, TEXTS)
        answers = skn.PromptedModel(model, prompt, TASK.label_words).class_logits(TEXTS).argmax(1)
        assert torch.equal(found.answers[number], answers)
        for k, (layer, index) in enumerate(NEURONS):
            right = scores.accuracy[number, layer, :, index]
            at = int((right - 0.5).abs().argmax())
            assert found.position[number, k] == at
            torch.testing.assert_close(
                found.activations[number, :, k], acts[:, layer, at, index], rtol=1e-9, atol=1e-12
            )
            assert found.baseline[number, k] == scores.baseline[number, layer, at, index]
    for k, (layer, index) in enumerate(NEURONS):
        one, own = found.of(layer, index), found.activations[0, :, k].tolist()
        assert [text.activation for text in one.highest] == sorted(own, reverse=True)[:3]
        assert [text.activation for text in one.lowest] == sorted(own)[:3]
        for text in (*one.highest, *one.lowest):
            assert own[text.example] == text.activation and TEXTS[text.example] == text.text
            assert text.label == TASK.split("report")["label"][text.example]
            assert text.answer == found.answers[0, text.example]
            assert "".join(piece.text for piece in text.pieces) == text.text


def test_what_words_moved_is_pattern_times_value_times_what_the_neuron_reads_in_a_slow_loop(scored, profiled):
    model, prompts, _, _ = scored["gpt2"]
    prompted, profile = skn.PromptedModel(model, prompts[0]), profiled["gpt2"].of(1, 3)
    at = int(profile.position[0])
    text = profile.highest[0]
    with torch.no_grad():
        _, cache = prompted.run_with_cache([text.text])
    tokens = prompted.tokens([text.text])
    query = int(tokens.prompt_columns()[0, at])
    block = model.blocks[1]
    x = cache["blocks.1.hook_resid_mid"][0, query]
    scale = (x - x.mean()).square().mean().add(1e-5).sqrt()
    norm = block.ln2.original_component
    reads = norm.weight / scale * model.blocks[1].mlp.W_in[:, 3]
    slow = torch.zeros(tokens.ids.shape[1], dtype=torch.float64)
    for source in range(len(slow)):
        for layer in (0, 1):
            for head in range(4):
                value = cache[f"blocks.{layer}.attn.hook_v"][0, source].reshape(4, 8)[head]
                written = (
                    cache[f"blocks.{layer}.attn.hook_pattern"][0, head, query, source]
                    * value
                    @ model.blocks[layer].attn.W_O[head]
                )
                slow[source] += (written - written.mean()) @ reads
    own = tokens.is_text[0] & ~tokens.is_special[0]
    moved = [piece.moved for piece in text.pieces if piece.moved is not None]
    torch.testing.assert_close(torch.tensor(moved, dtype=torch.float64), slow[own], rtol=1e-6, atol=1e-9)
    others = torch.tensor([value for _, value in text.others], dtype=torch.float64)
    torch.testing.assert_close(others, slow[~own], rtol=1e-6, atol=1e-9)
    assert [name for name, _ in text.others] == ["<s>", "<v0>", "<v1>", "<v2>"]
    pre = cache["blocks.1.mlp.hook_pre"][0, query, 3]
    assert text.parts["total"] == pytest.approx(float(pre), rel=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_each_word_has_what_the_neuron_itself_does_there(scored, profiled, family):
    model, prompts, _, _ = scored[family]
    prompted, (layer, index) = skn.PromptedModel(model, prompts[0]), next(iter(NEURONS))
    text = profiled[family].of(layer, index).lowest[0]
    with torch.no_grad():
        _, cache = prompted.run_with_cache([text.text])
    tokens = prompted.tokens([text.text])
    own = tokens.is_text[0] & ~tokens.is_special[0]
    expected = cache[f"blocks.{layer}.mlp.hook_post"][0, own, index]
    at_words = [piece.activation for piece in text.pieces if piece.activation is not None]
    torch.testing.assert_close(torch.tensor(at_words, dtype=expected.dtype), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_all_that_moved_a_neuron_sums_to_what_is_taken_apart(profiled, family):
    for profile in profiled[family]:
        for text in (*profile.highest, *profile.lowest):
            assert sum(text.parts[name] for name in PARTS_OF_TOTAL) == pytest.approx(
                text.parts["total"], rel=1e-6
            )
            words = sum(piece.moved for piece in text.pieces if piece.moved is not None)
            assert words == pytest.approx(text.parts["from_words"], abs=1e-9)
            if family == "llama":  # gated: the activation itself
                assert text.parts["total"] == pytest.approx(text.activation, rel=1e-9)
    assert any(name == "<mask>" for name, _ in profiled["bert"].of(1, 3).highest[0].others)


def test_a_gated_activation_is_shared_out_equally_by_its_gate_and_by_what_it_is_multiplied_with(scored):
    model, prompts, _, _ = scored["llama"]
    gate, up, post = (
        decompose(model, prompts[0], TEXTS[:1], NEURONS, projection=name) for name in ("pre", "up", "post")
    )
    a = post.total[..., None, None]
    acts = torch.nn.functional.silu(gate.total) * up.total
    torch.testing.assert_close(post.total, acts, rtol=1e-6, atol=1e-9)
    expected = a / 2 * (gate.heads / gate.total[..., None, None] + up.heads / up.total[..., None, None])
    torch.testing.assert_close(post.heads, expected, rtol=1e-6, atol=1e-9)
    assert post.unexplained < 1e-9


def test_the_words_that_carry_the_label_move_the_planted_neurons_most(of_planted):
    for profile in of_planted:
        for text in (*profile.highest, *profile.lowest):
            most = max(text.pieces, key=lambda piece: abs(piece.moved or 0))
            assert most.text == ("good" if text.label else "bad")
            assert math.copysign(1, most.moved) == (1 if text.label else -1)
        assert [text.label for text in profile.highest] == [1] * 4 and profile.rule["accuracy"] == 1
    first = of_planted.of(1, 7)
    assert first.correlated[0][2] > 0.99 and {pair[:2] for pair in first.correlated} == {(2, 3), (2, 11)}


def test_rules_are_those_that_evaluate_rules_gives(scored, profiled):
    expected = evaluate_rules(*scored["bert"], NEURONS, run=QUIET).table
    assert profiled["bert"].rules.equals(expected)
    assert profiled["bert"].of(0, 7).rule["low"] == expected.low[1]


def test_batches_cache_and_the_number_of_profiled_neurons_change_nothing(scored, profiled):
    cache = skn.InputCache(scored["llama"][0])
    run = RunOptions(batch_size=2, cache=cache, progress=False)
    again = profile_neurons(*scored["llama"], NeuronSet([1], [40]), n_texts=3, parts=["words"], run=run)
    assert cache.n_runs == len(TEXTS)  # each text runs once for all parts and prompts
    one, other = profiled["llama"].of(1, 40), again.of(1, 40)
    assert one.texts.example.tolist() == other.texts.example.tolist()
    torch.testing.assert_close(
        torch.tensor(one.words.moved), torch.tensor(other.words.moved), rtol=1e-6, atol=1e-9
    )


def test_they_come_back_from_their_file_and_show_themselves_in_a_line(profiled, tmp_path):
    found = profiled["gpt2"]
    again = NeuronProfiles.load(found.save(tmp_path / "profiles.safetensors"))
    assert again.to_dataframe().equals(found.to_dataframe()) and again.words.equals(found.words)
    assert again.texts.equals(found.texts) and torch.equal(again.activations, found.activations)
    assert again.settings == found.settings and again.of(0, 7).highest == found.of(0, 7).highest
    assert repr(found).startswith(
        "NeuronProfiles(n_neurons=3, n_prompts=2, n_examples=15, role='report', left_out=[]"
    )
    assert "highest_text" in found._repr_html_() and repr(found.of(0, 7)).startswith(
        "NeuronProfile(0.7: rule "
    )
    content = bytearray((tmp_path / "profiles.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="checksum does not fit"):
        NeuronProfiles.load(tmp_path / "bad.safetensors")


def test_a_profile_without_words_takes_nothing_apart(scored):
    found = profile_neurons(*scored["gpt2"], NEURONS, parts=[], role="select", run=QUIET)
    assert found.words is None and "from_words" not in found.texts
    profile = found.of(1, 3)
    assert profile.highest[0].pieces == () and profile.highest[0].parts == {} and profile.most_moved == 0
    assert len(profile.highest) == 7  # at most half of the 15 are called high
    chosen = scored["gpt2"][3].top(2)
    options = {"parts": [], "role": "select", "run": QUIET}
    with pytest.raises(ValueError, match=r"chose these neurons.*or insist with on_chosen_examples=True"):
        profile_neurons(*scored["gpt2"], chosen, **options)
    on_select = profile_neurons(*scored["gpt2"], chosen, on_chosen_examples=True, **options)
    assert set(on_select.to_dataframe().neurons_chosen) == {THESE} and THESE in repr(on_select)
    assert set(found.to_dataframe().neurons_chosen) == {"unknown"} and "chosen" not in repr(found)


REFUSED = [
    ({"neurons": NeuronSet([], [])}, "at least one neuron, got none"),
    ({"parts": ["word"]}, "parts must be"),
    ({"prompt": 2}, r"prompt must be in \[0, 2\), got 2"),
    ({"n_texts": 0}, "n_texts must be"),
    ({"prompts": 1}, "give the prompts that were scored"),
    ({"scores": "last"}, "profiles are of neurons at the prompt"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_can_not_be_profiled_is_refused(scored, change, message):
    model, prompts, task, scores = scored["gpt2"]
    given = {"prompts": prompts, "scores": scores, "neurons": NEURONS} | change
    if change == {"prompts": 1}:
        given["prompts"] = prompts[:1]
    if change == {"scores": "last"}:
        given["scores"] = skn.score_neurons(model, prompts, task, positions="last", run=QUIET)
    with pytest.raises(ValueError, match=message):
        profile_neurons(model, task=task, run=QUIET, **given)


def test_a_neuron_that_is_not_profiled_is_named_with_those_that_are(profiled):
    with pytest.raises(KeyError, match=r"neuron 0.1 isn't profiled; these are: 1.3, 0.7, 1.40"):
        profiled["gpt2"].of(0, 1)


def test_a_task_without_label_words_is_profiled_where_the_prompt_has_a_read_out_of_its_own():
    rows = tiny.sentences(54, seed=2)
    task = skn.Task.from_texts([row["text"] for row in rows], [("no", "yes")[row["label"]] for row in rows])
    readout = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model, prompt = tiny.bridge("bert"), prompt_for("bert", readout=readout)
    scores = skn.score_neurons(model, prompt, task, run=QUIET)
    found = skn.studies.profile_neurons(model, [prompt], task, scores, scores.top(1), run=QUIET)
    assert found.settings["label_words"] == [] and found.settings["label_names"] == ["no", "yes"]
