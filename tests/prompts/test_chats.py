"""Prompts in a chat: where they stand, which positions are whose, and what remembers the template."""

import chats
import pytest
import tiny
import torch
from toy import LABEL_WORDS, QUIET, ROWS
from tuned import QUICK

import tl_skillneurons as skn
from tl_skillneurons.interventions import Mean
from tl_skillneurons.interventions.ablation import ablate_where_known
from tl_skillneurons.interventions.references import measure_references
from tl_skillneurons.prompts.run import require_tuned_for
from tl_skillneurons.tasks.chat import Chat

CHAT = Chat(system="quick", assistant="the film is")
TEXTS = [row["text"] for row in tiny.sentences(7, seed=4)]
LABEL_IDS = [tiny.VOCABULARY[word] for word in LABEL_WORDS.values()]
EXACT = 1e-12  # float64 throughout


def task_of(chat, rows=ROWS):
    splits = {"train": rows[:24], "validation": rows[24:39], "test": rows[39:]}
    return skn.Task.from_datasets(splits, label_words=LABEL_WORDS, name="toy", chat=chat)


def prompt_of(chat, seed=0, n=3, **more):
    rows = torch.randn(n, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return skn.SoftPrompt(rows, placement="suffix", chat=chat, **more)


@pytest.fixture(scope="module")
def gpt2():
    return chats.chatting(dtype=torch.float64)


@pytest.fixture(scope="module")
def tuned(gpt2):
    with pytest.warns(UserWarning, match="not below chance"):  # 8 steps, which teach nothing
        (prompt,) = skn.fit_soft_prompts(gpt2, task_of(CHAT), **QUICK)
    return prompt


@torch.no_grad()
def test_the_prompt_stands_where_the_answer_begins_as_in_the_untouched_model(gpt2):
    untouched, prompt = tiny.hf_model("gpt2", dtype=torch.float64), prompt_of(CHAT)
    expected = []
    for text in TEXTS:
        ids = torch.tensor([chats.applied(gpt2.tokenizer, text, CHAT)])
        rows = torch.cat([untouched.get_input_embeddings()(ids), prompt.embedding[None]], dim=1)
        expected.append(untouched(inputs_embeds=rows).logits[0, -1, LABEL_IDS])
    for run in (skn.RunOptions(), skn.RunOptions(cache=skn.InputCache(gpt2), batch_size=3)):
        logits = skn.PromptedModel(gpt2, prompt, LABEL_WORDS, run=run).class_logits(TEXTS)
        torch.testing.assert_close(logits, torch.stack(expected), rtol=0, atol=EXACT)
    alone = skn.PromptedModel(gpt2, None, LABEL_WORDS, chat=CHAT).class_logits(TEXTS[:1])
    ids = torch.tensor([chats.applied(gpt2.tokenizer, TEXTS[0], CHAT)])
    torch.testing.assert_close(alone[0], untouched(ids).logits[0, -1, LABEL_IDS], rtol=0, atol=EXACT)


def test_positions_are_the_users_text_the_template_or_the_prompt(gpt2):
    tokens = skn.PromptedModel(gpt2, prompt_of(CHAT)).tokens(["good film", "the plot was slow"])
    kinds = torch.stack([tokens.is_padding, tokens.is_template, tokens.is_text, tokens.is_prompt])
    assert kinds.sum(0).eq(1).all()
    drawn = ["".join(".mtp"[int(k)] for k in row) for row in kinds.int().argmax(0)]
    #        <s> a quick </s> <s> the   text    </s> <s> very the film is   prompt
    assert drawn == ["..mmmmmmttmmmmmmppp", "mmmmmmttttmmmmmmppp"]
    assert not tokens.is_special.any()
    plain = skn.PromptedModel(gpt2, prompt_of(None)).tokens(TEXTS)
    assert not plain.is_template.any()


def test_a_text_that_is_too_long_is_cut_at_its_own_end(gpt2):
    prompted = skn.PromptedModel(gpt2, prompt_of(CHAT), max_length=18)
    long = "the plot was slow and dull"
    ids = prompted.cut(prompted.encode([long]))[0]
    assert ids == chats.applied(gpt2.tokenizer, "the plot was", CHAT)
    assert prompted.tokens([long]).ids.shape[1] == 18 and prompted.n_truncated([long, "good"]) == 1
    with pytest.raises(
        ValueError, match="3 prompt positions and 12 tokens of the chat template leave no room"
    ):
        skn.PromptedModel(gpt2, prompt_of(CHAT), max_length=15).tokens([long])


@torch.no_grad()
def test_interventions_and_readings_know_the_template(gpt2):
    prompted, neurons = skn.PromptedModel(gpt2, prompt_of(CHAT), LABEL_WORDS), [(0, 3), (1, 5)]
    tokens = prompted.tokens(TEXTS)
    name = "blocks.0.mlp.hook_post"
    seen = {}
    for where in ("all", "template", "text", "prompt"):

        def keep(act, hook, where=where):
            seen[where] = act[..., 3] == 0

        prompted.run_with_hooks(TEXTS, [*skn.ablate(neurons, positions=where)[:1], (name, keep)])
    for where, kind in (
        ("template", tokens.is_template),
        ("text", tokens.is_text),
        ("prompt", tokens.is_prompt),
    ):
        assert torch.equal(seen[where], kind)
    _, cache = prompted.run_with_cache(TEXTS, names_filter=name)
    mean = skn.prompts.neuron_activations(gpt2, prompted.prompt, TEXTS, positions="template")[:, 0]
    read = skn.prompts.neuron_activations(gpt2, prompted.prompt, TEXTS, positions="readout")[:, 0]
    for row, act in enumerate(cache[name]):
        torch.testing.assert_close(mean[row], act[tokens.is_template[row]].mean(0), rtol=0, atol=EXACT)
        torch.testing.assert_close(read[row], act[-1], rtol=0, atol=EXACT)
    plain = skn.PromptedModel(gpt2, prompt_of(None), LABEL_WORDS)
    with pytest.raises(ValueError, match="positions='template' needs texts in a chat template"):
        plain.class_logits(TEXTS, skn.ablate(neurons, positions="template"))


@torch.no_grad()
def test_an_intervention_everywhere_holds_the_template_at_its_own_reference_values(gpt2):
    task, neurons = task_of(CHAT), skn.NeuronSet.from_pairs([(0, 3), (1, 5)])
    prompted = skn.PromptedModel.for_task(gpt2, prompt_of(CHAT), task)
    references = measure_references(prompted, task, "report", None, ("prompt", "text", "template"))
    hooks = ablate_where_known(neurons, Mean(), "all", references, labels=None, seed=0)
    seen = {}
    prompted.run_with_hooks(
        TEXTS, [*hooks, ("blocks.0.mlp.hook_post", lambda act, hook: seen.update(act=act[..., 3]))]
    )
    tokens = prompted.tokens(TEXTS)
    for where, kind in (("prompt", "prompt"), ("text", "mean"), ("template", "template")):
        own = skn.prompts.neuron_activations(
            gpt2, prompted.prompt, list(task.split("report")["text"]), positions=kind
        )
        held = seen["act"][getattr(tokens, f"is_{where}")]
        torch.testing.assert_close(
            held, own[:, 0, 3].mean().expand_as(held), rtol=1e-6, atol=0
        )  # float32 means


def test_effects_at_the_template_need_a_chat(gpt2):
    with pytest.raises(ValueError, match="'toy' has none; make the task with chat="):
        skn.measure_effects(gpt2, prompt_of(None), task_of(None), [(0, 3)], positions="template", run=QUIET)


def test_what_is_tuned_and_scored_in_a_chat_remembers_it(gpt2, tuned, tmp_path):
    task, prompt = task_of(CHAT), tuned
    assert prompt.chat == CHAT and prompt.prepend_bos is None
    assert prompt.provenance["chat"] == "<s> a quick </s> <s> the {text} </s> <s> very the film is"
    again = skn.SoftPrompt.load(prompt.save(tmp_path / "prompt.safetensors"))
    assert again.chat == CHAT
    scores = skn.score_neurons(gpt2, again, task, run=QUIET)
    path = scores.save(tmp_path / "scores.safetensors")
    skn.scores.evaluate_rules(gpt2, prompt, task, skn.NeuronScores.load(path), run=QUIET)
    for other in (None, Chat(), Chat(system="quick", assistant="the film was")):
        with pytest.raises(ValueError, match="the prompt stands in a Chat"):
            require_tuned_for(prompt, task_of(other))
    with pytest.raises(ValueError, match="stands beside the text alone, the texts of 'toy' in a Chat"):
        skn.score_neurons(gpt2, prompt_of(None), task, run=QUIET)


def test_scores_of_bare_text_in_a_chat_are_not_used_with_another(gpt2):
    task = task_of(CHAT)
    scores = skn.score_neurons(gpt2, None, task, positions="readout", run=QUIET)
    alone = skn.score_neurons(gpt2, None, task_of(None), positions="readout", run=QUIET)
    assert not torch.equal(scores.baseline, alone.baseline)
    skn.scores.evaluate_rules(gpt2, None, task, scores, run=QUIET)
    with pytest.raises(ValueError, match=r"another task than 'toy' \(chat.system: 'quick' there, None now"):
        skn.scores.evaluate_rules(gpt2, None, task_of(Chat()), scores, run=QUIET)


def test_a_template_that_changed_since_is_noticed(gpt2, tuned):
    task = task_of(CHAT)
    scores = skn.score_neurons(gpt2, None, task, positions="last", run=QUIET)
    before = gpt2.tokenizer.chat_template
    try:
        gpt2.tokenizer.chat_template = before.replace("'very'", "'and'")
        with pytest.raises(
            ValueError, match=r"tuned in the chat template '<s> a quick.* very the film is', and"
        ):
            skn.PromptedModel(gpt2, tuned)
        with pytest.raises(ValueError, match=r"measured with other special tokens \(chat: "):
            skn.scores.evaluate_rules(gpt2, None, task, scores, run=QUIET)
    finally:
        gpt2.tokenizer.chat_template = before


def test_what_a_chat_rules_out_is_refused(gpt2):
    with pytest.raises(ValueError, match="got prepend_bos=True; leave it out"):
        skn.PromptedModel(gpt2, None, prepend_bos=True, chat=CHAT)
    with pytest.raises(ValueError, match="got prepend_bos=False beside chat"):
        prompt_of(CHAT, prepend_bos=False)
    with pytest.raises(ValueError, match="has no chat template"):
        skn.fit_soft_prompts(tiny.bridge("qwen2"), task_of(CHAT), **QUICK)


@pytest.mark.parametrize("chat", [True, {"system": "quick"}, "quick"])
def test_a_chat_that_is_none_is_refused_with_what_is_one(unchecked, gpt2, chat):
    with pytest.raises(TypeError, match=r"chat must be a tasks\.Chat, such as Chat\(system="):
        skn.PromptedModel(gpt2, None, chat=chat)
