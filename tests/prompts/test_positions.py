"""Where virtual tokens, text and padding stand, against sequences written out by hand."""

from types import SimpleNamespace

import pytest
import torch

from tl_skillneurons.prompts.positions import (
    PromptedTokens,
    arrange,
    columns,
    current_tokens,
    from_ids,
    published,
)

PAD, BOS, EOS, MASK, BASE = 0, 1, 2, 4, 40
SPECIAL = frozenset({PAD, BOS, EOS, MASK})
V1, V2 = BASE, BASE + 1


def put(text_ids, placement="suffix", mask_id=None, side="left", max_length=None, virtual=(V1, V2), **more):
    return arrange(
        text_ids,
        virtual_ids=virtual,
        placement=placement,
        mask_id=mask_id,
        special_ids=SPECIAL,
        pad_id=PAD,
        padding_side=side,
        max_length=max_length,
        **more,
    )


def drawn(tokens):
    """Each row's kinds of position as a string: padding, prompt, text, special."""
    kinds = []
    for row in range(len(tokens)):
        at = zip(tokens.is_padding[row], tokens.is_prompt[row], tokens.is_text[row], tokens.is_special[row])  # noqa: B905
        kinds.append(
            "".join(".p"[p] if not (t or s) else "ts"[s] if not (d or p) else "?" for d, p, t, s in at)
        )
    return kinds


LAYOUTS = {
    "suffix": {"placement": "suffix", "texts": [[BOS, 7, 8, 9], [BOS, 7]]},
    "prefix": {"placement": "prefix", "texts": [[BOS, 7, 8, 9], [BOS, 7]]},
    "masked prefix": {
        "placement": "prefix",
        "texts": [[BOS, 7, 8, EOS], [BOS, 7, EOS]],
        "mask_id": MASK,
    },
    "no prompt": {"placement": "suffix", "texts": [[BOS, 7, 8, 9], [BOS, 7]], "virtual": ()},
}


@pytest.mark.parametrize(
    "layout, side, ids, kinds, readout",
    [
        ("suffix", "left", [[BOS, 7, 8, 9, V1, V2], [0, 0, BOS, 7, V1, V2]], ["stttpp", "..stpp"], [5, 5]),
        ("suffix", "right", [[BOS, 7, 8, 9, V1, V2], [BOS, 7, V1, V2, 0, 0]], ["stttpp", "stpp.."], [5, 3]),
        ("prefix", "left", [[V1, V2, BOS, 7, 8, 9], [0, 0, V1, V2, BOS, 7]], ["ppsttt", "..ppst"], [5, 5]),
        ("prefix", "right", [[V1, V2, BOS, 7, 8, 9], [V1, V2, BOS, 7, 0, 0]], ["ppsttt", "ppst.."], [5, 3]),
        (
            "masked prefix",
            "left",
            [[MASK, V1, V2, BOS, 7, 8, EOS], [0, MASK, V1, V2, BOS, 7, EOS]],
            ["pppstts", ".pppsts"],
            [0, 1],
        ),
        (
            "masked prefix",
            "right",
            [[MASK, V1, V2, BOS, 7, 8, EOS], [MASK, V1, V2, BOS, 7, EOS, 0]],
            ["pppstts", "pppsts."],
            [0, 0],
        ),
        ("no prompt", "left", [[BOS, 7, 8, 9], [0, 0, BOS, 7]], ["sttt", "..st"], [3, 3]),
        ("no prompt", "right", [[BOS, 7, 8, 9], [BOS, 7, 0, 0]], ["sttt", "st.."], [3, 1]),
    ],
)
def test_every_layout_stands_as_written_by_hand(layout, side, ids, kinds, readout):
    settings = dict(LAYOUTS[layout])
    tokens = put(settings.pop("texts"), side=side, **settings)
    assert tokens.ids.tolist() == ids
    assert drawn(tokens) == kinds
    assert tokens.attention_mask.tolist() == [[int(k != ".") for k in row] for row in kinds]
    assert tokens.readout.tolist() == readout
    assert tokens.prompt_columns().tolist() == [[c for c, k in enumerate(row) if k == "p"] for row in kinds]
    assert tokens.example.tolist() == [0, 1] and tokens.n_truncated == 0 and len(tokens) == 2


