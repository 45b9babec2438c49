"""A text's token ids: which are the chat template's, which an answer's, and what is left when there are too many."""

from tl_skillneurons.models.chat_templates import n_alike

Frame = tuple[list[int], list[int]]
"""The ids that a chat template puts before and after a text."""
NO_FRAME: Frame = ([], [])
ANSWER = 2**32
"""Ids from here on, in what :meth:`~tl_skillneurons.PromptedModel.encode` gives, are those of an answer to the text."""


def split_answer(ids: list[int]) -> tuple[list[int], list[int]]:
    """A text's token ids, and those of the answer to it, as the model knows them."""
    n_text = next((place for place, i in enumerate(ids) if i >= ANSWER), len(ids))
    return ids[:n_text], [i - ANSWER for i in ids[n_text:]]


def framed(ids: list[int], frame: Frame) -> tuple[int, int]:
    """How many tokens at the beginning and at the end of a text's ids are the template's: as many as agree with it, for
    one that the text has a share in is the text's."""
    before, after = frame
    n_head = n_alike(ids, before)
    return n_head, n_alike(ids[n_head:][::-1], after[::-1])


def truncate(
    ids: list[int], n_prompt: int, special: frozenset[int], max_length: int | None, frame: Frame = NO_FRAME
) -> list[int]:
    """A text's token ids without what is too many beside ``n_prompt`` positions; special tokens at its end stay, and so
    does what a chat template puts around it.

    Raises:
        ValueError: When there is no room for a token of the text's own.
    """
    ids, answer = split_answer(ids)
    marked = [ANSWER + i for i in answer]
    if max_length is None or len(ids) <= (room := max_length - n_prompt - len(answer)):
        return ids + marked
    n_head, n_tail = framed(ids, frame)
    if not n_tail:
        n_tail = next((k for k, i in enumerate(reversed(ids)) if i not in special), 0)
    if room <= n_head + n_tail or all(i in special for i in ids[n_head : room - n_tail]):
        beside = f" and {sum(map(len, frame))} tokens of the chat template" if any(frame) else ""
        raise ValueError(
            f"{n_prompt} prompt positions{beside} leave no room for text in a sequence of at most {max_length} "
            "tokens; use fewer virtual tokens"
        )
    return ids[: room - n_tail] + ids[len(ids) - n_tail :] + marked
