"""How results show themselves: one line in a terminal, that line over a table in a notebook."""

from html import escape
from typing import Any, Protocol, runtime_checkable

import pandas as pd

N_ROWS = 10


@runtime_checkable
@runtime_checkable
class Tabular(Protocol):
    """A result that can be laid out as a table."""

    def to_dataframe(self) -> pd.DataFrame: ...


def one_line(result: object, **numbers: Any) -> str:
    """``Name(key=value, ...)`` with floats to three digits: what a result's ``repr`` says of itself."""
    shown = (f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v!r}" for k, v in numbers.items())
    return f"{type(result).__name__}({', '.join(shown)})"


def html_of(result: Tabular) -> str:
    """The result's own line and the first rows of its table, escaped, for a notebook."""
    table = result.to_dataframe()
    shown = table.head(N_ROWS).to_html(index=False, float_format=lambda x: f"{x:.3f}")
    more = f"<p>{len(table) - N_ROWS:,} more rows in to_dataframe()</p>" if len(table) > N_ROWS else ""
    return f"<p><code>{escape(repr(result))}</code></p>{shown}{more}"
