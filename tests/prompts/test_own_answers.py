"""A task out of what a tiny model writes, with its neurons read where the answer begins."""

import chats
import pytest
import torch
from toy import QUIET

import tl_skillneurons as skn
from tl_skillneurons.tasks import Chat, from_answers


@pytest.fixture(scope="module")
def found():
    model = chats.chatting()
    asked = skn.PromptedModel(model, None, chat=Chat(system="quick"), run=skn.RunOptions(batch_size=16))
    words = ("the film", "a plot", "bright music", "slow scene", "dull cast")
    rows = [
        {"q": f"{one} {two}"}
        for one in words
        for two in ("is bad", "was good", "not very", "but quick", "and the")
    ]
    writing = {"max_new_tokens": 3, "temperature": 5.0}
    ends = {"judge": lambda answer, row: len(answer) % 2 == 0, "unended": "judge"}
    return asked, from_answers(asked, rows, question="q", writing=writing, **ends)


def test_a_models_own_answers_are_a_task_whose_questions_are_asked_alike_when_neurons_are_read(found):
    asked, found = found
    answers = asked.generate(found.table.text.tolist(), 3, temperature=5.0).answers
    assert tuple(found.table.answer) == answers
    assert found.table.label.tolist() == ["right" if len(one) % 2 == 0 else "wrong" for one in answers]
    scores = skn.score_neurons(asked.model, None, found.task, positions="readout", run=QUIET)
    texts = list(found.task.split("baseline")["text"])
    with torch.no_grad():
        expected = torch.stack(
            [
                asked.run_with_cache([text], names_filter="blocks.0.mlp.hook_post")[1][
                    "blocks.0.mlp.hook_post"
                ][0, -1]
                for text in texts
            ]
        )
    torch.testing.assert_close(scores.baseline[0, 0, 0], expected.double().mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", ["answer_first", "answer_last", "answer"])
@torch.no_grad()
def test_neurons_are_read_at_the_answer_as_when_it_was_written(found, positions):
    asked, found = found
    task = found.with_answers()
    assert task.class_counts("train") == found.task.class_counts("train")
    rows = found.table[found.table.kept].set_index("text")
    scores = skn.score_neurons(asked.model, None, task, positions=positions, run=QUIET)
    name, expected = "blocks.0.mlp.hook_post", []
    for text in found.task.split("baseline")["text"]:
        ids = chats.applied(asked.model.tokenizer, text, asked.chat)
        answer = asked.model.tokenizer(rows.answer[text], add_special_tokens=False)["input_ids"]
        act = asked.model.run_with_cache(torch.tensor([ids + answer]), names_filter=name)[1][name][
            0, len(ids) :
        ]
        expected.append({"answer_first": act[0], "answer_last": act[-1], "answer": act.mean(0)}[positions])
    torch.testing.assert_close(
        scores.baseline[0, 0, 0], torch.stack(expected).double().mean(0), rtol=0, atol=1e-5
    )


def test_what_was_written_is_a_kind_of_position_and_is_never_cut(found):
    asked, found = found
    texts = list(found.with_answers().split("train")["text"])[:4]
    tokens = asked.tokens(texts)
    kinds = torch.stack([tokens.is_padding, tokens.is_template, tokens.is_text, tokens.is_generated])
    assert kinds.sum(0).eq(1).all() and tokens.is_generated.any(1).all() and tokens.is_generated[:, -1].all()
    seen = {}
    hooks = [*skn.ablate([(0, 3)], positions="generated")]
    asked.run_with_hooks(
        texts, [*hooks, ("blocks.0.mlp.hook_post", lambda act, hook: seen.update(zero=act[..., 3] == 0))]
    )
    assert torch.equal(seen["zero"], tokens.is_generated)
    longest = tokens.ids.shape[1] - 1
    short = skn.PromptedModel(asked.model, None, chat=asked.chat, max_length=longest).tokens(texts)
    assert short.n_truncated > 0 and torch.equal(short.is_generated.sum(1), tokens.is_generated.sum(1))
    with pytest.raises(ValueError, match="stands behind the text, and example 0 has none"):
        skn.score_neurons(asked.model, None, found.task, positions="answer_last", run=QUIET)


def test_answers_of_other_neurons_are_not_taken_from_the_file_and_those_of_functions_are_not_kept(tmp_path):
    asked = skn.PromptedModel(chats.chatting(), None, chat=Chat(system="quick"))
    rows = [
        {"q": f"the film {word}"} for word in ("is bad", "was good", "not very", "but quick", "and the", "a")
    ]

    def ask(some, edit=skn.ablate, **how):
        writing = {"max_new_tokens": 2, "interventions": edit(some, positions="generated", **how)}
        numbered = iter(range(len(rows)))
        return from_answers(
            asked,
            rows,
            question="q",
            judge=lambda answer, row: next(numbered) % 2 == 0,
            writing=writing,
            unended="judge",
            path=tmp_path / "answers.json",
        )

    first = ask([(0, 3)])
    assert ask([(0, 3)]).table.equals(first.table)
    with pytest.raises(ValueError, match="has answers of another call"):
        ask([(0, 4)])
    with pytest.raises(ValueError, match="has answers of another call"):
        ask([(0, 3)], skn.attention.ablate_heads)
    with pytest.raises(ValueError, match="a file can't tell one hook function from another"):
        ask([(0, 3)], how=lambda act, hook: act)
