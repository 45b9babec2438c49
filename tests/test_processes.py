"""Two gloo processes on a CPU: the same prompts and scores as one process alone."""

import os
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import pytest
import tiny
import torch

FAMILIES = ("llama", "bert")
JOB = """
import sys
import warnings
warnings.simplefilter("ignore")
import tiny
import torch
import tl_skillneurons as skn
from tl_skillneurons._processes import rank_and_count

out, *families = sys.argv[1:]
rank, count = rank_and_count()
four, one = (skn.RunOptions(batch_size=n, progress=False) for n in (4, 64))
training = skn.prompts.TrainingOptions(batch_size=4)
for family in families:
    model, task = tiny.bridge(family), tiny.task()
    prompts = skn.fit_soft_prompts(
        model, task, n_virtual_tokens=2, n_steps=4, training=training, seeds=(0, 1, 2), run=four
    )
    scores = skn.score_neurons(model, prompts, task, run=four)
    rules = skn.scores.evaluate_rules(model, prompts, task, scores, run=four)
    few = skn.score_neurons(  # one batch: a process has none
        model, prompts[0], task, n_permutations=19, keep_outcomes=True, run=one
    )
    torch.save(
        {
            "count": count,
            "prompts": [p.embedding.detach() for p in prompts],
            "seeds": [p.seed for p in prompts],
            "baseline": scores.baseline, "correct": scores.correct, "std": scores.std, "rules": rules.accuracy,
            "few": few.correct, "above": few.outcomes.above, "p": few.null.p_family,
            "few_baseline": few.baseline, "batches": scores.provenance["batches"],
        },
        f"{out}/{family}-{rank}.pt",
    )
"""
HERE = Path(__file__).parent


def run(folder):
    """The job in two processes."""
    folder.mkdir()
    job = folder / "job.py"
    job.write_text(JOB)
    path = os.pathsep.join([str(HERE / "support"), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *LAUNCHER, str(job), str(folder), *FAMILIES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def by_itself(folder, monkeypatch):
    """What the job gives in this process."""
    folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["job.py", str(folder), *FAMILIES])
    with warnings.catch_warnings():
        exec(JOB, {})


LAUNCHER = [  # runs torchrun, as on a machine with GPUs; the processes then find none and use the CPU
    *["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"],
    *["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"],
]


def test_two_processes_return_what_one_returns(tmp_path, monkeypatch):
    by_itself(tmp_path / "one", monkeypatch)
    run(tmp_path / "two")
    for family, rank in product(FAMILIES, (0, 1)):
        alone = torch.load(tmp_path / "one" / f"{family}-0.pt")
        found = torch.load(tmp_path / "two" / f"{family}-{rank}.pt")
        assert alone["count"] == 1 and found["count"] == 2
        for key, expected in alone.items():
            if key == "std":  # sums of squares do not carry their rounding along
                torch.testing.assert_close(found[key], expected, atol=1e-6, rtol=1e-6)
            elif isinstance(expected, torch.Tensor):
                assert torch.equal(found[key], expected), key
            elif key == "prompts":
                assert all(torch.equal(a, b) for a, b in zip(found[key], expected, strict=True))
            elif key != "count":
                assert found[key] == expected, key


def test_one_process_joins_nobody(monkeypatch):
    from tl_skillneurons import _processes

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert _processes.rank_and_count() == (0, 1) and _processes.gather("mine") == ["mine"]
    assert not torch.distributed.is_initialized()


def test_a_run_that_is_kept_in_a_folder_is_refused_to_several_processes(monkeypatch, tmp_path):
    from tl_skillneurons.find import phases as find

    monkeypatch.setattr(find, "rank_and_count", lambda: (1, 2))
    with pytest.raises(ValueError, match="kept by one process, and a launcher started several"):
        find.find_skill_neurons(tiny.bridge("llama"), tiny.task(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
