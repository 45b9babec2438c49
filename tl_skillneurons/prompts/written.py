"""What a model has written after texts, as data: kept with the seed and the settings that made it."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tl_skillneurons._files import FORMAT, package_version, read_json, sound, write_json
from tl_skillneurons._results import html_of, one_line

KIND = "Completions"


@dataclass(frozen=True, repr=False)
class Completions:
    """What was written after each text.

    Attributes:
        texts: What was asked, in the caller's order.
        answers: What was written after each, without special tokens.
        token_ids: The same as token ids, its end token included.
        ended: Whether it came to an end of its own; ``False`` where it was cut at ``max_new_tokens``.
        settings: Of the model, the prompt, the writing and the interventions, as plain JSON values.

    Example:
        >>> completions = prompted.generate(["The capital of France is"], max_new_tokens=8)
        >>> completions.answers
    """

    texts: tuple[str, ...]
    answers: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    ended: tuple[bool, ...]
    settings: dict[str, Any]

    _repr_html_ = html_of

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        n_new = [len(ids) for ids in self.token_ids]
        return one_line(self, n=len(self), n_tokens=sum(n_new), n_ended=sum(self.ended))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text: text, answer, n_tokens, ended."""
        return pd.DataFrame(
            {
                "text": list(self.texts),
                "answer": list(self.answers),
                "n_tokens": [len(ids) for ids in self.token_ids],
                "ended": list(self.ended),
            }
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write them as JSON, whole or not at all; returns the path."""
        return write_json(
            path, {"kind": KIND, "format": FORMAT, "package_version": package_version(), **asdict(self)}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Completions":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        content = read_json(path, KIND)
        with sound(path, KIND):
            return cls(
                tuple(content["texts"]),
                tuple(content["answers"]),
                tuple(tuple(ids) for ids in content["token_ids"]),
                tuple(content["ended"]),
                content["settings"],
            )
