"""Arrays as Postgres writes them in text: thousands of values as one parameter of a statement.

The driver would write each element into the statement by itself, which takes both sides several times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def text_of(values: Sequence[Any], *, quoted: bool = False) -> str | None:
    """The array's text; None when all the values are None.

    Numbers, dates and UUIDs are written as they are; strings are to be `quoted`, whatever is in them.
    """
    if values.count(None) == len(values):
        return None
    known: dict[Any, str] = {None: "NULL"}
    written = []
    for value in values:
        text = known.get(value)
        if text is None:
            text = known[value] = _quoted(value) if quoted else str(value)
        written.append(text)
    return f"{{{','.join(written)}}}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
