"""What a docstring of numbers in, numbers out shows is what its function gives."""

import doctest
import importlib

import pytest
import torch


@pytest.mark.parametrize("name", "directions equal_price".split())
def test_the_examples_in_docstrings_give_what_they_say(name):
    module = importlib.import_module(f"tl_skillneurons.studies.steering.{name}")
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0
