"""The command with a tiny model behind it, and a finished run that all tests of a worker share."""

import json
import os
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from commands import QUICK, WORDS, ask
from filelock import FileLock
from planted import model as planted_model
from planted import sentences


@contextmanager
def tiny_behind():
    """The command with a tiny model that can do the task behind ``--model``, whatever it is given."""
    from tl_skillneurons import cli
    from tl_skillneurons.find import evidence
    from tl_skillneurons.models import loading
    from tl_skillneurons.report import page

    with pytest.MonkeyPatch.context() as patch:
        less = partial(evidence.Evidence, n_permutations=99, n_curve_examples=4, n_curve_random=1)
        patch.setattr(evidence, "Evidence", less)
        patch.setattr(page, "page_of", lambda findings: "<p>drawn elsewhere</p>")  # it takes a second
        patch.setattr(loading, "load_model", lambda name, **options: planted_model())
        yield cli


@pytest.fixture(scope="module")
def cli():
    with tiny_behind() as command:
        yield command


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder of all workers of this run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def data(shared):
    folder = shared / "labelled" / "data"
    with FileLock(shared / "labelled.lock"):
        if not folder.exists():
            folder.mkdir(parents=True)
            rows = sentences(88)
            for split, part in (("train", rows[:40]), ("validation", rows[40:64]), ("test", rows[64:])):
                (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in part))
    return folder


@pytest.fixture(scope="session")
def finished(data, shared):
    """The folder of a finished run, and what was printed; read-only."""
    out, printed = shared / "finished" / "run", shared / "printed.txt"
    given = ["--model", "tiny", "--data", data, "--label-words", WORDS, "--out", out, *QUICK]
    with FileLock(shared / "finished.lock"):
        if not printed.exists():
            with tiny_behind() as command:
                result = ask(command, "find", *given)
            assert result.exit_code == 0, result.output
            printed.write_text(result.stdout)
    return out, printed.read_text()


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished run's folder."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))
