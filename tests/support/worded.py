"""Texts some of whose words tell the label, and neurons planted to follow a word or the label itself."""

import tiny
import torch
from toy import task_of

from tl_skillneurons.prompts.positions import current_tokens


def texts_with_words(n, share=0.6):
    """Labels take turns; in that share of the texts, "good" (label 1) or "bad" (label 0) tells them."""
    plain = [word for word in tiny.WORDS[:19] if word not in ("good", "bad")]
    generator = torch.Generator().manual_seed(3)
    rows = {}
    while len(rows) < n:
        length = int(torch.randint(4, 9, (), generator=generator))
        words = [plain[i] for i in torch.randint(len(plain), (length,), generator=generator).tolist()]
        label = len(rows) % 2
        if float(torch.rand((), generator=generator)) < share:
            words[int(torch.randint(length, (), generator=generator))] = ("bad", "good")[label]
        rows.setdefault(" ".join(words), label)
    return [{"text": text, "label": label} for text, label in rows.items()]


def worded_task():
    """60 texts each for train and select, 100 for report."""
    rows = texts_with_words(220)
    return task_of(rows, train=rows[:60], validation=rows[60:120], test=rows[120:])


def plant(model, task):
    """Neurons of layer 1 that follow the word "good" and the label, one of layer 0 that follows the label."""
    label_of = {
        tuple(tiny.VOCABULARY[word] for word in row["text"].split()): row["label"]
        for split in task.splits.values()
        for row in split
    }

    def planted(layer):
        def hook_function(act, hook):
            tokens = current_tokens(hook)
            if tokens is None:  # a trial run of the model without texts
                return act
            act = act.clone()
            for row in range(len(act)):
                own = tuple(tokens.ids[row][tokens.is_text[row] & ~tokens.is_special[row]].tolist())
                if own in label_of:
                    shake = 0.1 * torch.tensor(float(sum(own))).sin()
                    act[row, :, 5] = label_of[own] + shake
                    if layer == 1:
                        act[row, :, 3] = float(tiny.VOCABULARY["good"] in own) + shake
            return act

        return hook_function

    for layer in (0, 1):
        model.add_hook(f"blocks.{layer}.mlp.hook_post", planted(layer))
    return model
