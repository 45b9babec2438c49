"""How results show themselves: one line in a terminal, that line over a table in a notebook."""

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from tl_skillneurons._widths import left_out_said

N_ROWS = 10


@runtime_checkable
class Tabular(Protocol):
    """A result that can be laid out as a table."""

    def to_dataframe(self) -> pd.DataFrame: ...


def one_line(result: object, **numbers: Any) -> str:
    """``Name(key=value, ...)`` with floats to three digits: what a result's ``repr`` says of itself."""
    if told := left_out_of(result):
        numbers["left_out"] = told
    shown = (f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v!r}" for k, v in numbers.items())
    return f"{type(result).__name__}({', '.join(shown)})"


def left_out_of(result: object) -> str:
    """The layers of the model that a result says nothing of, and why: as its record of the model has them. Nothing for
    most models."""
    record = getattr(result, "settings", None) or getattr(result, "provenance", None)
    model = record.get("model") if isinstance(record, dict) else None
    without = model.get("left_out") if isinstance(model, dict) else None
    return left_out_said({int(layer): why for layer, why in without.items()}) if without else ""


def without_layers(result: object) -> str:
    """The same as a clause at a line's end."""
    return f", without {told}" if (told := left_out_of(result)) else ""


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


def short_repr(result: Any) -> str:
    """``Name(field=value, ...)`` of a dataclass on one screen: tensors and long lists by their shape."""
    told = ", ".join(f"{one.name}={_short(getattr(result, one.name))}" for one in fields(result) if one.repr)
    return f"{type(result).__name__}({told})"


def html_of_fields(result: Any) -> str:
    """A result that is no table, in a notebook: its own line, and below each of its fields, escaped."""
    names = [one.name for one in fields(result)] if is_dataclass(result) else []
    rows = [(name, _short(getattr(result, name), 200)) for name in names]
    return _template().render(line=repr(result), names=["field", "value"] if rows else [], rows=rows, more=0)


def _short(value: Any, most: int = 60) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None and not isinstance(value, (int, float)) and hasattr(value, "dtype"):
        return f"{type(value).__name__}{list(shape)}"
    if isinstance(value, dict | list | tuple | set | frozenset):
        simple = all(isinstance(one, str | int | float | type(None)) for one in value)
        if not simple or isinstance(value, dict) or len(repr(value)) > most:
            return f"{type(value).__name__} of {len(value)}" if value else repr(value)
    told = repr(value)
    return told if len(told) <= most else f"{told[:most]}..."
