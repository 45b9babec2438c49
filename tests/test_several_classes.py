"""Of more than two classes each is told from all others, as a task of two classes tells it or a slow loop does."""

import pytest
import tiny
import torch
from toy import HOOKS, QUIET, prompt_for, read, task_of

import tl_skillneurons as skn
from tl_skillneurons import attention, scores, studies

WORDS = {0: "negative", 1: "positive", 2: "other"}
ROWS = [
    {"text": row["text"], "label": n % 2 if n % 5 else 2} for n, row in enumerate(tiny.sentences(54, seed=2))
]
TASK = task_of(ROWS, WORDS)
CLASS = 2
ALONE = TASK.binary_subtasks(rest_word="very")[CLASS]
"""The same texts, with that class against all others as a task of its own."""
PROMPT = prompt_for("gpt2")
SKILL = skn.NeuronSet([0, 0, 1], [3, 5, 7], n_layers=2, d_mlp=48)


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("gpt2", dtype=torch.float64)


@pytest.fixture(scope="module")
def of_class(model):
    return scores.score_classes(model, PROMPT, TASK, run=QUIET)[CLASS]


@pytest.fixture(scope="module")
def alone(model):
    return skn.score_neurons(model, PROMPT, ALONE, run=QUIET)


def margin(z):
    return float(z[CLASS] - max(value for k, value in enumerate(z.tolist()) if k != CLASS))


def test_scores_of_labels_are_those_of_the_class_alone(model):
    kinds = ("auc", "best_threshold")
    how = {"n_permutations": 19, "run": QUIET}
    found = scores.score_labels(model, PROMPT, TASK, kinds, class_id=CLASS, **how)
    expected = scores.score_labels(model, PROMPT, ALONE, kinds, **how)
    for kind in kinds:
        assert torch.equal(found[kind].values, expected[kind].values)
        assert found[kind].provenance["class_id"] == CLASS and found[kind].null is not None
    with pytest.raises(ValueError, match=r"'toy' has 3 classes \(0, 1, 2\); give class_id=0 to 2"):
        scores.score_labels(model, PROMPT, TASK, kinds)


def test_gradients_are_of_the_margin_to_the_best_other_class(model):
    found = scores.score_gradients(model, PROMPT, TASK, class_id=CLASS, run=QUIET)
    split, step, (layer, position, neuron) = TASK.split("select"), 1e-5, (0, 1, 9)
    prompted = skn.PromptedModel(model, PROMPT, WORDS, run=QUIET)
    at, ends = -3 + position, []
    for change in (step, -step):

        def nudge(acts, hook, change=change):
            acts = acts.clone()
            acts[:, at, neuron] += change
            return acts

        with torch.no_grad():
            ends.append(list(map(margin, prompted.class_logits(split["text"], [(HOOKS[layer], nudge)]))))
    acts = read(model, PROMPT, split["text"])[:, layer, position, neuron].tolist()
    pushes = [
        (1 if label == CLASS else -1) * act * (up - down) / (2 * step)
        for label, act, up, down in zip(split["label"], acts, *ends, strict=True)
    ]
    expected = sum(pushes) / len(pushes)
    assert float(found.values[0, layer, position, neuron]) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="give class_id=0 to 2"):
        scores.score_gradients(model, PROMPT, TASK)
    found = scores.answer_targets(model, PROMPT, TASK, "logit_diff", class_id=CLASS, run=QUIET)
    with torch.no_grad():
        assert found.tolist() == pytest.approx(list(map(margin, prompted.class_logits(split["text"]))))


def test_votes_and_probes_of_one_class_are_those_of_the_class_alone(model, of_class, alone):
    found = studies.vote_and_probe(model, PROMPT, TASK, of_class, [3], n_random=1, run=QUIET)
    expected = studies.vote_and_probe(model, PROMPT, ALONE, alone, [3], n_random=1, run=QUIET)
    assert torch.equal(found.vote, expected.vote) and torch.equal(found.probe, expected.probe)
    assert torch.equal(found.prompt, tells_the_class(model))


def tells_the_class(model):
    """Whether the prompt's answer and the label of each example of "report" are both this class, or both others."""
    split = TASK.split("report")
    with torch.no_grad():
        answers = skn.PromptedModel(model, PROMPT, WORDS, run=QUIET).class_logits(split["text"]).argmax(1)
    return torch.tensor(
        [(a == CLASS) == (k == CLASS) for a, k in zip(answers.tolist(), split["label"], strict=True)]
    )


def test_words_of_one_class_are_those_of_the_class_alone(model, of_class, alone):
    how = {"n_words": 2, "min_texts": 3, "n_random": 19, "run": QUIET}
    found = studies.accuracy_without_words(model, PROMPT, TASK, of_class, SKILL, **how)
    expected = studies.accuracy_without_words(model, PROMPT, ALONE, alone, SKILL, **how)
    assert found.words.equals(expected.words)
    same = [name for name in found.groups.columns if name != "prompt_accuracy"]
    assert found.groups[same].equals(expected.groups[same])
    assert found.groups.prompt_accuracy[0] == pytest.approx(float(tells_the_class(model).double().mean()))
    with pytest.raises(ValueError, match="give class_id=0 to 2"):
        studies.strongest_words(TASK, 2, 3)


def test_source_words_have_the_share_of_each_class(model, tmp_path):
    found = attention.source_words(model, PROMPT, TASK, SKILL, [(0, 1)], run=QUIET)
    split = TASK.split("report")
    at = [
        label
        for text, label in zip(split["text"], split["label"], strict=True)
        for w in text.split()
        if w == "the"
    ]
    row = found.words.set_index("token").loc["the"]
    assert row.n == len(at)
    assert [row[f"share_label_{k}"] for k in range(3)] == pytest.approx(
        [at.count(k) / len(at) for k in range(3)]
    )
    assert attention.SourceWords.load(found.save(tmp_path / "words.safetensors")).words.equals(found.words)


def test_a_profile_has_the_heads_that_write_its_class(model, of_class, alone):
    parts = {"parts": ["heads"], "run": QUIET}
    found = studies.profile_neurons(model, [PROMPT], TASK, of_class, SKILL, **parts)
    expected = studies.profile_neurons(model, [PROMPT], ALONE, alone, SKILL, **parts)
    assert not found.left_out and found.heads.equals(expected.heads)


def test_calibration_of_one_class_is_that_of_the_class_alone(model):
    how = {"keep_outcomes": True, "run": QUIET}
    several = scores.score_classes(model, PROMPT, TASK, **how)[CLASS].outcomes
    expected = skn.score_neurons(model, PROMPT, ALONE, **how).outcomes
    few = {"n_repetitions": 2, "n_permutations": 19, "run": QUIET}
    found = scores.check_calibration(several, class_id=CLASS, **few)
    assert found == scores.check_calibration(expected, **few)
    with pytest.raises(ValueError, match=r"0 and 1, got \[0, 1, 2\]; give class_id"):
        scores.check_calibration(several, **few)