def test_special_tokens_belong_to_the_text_and_a_pad_id_inside_a_text_is_no_padding():
    tokens = put([[BOS, 7, PAD, 8], [BOS, 7]])
    assert tokens.is_text.tolist() == [[True] * 4 + [False] * 2, [False, False, True, True, False, False]]
    assert tokens.is_padding[0].tolist() == [False] * 6


def test_examples_keep_their_numbers_in_the_callers_order():
    assert put([[7], [8]], example=[5, 3]).example.tolist() == [5, 3]


@pytest.mark.parametrize(
    "settings, text, expected",
    [
        ({"max_length": 6}, [BOS, 7, 8, 9, 10, 11], [BOS, 7, 8, 9, V1, V2]),
        ({"max_length": 6}, [BOS, 7, 8, 9, 10, EOS], [BOS, 7, 8, EOS, V1, V2]),
        ({"max_length": 7, "placement": "prefix"}, [7, 8, 9, 10, 11, 12], [V1, V2, 7, 8, 9, 10, 11]),
        (
            {"max_length": 7, "placement": "prefix", "mask_id": MASK},
            [BOS, 7, 8, 9, 10, EOS],
            [MASK, V1, V2, BOS, 7, 8, EOS],
        ),
        ({"max_length": 5}, [7, 8, 9, 10, EOS, EOS], [7, EOS, EOS, V1, V2]),
    ],
)
def test_truncation_cuts_the_text_before_its_last_special_tokens_and_never_the_prompt(
    settings, text, expected
):
    whole = [*text[: len(expected) - 4], 7]  # shorter than the limit
    tokens = put([text, [7]], side="right", **settings)
    assert tokens.ids[0].tolist() == expected
    assert tokens.n_truncated == 1
    assert put([whole], **settings).n_truncated == 0


def test_a_text_that_just_fits_is_not_truncated():
    tokens = put([[BOS, 7, 8, 9]], max_length=6)
    assert tokens.ids[0].tolist() == [BOS, 7, 8, 9, V1, V2] and tokens.n_truncated == 0


@pytest.mark.parametrize(
    "texts, settings, message",
    [
        ([], {}, "texts must not be empty"),
        ([[7], []], {}, "text 1 has no token of its own"),
        ([[BOS]], {}, "text 0 has no token of its own"),
        ([[BOS, EOS]], {"placement": "prefix", "mask_id": MASK}, "text 0 has no token of its own"),
        ([[7, 8]], {"max_length": 2}, "2 prompt positions leave no room .* at most 2 tokens; use fewer"),
        ([[BOS, 7, 8]], {"max_length": 3}, "2 prompt positions leave no room"),
        (
            [[BOS, 7, 8, EOS]],
            {"max_length": 5, "placement": "prefix", "mask_id": MASK},
            "3 prompt positions leave",
        ),
    ],
)
def test_what_cannot_be_arranged_is_refused(texts, settings, message):
    with pytest.raises(ValueError, match=message):
        put(texts, **settings)


def test_ids_put_together_by_hand_show_their_virtual_tokens_and_a_mask_directly_before():
    ids = torch.tensor([[MASK, V1, V2, BOS, MASK, EOS], [BOS, 7, MASK, V1, V2, 9]])
    with_mask, without = from_ids(ids, BASE, MASK), from_ids(ids, BASE, None)
    assert drawn(with_mask) == ["pppttt", "ttpppt"]
    assert drawn(without) == ["tppttt", "tttppt"]
    assert from_ids(torch.tensor([[7, MASK, 8]]), BASE, MASK).is_prompt.any() == torch.tensor(False)
    assert not with_mask.is_padding.any() and with_mask.example.tolist() == [0, 1]


def hook_point():
    return SimpleNamespace(ctx={}, name="blocks.0.mlp.hook_post")


