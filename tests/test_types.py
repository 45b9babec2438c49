"""A user's script sees the package's types."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_users_script_sees_types_and_its_mistakes():
    pytest.importorskip("mypy", reason='mypy comes with pip install -e ".[lint]"')
    script = ROOT / "tests" / "support" / "typed_user.py"
    done = subprocess.run([sys.executable, "-m", "mypy", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
