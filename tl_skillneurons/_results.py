"""How results show themselves: one line in a terminal, that line over a table in a notebook."""

from functools import cache
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
    head = table.head(N_ROWS)
    columns = [
        [f"{value:.3f}" if isinstance(value, float) else str(value) for value in column.tolist()]
        for _, column in head.items()
    ]
    rows = list(zip(*columns, strict=True))
    return _template().render(line=repr(result), names=list(head), rows=rows, more=len(table) - len(head))


@cache
def _template() -> Any:
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(
        "<p><code>{{ line }}</code></p>"
        '<table border="1" class="dataframe">'
        '<thead><tr style="text-align: right;">'
        "{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr></thead>"
        "<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>"
        "</table>"
        "{% if more %}<p>{{ '{:,}'.format(more) }} more rows in to_dataframe()</p>{% endif %}"
    )
