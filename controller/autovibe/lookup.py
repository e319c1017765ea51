"""Find a thing by what a person types: its name, its uuid, or the first characters of its uuid."""

from __future__ import annotations

from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import String, cast, select
from sqlalchemy.orm import Session

from autovibe.errors import Invalid, NotFound

Row = TypeVar("Row")
_PREFIX_MIN = 4


class Ambiguous(Invalid):
    """That names more than one thing."""

    code = "ambiguous"
    default_hint = "Give more characters, or the whole uuid."


def find(session: Session, model: type[Row], text: str | UUID, noun: str, *, among: Any = None, **scope: Any) -> Row:
    """The one row with this uuid, name (where the table has names) or uuid prefix of at least 4 characters.

    `scope` limits the search by column, `among` by any SQL condition. Raises NotFound or Ambiguous.
    """
    query = select(model).filter_by(**scope)
    if among is not None:
        query = query.where(among)
    name = str(text).strip()
    wanted = name.lower()
    if not name:
        raise NotFound(f"No {noun} is named", f"`autovibe {noun} list` shows them.")
    if not name.isprintable():
        raise NotFound(f"There is no {noun} {name[:80]!r}")
    try:
        rows = session.scalars(query.where(model.uuid == UUID(wanted))).all()
    except ValueError:
        rows = session.scalars(query.where(model.name == name)).all() if hasattr(model, "name") else []
        if not rows and len(wanted) >= _PREFIX_MIN and not set(wanted) - set("0123456789abcdef-"):
            rows = session.scalars(query.where(cast(model.uuid, String).startswith(wanted, autoescape=True))).all()
    if not rows:
        raise missing(noun, name)
    if len(rows) > 1:
        raise Ambiguous(f"{name} names {len(rows)} {noun}s: {', '.join(str(row.uuid)[:13] for row in rows[:5])}")
    return rows[0]


def missing(noun: str, name: str) -> NotFound:
    """What is raised when there is none."""
    shown = name[:100] if name[-1].isalnum() else repr(name[:100])
    return NotFound(f"There is no {noun} {shown}", f"`autovibe {noun} list` shows them.")
