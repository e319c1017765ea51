"""Old months of the ledger: their lines are put away, and balance lines that add up to the same stay."""

from __future__ import annotations

import contextlib
import filecmp
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe.errors import AutovibeError, Conflict, Invalid


class InvalidMonth(Invalid):
    """That is not a month that can be detached."""

    code = "invalid_month"


class AlreadyDetached(Conflict):
    """The month was detached before."""

    code = "already_detached"


class NotWritten(AutovibeError):
    """The month's lines could not be written."""

    code = "not_written"


def parse(text: str) -> date:
    """The first day of a month that is written `2026-01`."""
    try:
        return date.fromisoformat(f"{text}-01")
    except ValueError:
        raise InvalidMonth(f"{text!r:.50} is not a month", "Write it as 2026-01.") from None


def detach(session: Session, month: date, file: Path | None = None) -> dict[str, Any]:
    """Take a month's lines out of the ledger; what they add up to stays, as balance lines.

    Every sum holds: of a project, machine, model, day or checkpoint. The lines go to `file` (new; CSV with a header),
    and are gone from the database; without it they stay in a table of their own. The month is that in which they were
    recorded, in UTC; it must be whole in the past. The file is on the disk before the caller's transaction ends: when
    that fails, or is killed, the month is as it was, and the same can be asked again.
    """
    session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('autovibe usage partitions'))"))
    name = f"resource_usage_{month:%Y_%m}"
    _check(session, month, name)
    session.execute(sa.text("LOCK TABLE resource_usage IN ACCESS EXCLUSIVE MODE"))
    lines = session.scalar(sa.text(f"SELECT count(*) FROM {name}"))  # noqa: S608 - of a date
    kept = session.scalar(sa.text("SELECT condense_usage_month(:month)"), {"month": month})
    if file is not None:
        with _new_file(file) as out:
            session.connection().connection.cursor().copy_expert(
                f"COPY (SELECT * FROM {kept} ORDER BY recorded_at, uuid) TO STDOUT (FORMAT csv, HEADER)",  # noqa: S608
                out,
            )
        session.execute(sa.text(f"DROP TABLE {kept}"))
    left = session.scalar(sa.text(f"SELECT count(*) FROM {name}"))  # noqa: S608
    where = {"table": None, "file": file} if file else {"table": kept, "file": None}
    return {"month": f"{month:%Y-%m}", "lines": lines, "balance_lines": left, **where}


def _check(session: Session, month: date, name: str) -> None:
    this_month = session.scalar(sa.text("SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date"))
    if month >= this_month:
        raise InvalidMonth(f"{month:%Y-%m} is not over", "Only a month that is whole in the past can be detached.")
    if session.scalar(sa.text("SELECT to_regclass(:name)"), {"name": name}) is None:
        raise InvalidMonth(f"The ledger has no lines of {month:%Y-%m}")
    # Balance lines are all there is of a month that was detached, and an empty month has nothing to detach.
    if not session.scalar(sa.text(f"SELECT EXISTS (SELECT FROM {name} WHERE NOT metadata ? 'balance')")):  # noqa: S608
        if session.scalar(sa.text(f"SELECT EXISTS (SELECT FROM {name})")):  # noqa: S608
            raise AlreadyDetached(f"{month:%Y-%m} was detached before")
        raise InvalidMonth(f"The ledger has no lines of {month:%Y-%m}")


@contextlib.contextmanager
def _new_file(file: Path) -> Iterator[Any]:
    """A file that is whole on the disk or not there; one that exists is refused, unless it is the very same.

    Who was killed may have left that, or a part of it: one transaction at a time writes here.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        _keep(part, file)
    except OSError as error:
        raise NotWritten(f"{file} cannot be written: {error.strerror}", "") from None
    finally:
        part.unlink(missing_ok=True)


def _keep(part: Path, file: Path) -> None:
    try:
        os.link(part, file)  # unlike a rename, refuses to replace
    except FileExistsError:
        if not (file.is_file() and filecmp.cmp(part, file, shallow=False)):
            raise NotWritten(f"{file} exists already", "Give another name, or remove it.") from None
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # its name is kept, too
    finally:
        os.close(folder)
