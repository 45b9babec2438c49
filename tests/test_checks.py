"""What bad input gets."""

import pytest

from tl_skillneurons._checks import require_seed, require_text


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
