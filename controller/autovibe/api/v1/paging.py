"""Pages: `limit` and an opaque `cursor`; the answer is {"items", "next_cursor"}, null on the last page."""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import sqlalchemy as sa
from fastapi import Query
from sqlalchemy.orm import Session

from autovibe.async_db import Pool, Statement
from autovibe.errors import Invalid

MOST = 500
Limit = Annotated[int, Query(ge=1, le=MOST, description="How many at most.")]
Cursor = Annotated[
    str | None, Query(max_length=200, description="`next_cursor` of the page before.", pattern="^[A-Za-z0-9_-]*$")
]


class BadCursor(Invalid):
    """That is not a cursor of this list."""

    code = "bad_cursor"
    default_hint = "Begin again without one."


def by_time(
    session: Session,
    query: Any,
    columns: tuple[Any, Any],
    cursor: str | None,
    limit: int,
    show: Callable[[Any], dict[str, Any]],
    *,
    oldest_first: bool = False,
) -> dict[str, Any]:
    """A page of rows, the newest first. `columns`: the time and the uuid that rows are sorted by."""
    at, uuid = columns
    order = columns if oldest_first else (at.desc(), uuid.desc())
    if cursor is not None:
        place = _place(cursor)
        after, own = sa.tuple_(*place), sa.tuple_(at, uuid)
        # The time by itself, too: an index of it, and a table's partitions, serve that only.
        query = query.where(*((at >= place[0], own > after) if oldest_first else (at <= place[0], own < after)))
    rows = session.scalars(query.order_by(*order).limit(limit + 1)).all()
    page, after = _page(rows, limit, lambda row: (getattr(row, at.key), getattr(row, uuid.key)))
    return {"items": [show(row) for row in page], "next_cursor": after}


async def written(
    pool: Pool,
    made: Callable[[frozenset[str]], Statement],
    given: dict[str, Any],
    columns: tuple[str, str],
    cursor: str | None,
    limit: int,
    mend: Callable[[Sequence[Any]], Awaitable[bool]] | None = None,
) -> bytes:
    """Such a page as JSON, of rows that have their view as `json` already.

    `made`: the statement with the conditions that are given, which knows `after`, `at` and `limit`. `mend`: whether
    it has changed something for these rows, so that they are asked for again.
    """
    at = None
    if cursor is not None:
        at, given["after"] = _place(cursor)
    ask = functools.partial(pool.rows, made(frozenset(given)), at=at, limit=limit + 1, **given)
    rows = await ask()
    if mend is not None and await mend(rows):
        rows = await ask()
    page, after = _page(rows, limit, lambda row: (row[columns[0]], row[columns[1]]))
    items = ",".join([row["json"] for row in page])
    return f'{{"items":[{items}],"next_cursor":{json.dumps(after)}}}'.encode()


def _place(cursor: str) -> tuple[datetime, UUID]:
    """The time and the uuid of the last row of the page before."""
    at, uuid = _read(cursor, (str, str))
    try:
        return datetime.fromisoformat(at).astimezone(UTC), UUID(uuid)
    except (ValueError, OverflowError):
        raise BadCursor() from None


def _page(
    rows: Sequence[Any], limit: int, place: Callable[[Any], tuple[datetime, UUID]]
) -> tuple[Sequence[Any], str | None]:
    """The rows of a page, of one more than it has, and the cursor of the next one."""
    if len(rows) <= limit:
        return rows, None
    page = rows[:limit]
    at, uuid = place(page[-1])
    return page, _write((at.isoformat(), str(uuid)))


def by_id(
    session: Session,
    query: Any,
    column: Any,
    cursor: str | None,
    limit: int,
    show: Callable[[Any], dict[str, Any]],
    *,
    newest_first: bool = False,
) -> dict[str, Any]:
    """A page of rows that have a number, in its order."""
    if cursor is not None:
        (after,) = _read(cursor, (int,))
        if abs(after) >= 2**63:
            raise BadCursor()
        query = query.where(column < after if newest_first else column > after)
    rows = list(session.scalars(query.order_by(column.desc() if newest_first else column).limit(limit + 1)))
    page, more = rows[:limit], len(rows) > limit
    return {
        "items": [show(row) for row in page],
        "next_cursor": _write((getattr(page[-1], column.key),)) if page and more else None,
    }


def of_list(rows: Sequence[Any], cursor: str | None, limit: int) -> dict[str, Any]:
    """A page of what was computed whole."""
    start = 0
    if cursor is not None:
        (start,) = _read(cursor, (int,))
        if not 0 <= start <= 2**31:
            raise BadCursor()
    end = start + limit
    return {"items": list(rows[start:end]), "next_cursor": _write((end,)) if end < len(rows) else None}


def _write(values: tuple[Any, ...]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).rstrip(b"=").decode()


def _read(cursor: str, kinds: tuple[type, ...]) -> list[Any]:
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        raise BadCursor() from None
    fits = isinstance(values, list) and len(values) == len(kinds)
    if not fits or not all(type(value) is kind for value, kind in zip(values, kinds, strict=True)):
        raise BadCursor()
    return values
