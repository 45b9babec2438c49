"""Correlations with any number per text: planted targets, the model's own answers, and what is refused."""

import chats
import numpy as np
import pytest
import tiny
import torch
from scipy import stats
from toy import QUIET, TASK, prompt_for, read

import tl_skillneurons as skn
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.scores import Targets
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks import Chat


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


def test_a_planted_target_is_found_significant_and_kept_in_the_file(models, tmp_path):
    model, prompt = models["bert"], prompt_for("bert")
    texts = [row["text"] for row in tiny.sentences(60, seed=9)]
    acts = read(model, prompt, texts)
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = acts[:, 1, 2, 7] + 0.3 * acts[:, 1, 2, 7].std() * noise
    found = skn.scores.score_targets(
        model, prompt, texts, Targets(target, name="rating", role="report"), n_permutations=99, run=QUIET
    )
    expected = np.corrcoef(acts[:, 1, 2, 7], target)[0, 1]
    assert float(found.values[0, 1, 2, 7]) == pytest.approx(expected, abs=1e-9)
    assert (1, 7) in found.significant()
    assert found.direction[1, 7] == 1
    back = skn.scores.NeuronStatistic.load(found.save(tmp_path / "rating.safetensors"))
    assert torch.equal(back.values, found.values) and torch.equal(back.null.p_family, found.null.p_family)
    assert (back.name, back.role, back.n_examples) == ("pearson", "report", 60)
    assert back.provenance["target"] == "rating" and "p_family" in back.to_dataframe()
    with pytest.raises(ValueError, match="holds a NeuronStatistic, expected a NeuronScores"):
        skn.NeuronScores.load(tmp_path / "rating.safetensors")


def test_the_models_own_answers_are_targets(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    split = TASK.split("select")
    with torch.no_grad():
        logits = skn.PromptedModel(model, prompt, TASK.label_words).class_logits(split["text"])
    p = logits.softmax(1)
    right = p[torch.arange(len(p)), split["label"]]
    for what, expected in {
        "confidence": p.amax(1),
        "probability": right,
        "loss": -right.log(),
        "logit_diff": logits[:, 1] - logits[:, 0],
    }.items():
        torch.testing.assert_close(skn.scores.answer_targets(model, prompt, TASK, what), expected.double())
    targets = skn.scores.answer_targets(model, prompt, TASK, "loss")
    found = skn.scores.score_targets(model, prompt, list(split["text"]), targets, kind="spearman", run=QUIET)
    assert found.values.abs().max() <= 1 and found.name == "spearman"


@pytest.mark.parametrize(
    "targets, settings, message",
    [
        ([1.0] * 3, {}, "target is 1 for every example"),
        ([1.0, float("nan"), 2.0], {}, "targets must be finite, got nan for example 1"),
        ([1.0, 2.0], {}, r"one number for each of 3 texts, got shape \(2,\)"),
        (Targets([1.0, 2.0, 3.0], [0, 0, 0]), {}, "weights sum to zero"),
        (Targets([1.0, 2.0, 3.0], [1, -1, 0]), {}, "at least 0 for each of 3 texts"),
        (Targets([1.0, 1.0, 3.0], [1, 1, 0], "rating"), {}, "rating is 1 for every example"),
        ([1.0, 2.0, 3.0], {"kind": "kendall"}, "kind must be one of 'pearson', 'spearman'"),
    ],
)
def test_targets_and_weights_that_make_no_sense_are_refused(models, targets, settings, message):
    texts = ["the film was good", "a dull plot", "bad music"]
    with pytest.raises(ValueError, match=message):
        skn.scores.score_targets(models["gpt2"], prompt_for("gpt2"), texts, targets, run=QUIET, **settings)


def test_activations_that_never_change_are_refused(models):
    with pytest.raises(ValueError, match="every neuron's activation is the same for every example"):
        skn.scores.score_targets(
            models["gpt2"],
            prompt_for("gpt2"),
            ["the film"] * 3,
            [1, 2, 3],
            run=RunOptions(batch_size=3, progress=False),
        )


def test_a_target_takes_its_weight_along_so_that_weights_by_its_size_raise_no_false_alarms(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    texts = [row["text"] for row in tiny.sentences(30, seed=9)]
    n_runs, false = 40, 0
    for seed in range(n_runs):
        target = torch.randn(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
        given = Targets(target, weights=target.abs())
        found = skn.scores.score_targets(model, prompt, texts, given, n_permutations=39, seed=seed, run=QUIET)
        false += len(found.significant()) > 0
    assert stats.binomtest(false, n_runs, 0.05, alternative="greater").pvalue > 0.01


def test_texts_that_belong_together_get_another_units_target_as_one(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    texts = [row["text"] for row in tiny.sentences(8, seed=9)]
    twice = [text for text in texts for _ in (0, 1)]
    target = torch.arange(8.0).repeat_interleave(2)
    alone = skn.scores.score_targets(model, prompt, texts, target[::2], n_permutations=39, run=QUIET)
    found = skn.scores.score_targets(model, prompt, twice, target, n_permutations=39, run=QUIET)
    assert (found.null.unit, found.null.n_units) == ("text", 8)  # equal texts are one unit
    assert found.provenance["units"] == {"what": "text", "n": 8, "n_effective": 8} and found.provenance[
        "n_cut"
    ] == {"select": 0}
    assert found.null.smallest_p == pytest.approx(alone.null.smallest_p)
    authors = Units.of([[k // 4 for k in range(16)]], what="author")
    by_author = Targets(torch.arange(4.0).repeat_interleave(4), units=authors)
    assert "16 examples of select, 4 units (author))" in repr(
        skn.scores.score_targets(model, prompt, twice, by_author, run=QUIET)
    )
    few = skn.scores.score_targets(model, prompt, twice, by_author, n_permutations=39, run=QUIET)
    assert few.null.n_permutations == 23 and few.null.smallest_p == pytest.approx(1 / 24)
    with pytest.raises(ValueError, match="units must be of the 8 texts, got those of 16"):
        skn.scores.score_targets(model, prompt, texts, Targets(target[::2], units=authors), run=QUIET)


def test_texts_without_a_prompt_are_read_in_the_chat_that_is_given():
    model, chat = chats.chatting(), Chat(system="quick")
    texts = ["the film was good", "a dull plot", "music", "a bright and slow scene", "bad cast"]
    targets = Targets([1.0, 2.0, 4.0, 8.0, 3.0], chat=chat)
    found = skn.scores.score_targets(model, None, texts, targets, positions="readout", run=QUIET)
    rows = []
    for text in texts:
        ids = torch.tensor([chats.applied(model.tokenizer, text, chat)])
        with torch.no_grad():
            _, cache = model.run_with_cache(ids, names_filter="blocks.0.mlp.hook_post")
        rows.append(cache["blocks.0.mlp.hook_post"][0, -1, 7])
    expected = stats.pearsonr(torch.stack(rows).double().numpy(), targets.values).statistic
    assert float(found.values[0, 0, 0, 7]) == pytest.approx(expected, abs=1e-5)
    skill = skn.NeuronSet([0], [7], n_layers=2, d_mlp=48)
    told = [
        skn.studies.position_share(model, None, texts, skill, chat=one, run=QUIET) for one in (chat, None)
    ]
    assert told[0] != told[1]
