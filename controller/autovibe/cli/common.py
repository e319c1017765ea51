"""What every command shares: options, output, and errors that are one line.

A command only parses, calls and shows. It prints with `output`, raises `AutovibeError` (or a
`click.UsageError`), and never sees a traceback: `run` turns whatever happens into an exit code.
"""

import errno
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from autovibe import jsonform

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

#: Between two columns of a table.
_GAP = "   "
#: What moves a terminal's cursor, sends it commands or turns its text around.
_COMMANDS = (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SHOWN = {code: chr(0x2400 + code) if code < 0x20 else "\ufffd" for code in _COMMANDS} | {9: "\t", 10: "\n"}
_ESCAPED = {code: f"\\u{code:04x}" for code in _COMMANDS if code >= 0x20}


def read_text(path: Path, what: str) -> str:
    """What stands in a file of text; a UsageError says that it is none. `-` is standard input."""
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return content.decode()
    except UnicodeDecodeError:
        raise click.UsageError(f"{what} {path} is no text (UTF-8)") from None


def secret_from(path: Path, what: str) -> str:
    """The one line of a file that has a key or a password in it."""
    lines = read_text(path, what).rstrip("\r\n").splitlines()
    if len(lines) != 1 or not lines[0].isprintable() or not lines[0].strip():
        raise click.UsageError(f"{what} {path} is to have one line, with nothing else in it")
    return lines[0]


class Seconds(click.FloatRange):
    """A time that ends."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return found


def json_option(command: Callable) -> Callable:
    """Add `--json`; the command gets it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def output(data: Any, as_json: bool, table_fn: Callable[[Any], Any] | None = None) -> None:
    """Print `data` as JSON, or what `table_fn(data)` makes of it: a string, a rich renderable, or None.

    `table_fn` may print by itself and return None. Without it, text is one `key: value` per line.
    """
    if as_json:
        click.echo(json_text(data))
        return
    shown = (table_fn or _lines)(data)
    if shown is None:
        return
    if isinstance(shown, str):
        click.echo(plain(shown))
        return
    console().print(shown)


def json_text(data: Any, indent: int | None = 2) -> str:
    """The data as JSON that a terminal does not obey."""
    return json.dumps(data, indent=indent, default=jsonform.encoded, ensure_ascii=False).translate(_ESCAPED)


def table(title_columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """A plain table, as rich prints it; a cell may be None (shown empty), Decimal, datetime or UUID."""
    return _Table([list(title_columns), *([cell_text(cell) for cell in row] for row in rows)])


class _Table:
    """Lines where each row fits into one: rich's own table takes half a second for a thousand rows. Else that."""

    def __init__(self, lines: list[list[str]]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.cells import cell_len
        from rich.text import Text

        widths = [max(map(cell_len, column)) for column in zip(*self._lines, strict=True)]
        width = sum(widths) + len(_GAP) * (len(widths) - 1)
        if width > options.max_width or any("\n" in cell or "\t" in cell for line in self._lines for cell in line):
            yield self._folded()
            return

        def line(cells: list[str]) -> str:
            padded = (cell + " " * (most - cell_len(cell)) for cell, most in zip(cells, widths, strict=True))
            return _GAP.join(padded).rstrip()

        titles, *rows = self._lines
        yield Text(line(titles), style="bold", no_wrap=True, overflow="ignore")
        yield Text("─" * width, no_wrap=True, overflow="ignore")
        if rows:
            yield Text("\n".join(map(line, rows)), no_wrap=True, overflow="ignore")

    def _folded(self) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        titles, *rows = self._lines
        shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for title in titles:
            shown.add_column(Text(title), overflow="fold")
        for row in rows:
            shown.add_row(*map(Text, row))
        return shown


def console(stderr: bool = False) -> Any:
    """A rich console that does not cut lines when the output is a file or a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 200
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=not stream.isatty())


def plain(text: str) -> str:
    """The text without what a terminal would obey: a machine chose many of the words that are shown."""
    return text.replace("\r\n", "\n").translate(_SHOWN)


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
    return plain(str(value))


def settings() -> Any:
    """The settings of this call; a wrong settings file is a usage error."""
    from autovibe.settings import load_settings

    return load_settings()


def named(text: str) -> str:
    """What a person typed, as a part of a path of the API."""
    return quote(text, safe="") if text not in ("", ".", "..") else quote(f"{text} ", safe="")


def hub() -> Any:
    """The hub that this command goes to, as a context: see `autovibe.client`."""
    from autovibe import client

    return client.connect(settings())


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
    except click.exceptions.NoArgsIsHelpError as error:
        # A group without a command: its help is the error.
        click.echo(error.format_message(), err=True)
        return error.exit_code
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
    if isinstance(error, OSError) and not (folder := settings().state_dir).is_dir():
        return f"The state folder {folder} cannot be used: {error.strerror}", "Check AUTOVIBE_STATE_DIR.", 1
    return None


def _say(message: str) -> None:
    line = plain(" ".join(message.split()))
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
