"""Which files of a workspace a manifest leaves out: a default list, and the workspace's `.autovibeignore`.

The file is written as a `.gitignore` is: the last pattern that matches decides, `!` takes a file back in, a slash at
the end means folders only, any other slash ties a pattern to the workspace's root, `**` stands for any folders.
"""

import os
import re
import stat
from collections.abc import Iterable

FILE = ".autovibeignore"
MAX_FILE = 64 << 10
MAX_PATTERNS = 500
# A pattern with more is no pattern: what it costs grows with each.
MAX_WILDCARDS = 10
# What a build or a package manager makes again. Git's objects are many, and the commits say the same.
DEFAULT = (
    "**/.git/objects/",
    "**/.git/lfs/",
    "node_modules/",
    "bower_components/",
    "__pycache__/",
    "*.pyc",
    ".venv/",
    ".tox/",
    ".nox/",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".hypothesis/",
    ".gradle/",
    ".terraform/",
    ".cache/",
    ".DS_Store",
)


class Ignore:
    """The patterns of one workspace, compiled. Who leaves a folder out never asks about what is in it."""

    def __init__(self, patterns: Iterable[str]):
        # One expression for each run of patterns of the same sign; the last one that matches decides.
        groups: list[tuple[bool, list[str]]] = []
        for negated, expression in filter(None, map(_translate, patterns)):
            if not groups or groups[-1][0] != negated:
                groups.append((negated, []))
            groups[-1][1].append(expression)
        self._groups = [(re.compile("|".join(found), re.DOTALL), not negated) for negated, found in reversed(groups)]

    @classmethod
    def of(cls, workspace: int) -> "Ignore":
        """Of the open workspace folder: the default list, then its own file."""
        return cls([*DEFAULT, *_own(workspace)])

    def matches(self, path: str, is_folder: bool) -> bool:
        """Whether `path`, relative to the workspace, is left out."""
        subject = path + "/" if is_folder else path
        for expression, ignored in self._groups:
            if expression.fullmatch(subject):
                return ignored
        return False


def _own(workspace: int) -> list[str]:
    """The lines of `.autovibeignore`; none when it is not a regular file that can be read."""
    try:
        descriptor = os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=workspace)
    except OSError:
        return []
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return []
        # As file names are: any bytes.
        return os.fsdecode(file.read(MAX_FILE)).splitlines()[:MAX_PATTERNS]


def _translate(line: str) -> tuple[bool, str] | None:
    """(negated, regular expression), or None for what is no pattern. A folder's path ends with a slash."""
    line = line.rstrip("\r")
    # Blanks at the end do not count unless they are escaped.
    while line.endswith(" ") and not line.endswith("\\ "):
        line = line[:-1]
    if not line or line.startswith("#"):
        return None
    negated = line.startswith("!")
    pattern = line[1:] if negated else line
    folders_only = pattern.endswith("/")
    if folders_only:
        pattern = pattern[:-1]
    anchored = "/" in pattern
    pattern = re.sub(r"(?<!/)\*+(?!/)|\*{3,}", "*", pattern.removeprefix("/"))
    if not pattern or pattern.count("*") > MAX_WILDCARDS:
        return None
    expression = _expression(pattern)
    if expression is None:
        return None
    return negated, ("" if anchored else "(?:.*/)?") + expression + ("/" if folders_only else "/?")


def _expression(pattern: str) -> str | None:
    """A glob as a regular expression; None when it ends in the middle of an escape or a class."""
    if pattern.startswith("**/"):
        rest = _expression(pattern[3:])
        return None if rest is None else "(?:.*/)?" + rest
    if pattern.endswith("/**"):
        rest = _expression(pattern[:-3])
        return None if rest is None else rest + "/.+"
    found, place = [], 0
    while place < len(pattern):
        character = pattern[place]
        if pattern.startswith("/**/", place):
            found.append("/(?:.*/)?")
            place += 4
            continue
        place += 1
        if character == "*":
            found.append("[^/]*")
        elif character == "?":
            found.append("[^/]")
        elif character == "\\":
            if place == len(pattern):
                return None
            found.append(re.escape(pattern[place]))
            place += 1
        elif character == "[":
            end = _class_end(pattern, place)
            if end is None:
                return None
            found.append(_class(pattern[place:end]))
            place = end + 1
        else:
            found.append(re.escape(character))
    return "".join(found)


def _class_end(pattern: str, place: int) -> int | None:
    start = place + 1 if pattern[place : place + 1] in ("!", "^") else place
    end = pattern.find("]", start + 1)
    return None if end < 0 else end


def _class(text: str) -> str:
    negated = text[:1] in ("!", "^")
    body = (text[1:] if negated else text).replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
    if body.startswith("^"):
        body = "\\" + body
    return f"(?!/)[{'^' if negated else ''}{body}]"
