"""What results say of the units that chose them, from what they recorded."""

from collections.abc import Mapping
from typing import Any


def unit_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """``unit`` and ``n_units``, for a table's ``attrs``; nothing where they were not recorded."""
    units = provenance.get("units")
    return {} if units is None else {"unit": units["what"], "n_units": units["n"]}


def said_of(provenance: Mapping[str, Any]) -> str:
    """A clause for a result's own line; nothing where units were not recorded."""
    units = provenance.get("units")
    return "" if units is None else f", {units['n']} units ({units['what']})"
