"""A task out of what a tiny model writes, with its neurons read where the answer begins."""

import chats
import torch
from toy import QUIET

import tl_skillneurons as skn
from tl_skillneurons.tasks import Chat, from_answers


def test_a_models_own_answers_are_a_task_whose_questions_are_asked_alike_when_neurons_are_read():
    model = chats.chatting()
    asked = skn.PromptedModel(model, None, chat=Chat(system="quick"), run=skn.RunOptions(batch_size=16))
    words = ("the film", "a plot", "bright music", "slow scene", "dull cast")
    rows = [
        {"q": f"{one} {two}"}
        for one in words
        for two in ("is bad", "was good", "not very", "but quick", "and the")
    ]
    found = from_answers(
        asked,
        rows,
        question="q",
        judge=lambda answer, row: len(answer) % 2 == 0,
        writing={"max_new_tokens": 3, "temperature": 5.0},
        unended="judge",
    )
    answers = asked.generate([row["q"] for row in rows], 3, temperature=5.0).answers
    assert tuple(found.table.answer) == answers
    assert found.table.label.tolist() == ["right" if len(one) % 2 == 0 else "wrong" for one in answers]
    scores = skn.score_neurons(model, None, found.task, positions="readout", run=QUIET)
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
