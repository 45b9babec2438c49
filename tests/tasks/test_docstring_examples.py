"""What a docstring of a task shows is what its function gives."""

import doctest
import importlib

import pandas as pd
import pytest
import torch

import tl_skillneurons as skn


@pytest.mark.parametrize("name", "choices groups pairs reading subtasks task".split())
def test_the_examples_in_docstrings_give_what_they_say(name):
    module = importlib.import_module(f"tl_skillneurons.tasks.{name}")
    assert doctest.testmod(module, extraglobs={"torch": torch, "skn": skn, "pd": pd}).failed == 0
