"""What every command shares: options, output, and errors that are one line.

A command only parses, calls and shows. It prints with `output`, raises `AutovibeError` (or a
`click.UsageError`), and never sees a traceback: `run` turns whatever happens into an exit code.
"""

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import click

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def json_option(command: Callable) -> Callable:
    """Add `--json`; the command gets it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def output(data: Any, as_json: bool, table_fn: Callable[[Any], Any] | None = None) -> None:
    """Print `data` as JSON, or what `table_fn(data)` makes of it: a string, a rich renderable, or None.

    `table_fn` may print by itself and return None. Without it, text is one `key: value` per line.
    """
    if as_json:
        click.echo(json.dumps(data, indent=2, default=_plain, ensure_ascii=False))
        return
    shown = (table_fn or _lines)(data)
    if shown is None:
        return
    if isinstance(shown, str):
        click.echo(shown)
        return
    console().print(shown)


def table(title_columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """A plain rich table; a cell may be None (shown empty), Decimal, datetime or UUID."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in title_columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell_text(cell)) for cell in row))
    return shown


def console(stderr: bool = False) -> Any:
    """A rich console that does not cut lines when the output is a file or a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 200
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=not stream.isatty())


def cell_text(value: Any) -> str:
    """One value as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, Decimal):
        text = format(value.normalize(), "f")
        return "0" if text == "-0" else text
    return str(value)


def settings() -> Any:
    """The settings of this call; a wrong settings file is a usage error."""
    from autovibe.settings import load_settings

    return load_settings()


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, (UUID, Path)):
        return str(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _lines(data: Any) -> str:
    if isinstance(data, dict):
        return "\n".join(f"{key}: {cell_text(value)}" for key, value in data.items())
    if isinstance(data, (list, tuple)):
        return "\n".join(_lines(item) for item in data)
    return cell_text(data)


def run(command: click.Command, args: Sequence[str] | None = None, prog_name: str = "autovibe") -> int:
    """Run a click command and return the exit code; every error is one line on stderr."""
    try:
        result = command.main(args=None if args is None else list(args), prog_name=prog_name, standalone_mode=False)
        _flush()
        return result if isinstance(result, int) and not isinstance(result, bool) else 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        return _usage_error(error, prog_name)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    except BrokenPipeError:
        # The reader is gone (`| head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        return _failed(error)


def _flush() -> None:
    sys.stdout.flush()


def _usage_error(error: click.ClickException, prog_name: str) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else prog_name
    hint = f" (try `{path} --help`)" if isinstance(error, click.UsageError) else ""
    _say(error.format_message().rstrip(".") + (hint or "."))
    return error.exit_code


def _failed(error: Exception) -> int:
    from autovibe.errors import AutovibeError

    known = error if isinstance(error, AutovibeError) else _as_known(error)
    if known is None:
        _say(f"internal error: {type(error).__name__}: {error}. {_log(error)}")
        return EXIT_FAILED
    message, hint, code = known if isinstance(known, tuple) else _parts(known)
    _say(message if not hint else f"{message.rstrip('.')}. {hint}")
    return code


def _parts(error: Any) -> tuple[str, str | None, int]:
    message = getattr(error, "message", None) or str(error)
    return message, getattr(error, "hint", None), getattr(error, "exit_code", EXIT_FAILED)


def _as_known(error: Exception) -> tuple[str, str | None, int] | None:
    """What comes from outside and has a plain sentence: a database that is gone, a full disk."""
    if "sqlalchemy" in sys.modules:
        import sqlalchemy.exc

        if isinstance(error, sqlalchemy.exc.OperationalError):
            return f"Postgres is not reachable: {error.orig}", "Start it, or check AUTOVIBE_DATABASE_URL.", 1
        if isinstance(error, sqlalchemy.exc.ProgrammingError) and "does not exist" in str(error.orig):
            return "The database is not migrated", "Run `autovibe db upgrade`.", 1
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"No space left on the disk of {error.filename or 'the state folder'}", "Free some, then try again.", 1
    if isinstance(error, PermissionError) and error.filename:
        return f"No permission for {error.filename}", "Check its owner, or the state folder's.", 1
    return None


def _say(message: str) -> None:
    line = " ".join(message.split())
    click.echo(f"autovibe: {line}", err=True)


def _log(error: Exception) -> str:
    """Write the traceback to the state folder's log; the returned sentence says where it is."""
    try:
        folder = Path(settings().state_dir) / "log"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / "errors.log"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
            file.write(time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()) + " ".join(sys.argv[:3]) + "\n")
            file.write("".join(traceback.format_exception(error)) + "\n")
    except Exception:
        return "No log could be written."
    return f"Details are in {path}."
