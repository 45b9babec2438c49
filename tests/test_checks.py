"""What bad input gets."""

import importlib
import inspect
from operator import attrgetter

import pytest
import torch

import tl_skillneurons as skn
from tl_skillneurons._checks import require_seed, require_text

ROOMS = "tasks stats models prompts scores interventions attention studies".split()


@pytest.mark.parametrize("seed", [None, 1.5, "a", -1, True, False, 2**63, 1.0, "1", [0], float("nan")])
def test_what_can_not_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer of at least 0, got"):
        require_seed(seed)


def test_integers_from_zero_on_seed():
    numpy = pytest.importorskip("numpy")
    assert [require_seed(seed) for seed in (0, 7, numpy.int64(3), 2**63 - 1)] == [0, 7, 3, 2**63 - 1]


def test_text_is_a_string_that_can_be_written_down():
    assert require_text("हिन्दी 👍", "name") == "हिन्दी 👍"
    with pytest.raises(TypeError, match="name must be a string, got bytes b'a'"):
        require_text(b"a", "name")
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        require_text("a\ud800", "name")


NO_FUNCTIONS = {*ROOMS, "interop", "plots"}


def taking_a_seed():
    """Every offered function, and every method of an offered class, that takes a seed."""
    rooms = [skn, *(importlib.import_module(f"tl_skillneurons.{room}") for room in ROOMS)]
    for offered in {
        getattr(room, name) for room in rooms for name in room.__all__ if name not in NO_FUNCTIONS
    }:
        members = vars(offered).values() if inspect.isclass(offered) else [offered]
        for member in members:
            function = inspect.unwrap(getattr(member, "__func__", member))
            named = inspect.isfunction(function) and not function.__name__.startswith("_")
            if named and {"seed", "seeds"} & set(inspect.signature(function).parameters):
                yield function


@pytest.mark.parametrize(
    "function", sorted(taking_a_seed(), key=attrgetter("__qualname__")), ids=attrgetter("__qualname__")
)
def test_every_function_that_takes_a_seed_looks_at_it_before_any_work(function):
    assert "require_seed(seed" in inspect.getsource(function)


@pytest.mark.parametrize("seed", [None, 1.5, "a", -1, True])
def test_statistics_refuse_what_can_not_seed(seed):
    numbers = torch.arange(8.0)
    for draw in (
        lambda: skn.stats.bootstrap_mean(numbers, seed=seed),
        lambda: skn.stats.sign_flip_test(numbers, seed=seed),
        lambda: skn.stats.permuted_labels(numbers.long() % 2, 4, seed=seed),
        lambda: skn.NeuronSet([0], [1], n_layers=1, d_mlp=4).random_like(seed),
    ):
        with pytest.raises(ValueError, match="seed must be an integer of at least 0, got"):
            draw()