def chosen(positions, tokens):
    point, act = hook_point(), torch.zeros(*tokens.ids.shape, 3)
    with published([point], lambda: tokens):
        return columns(positions, act, point)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "positions",
    [
        slice(0, 1),
        slice(1, 3),
        slice(-2, None),
        slice(None, None, 2),
        slice(2, 100),
        [0],
        [-1],
        [1, -2],
        [-3, 0],
    ],
    ids=str,
)
def test_slices_and_indices_count_from_the_examples_own_first_token(positions, side):
    tokens = put([[BOS, 7, 8, 9], [BOS, 7]], side=side)
    for row, n in enumerate([6, 4]):
        own = list(range(n))
        wanted = own[positions] if isinstance(positions, slice) else [own[i] for i in positions]
        expected = torch.zeros(6, dtype=torch.bool)
        first = 6 - n if side == "left" else 0
        expected[[first + i for i in wanted]] = True
        assert torch.equal(chosen(positions, tokens)[row], expected)
    if not isinstance(positions, slice):
        assert torch.equal(chosen(torch.tensor(positions), tokens), chosen(positions, tokens))


def test_named_positions_leave_out_padding_unless_all_are_meant():
    tokens = put([[BOS, 7, 8, 9], [BOS, 7]])
    assert torch.equal(chosen("prompt", tokens), tokens.is_prompt)
    assert torch.equal(chosen("text", tokens), tokens.is_text & ~tokens.is_special)
    assert torch.equal(chosen("special", tokens), tokens.is_special)
    assert chosen("all", tokens).all()


def test_where_nobody_knows_the_padding_indices_count_columns():
    act = torch.zeros(2, 5, 3)
    assert columns([0, -1], act, hook_point()).tolist() == [[True, False, False, False, True]] * 2
    assert columns(slice(1, 3), act, hook_point()).tolist() == [[False, True, True, False, False]] * 2
    assert columns("all", act, hook_point()).all()


@pytest.mark.parametrize(
    "positions, known, message",
    [
        ("prompt", False, "positions='prompt' needs to know where the virtual tokens stand"),
        ("text", False, "run it through PromptedModel or inside"),
        (
            [4],
            True,
            r"positions must be in \[-4, 4\) for a sequence of 4 tokens, got 4",
        ),  # of the shorter row
        ([-5], True, r"positions must be in \[-4, 4\)"),
        ([6], False, r"positions must be in \[-6, 6\) for a sequence of 6 tokens, got 6"),
    ],
)
def test_positions_that_nobody_knows_or_that_are_not_there_are_refused(positions, known, message):
    tokens = put([[BOS, 7, 8, 9], [BOS, 7]])
    point, act = hook_point(), torch.zeros(2, 6, 3)
    with published([point] if known else [], lambda: tokens), pytest.raises(ValueError, match=message):
        columns(positions, act, point)


def test_a_batch_of_another_shape_than_announced_is_refused():
    point = hook_point()
    tokens = put([[BOS, 7, 8, 9], [BOS, 7]])
    with published([point], lambda: tokens), pytest.raises(ValueError, match=r"announced has shape \(2, 6\)"):
        columns("prompt", torch.zeros(2, 5, 3), point)


def test_what_was_published_before_is_back_afterwards_also_after_an_error():
    point, outer, inner = hook_point(), put([[7]]), put([[8]])
    with published([point], lambda: outer):
        with pytest.raises(RuntimeError, match="on purpose"), published([point], lambda: inner):
            assert current_tokens(point) is inner
            raise RuntimeError("on purpose")
        assert current_tokens(point) is outer
    assert current_tokens(point) is None and point.ctx == {}


def test_moving_a_batch_keeps_everything_in_it():
    tokens = put([[BOS, 7, 8, 9], [BOS, 7]], max_length=5)
    moved = tokens.to("cpu")
    assert isinstance(moved, PromptedTokens) and moved.n_truncated == 1
    assert torch.equal(moved.ids, tokens.ids) and torch.equal(moved.readout, tokens.readout)
