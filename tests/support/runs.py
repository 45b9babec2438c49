"""Whole runs that take a second or two."""

from toy import QUIET

import tl_skillneurons as skn


def quick_run(model, task, out, **changes):
    """``find_skill_neurons`` with few steps and little evidence, and what is given in ``changes``."""
    settings = {
        "n_virtual_tokens": 2,
        "n_prompts": 2,
        "n_steps": 8,
        "top": 2,
        "evidence": skn.find.Evidence(n_permutations=99, n_curve_examples=4, n_curve_random=1),
        "training": skn.prompts.TrainingOptions(batch_size=8),
        "run": QUIET,
    }
    return skn.find_skill_neurons(model, task, out=out, **{**settings, **changes})
