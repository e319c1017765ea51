"""What a null guest's programs do: a few of those that a client tries a guest with, on files that are kept in memory.

A program that is not here ends with 0 and says nothing, and so does a script that asks more of its shell than lists of
plain commands with redirections.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field

#: Where a program may be.
PROGRAM_FOLDERS = ("/bin/", "/sbin/", "/usr/", "/opt/")
#: What stands on every disk; deeper folders are there as soon as they are asked for.
TOP_FOLDERS = {"bin", "boot", "dev", "etc", "home", "lib", "media", "mnt", "opt", "proc", "root", "run", "sbin", "srv"}
TOP_FOLDERS |= {"sys", "tmp", "usr", "var"}
SHELLS = ("sh", "bash", "dash", "ash")
#: A shell's words that are more than a plain command, and what makes a word more than its text.
KEYWORDS = {"if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac", "in", "function"}
KEYWORDS |= {"{", "}", "!"}
EXPANDED = re.compile(r"[$`*?~]")
#: How a client kills a program with all that it has started: a script of more than plain commands, with the pid last.
KILL_TREE = re.compile(r"\bkill -KILL\b.*\s(\d+)\s*", re.DOTALL)


@dataclass
class Meta:
    """A file's mode (octal text) and owner."""

    mode: str = "644"
    user: str = "root"
    group: str = "root"


@dataclass
class Disk:
    """A null guest's files; snapshots and clones take copies."""

    files: dict[str, bytes] = field(default_factory=dict)
    meta: dict[str, Meta] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def copy(self) -> Disk:
        meta = {path: Meta(**vars(found)) for path, found in self.meta.items()}
        return Disk(dict(self.files), meta, set(self.folders))

    def boot(self) -> None:
        """What stands in /run is memory: a start finds none of it."""
        for path in [path for path in self.files if path.startswith("/run/")]:
            del self.files[path]
            self.meta.pop(path, None)
        self.folders = {path for path in self.folders if not path.startswith("/run/")}

    def has_folder(self, path: str) -> bool:
        top = path.split("/")[1] if path.startswith("/") else ""
        inside = any(name.startswith(path.rstrip("/") + "/") for name in self.files)
        return path == "/" or top in TOP_FOLDERS or path in self.folders or inside

    def shows_folder(self, path: str) -> bool:
        """A folder that is known, not one that is only there when something is put into it."""
        inside = any(name.startswith(path.rstrip("/") + "/") for name in self.files)
        return path.lstrip("/") in {"", *TOP_FOLDERS} or path in self.folders or inside

    def write(self, path: str, content: bytes, *, mode: str = "644", append: bool = False) -> None:
        """Raises FileNotFoundError when its folder is missing."""
        if not self.has_folder(posixpath.dirname(path) or "/"):
            raise FileNotFoundError(path)
        if path == "/dev/null":
            return
        self.meta.setdefault(path, Meta(mode))
        self.files[path] = (self.files.get(path, b"") if append else b"") + content

    def read(self, path: str) -> bytes:
        if path == "/dev/null":
            return b""
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]


@dataclass
class Run:
    """One program and how it ended; it takes `seconds`."""

    disk: Disk
    hostname: str
    stdin: bytes = b""
    out: bytes = b""
    err: bytes = b""
    code: int = 0
    seconds: float = 0
    mode: str = "644"
    exited: bool = False
    #: What is to be killed in the guest, with which signal.
    kills: list[tuple[int, int]] = field(default_factory=list)

    def fail(self, program: str, what: str, code: int = 1) -> int:
        self.err += f"{program}: {what}\n".encode()
        return code


def missing(path: str, disk: Disk) -> bool:
    """Nothing can be executed under this name."""
    if not path or re.search(r"\s", path):
        return True
    return "/" in path and path not in disk.files and not path.startswith(PROGRAM_FOLDERS)


def run(disk: Disk, hostname: str, argv: list[str], stdin: bytes = b"") -> Run:
    """Execute a program; it must not be `missing`."""
    state = Run(disk, hostname, stdin)
    state.code = _command(state, argv)
    return state


def _command(state: Run, argv: list[str]) -> int:
    while len(argv) > 1 and (argv[0] in ("exec", "env", "/usr/bin/env") or re.match(r"[A-Za-z_]\w*=", argv[0])):
        argv = argv[1:]
    if posixpath.basename(argv[0]) in SHELLS and len(argv) > 2 and argv[1].endswith("c"):
        _shell(state, argv[2], argv[3:])
        return state.code
    program = PROGRAMS.get(posixpath.basename(argv[0]))
    if program is None:
        return 0
    try:
        return program(state, argv[1:])
    except FileNotFoundError as error:
        return state.fail(posixpath.basename(argv[0]), f"{error}: No such file or directory")


# The shell ----------------------------------------------------------------------------------------------------------


def _shell(state: Run, script: str, arguments: list[str]) -> None:
    killed = KILL_TREE.fullmatch(script[script.find("kill -KILL") :])
    if killed:
        state.kills.append((int(killed[1]), 9))
        return
    script = script.replace('"$@"', shlex.join(arguments[1:]))
    try:
        lexer = shlex.shlex(script.replace("\n", ";"), posix=True, punctuation_chars=";&|<>()")
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:
        return
    punctuation = [word for word in words if word and not set(word) - set(";&|<>()")]
    plain = not set(punctuation) - {";", "&&", "||", ">", ">>", ">&", "<"}
    if not plain or EXPANDED.search(re.sub(r"'[^']*'", "", script)) or KEYWORDS & set(words):
        return
    commands: list[tuple[str, list[str]]] = [(";", [])]
    for word in words:
        if word in (";", "&&", "||"):
            commands.append((word, []))
        else:
            commands[-1][1].append(word)
    for after, command in commands:
        skipped = (after == "&&" and state.code) or (after == "||" and not state.code)
        if command and not skipped and not state.exited:
            state.code = _redirected(state, command)


def _redirected(state: Run, words: list[str]) -> int:
    """A plain command whose output goes where its redirections say."""
    argv: list[str] = []
    before, target, append, both = (state.out, state.err, state.stdin), None, False, ""
    position = 0
    while position < len(words):
        word, following = words[position], words[position + 1 : position + 2]
        if word in (">", ">>", ">&", "<") and following:
            if argv and argv[-1] in ("1", "2") and word != "<":
                both = argv.pop()
            if word == "<":
                state.stdin = state.disk.files.get(following[0], b"")
            elif word == ">&":
                both = f"{both or 1}{following[0]}"
            elif both != "2":
                target, append = following[0], word == ">>"
            position += 1
        else:
            argv.append(word)
        position += 1
    state.out = state.err = b""
    code = _command(state, argv) if argv else 0
    out, err = state.out, state.err
    if both == "12":
        out, err = b"", err + out
    elif both == "21":
        out, err = out + err, b""
    elif both == "2":
        err = b""
    state.out, state.err, state.stdin = before[0] + (b"" if target else out), before[1] + err, before[2]
    if target:
        try:
            state.disk.write(target, out, mode=state.mode, append=append)
        except FileNotFoundError:
            return state.fail("sh", f"can't create {target}: nonexistent directory", 1)
    return code


# The programs -------------------------------------------------------------------------------------------------------


def _options(arguments: list[str]) -> tuple[str, list[str]]:
    """Its one-letter options, and the rest."""
    letters = "".join(word[1:] for word in arguments if re.fullmatch(r"-[a-zA-Z]+", word))
    return letters, [word for word in arguments if not re.fullmatch(r"-[a-zA-Z]+", word) and word != "--"]


def _echo(state: Run, arguments: list[str]) -> int:
    newline = arguments[:1] != ["-n"]
    state.out += " ".join(arguments if newline else arguments[1:]).encode() + (b"\n" if newline else b"")
    return 0


def _printf(state: Run, arguments: list[str]) -> int:
    text, values = arguments[0] if arguments else "", arguments[1:]
    text = re.sub(r"%[sb]", lambda _: values.pop(0) if values else "", text)
    state.out += text.replace("\\n", "\n").replace("%%", "%").encode()
    return 0


def _cat(state: Run, arguments: list[str]) -> int:
    code, paths = 0, arguments or ["-"]
    for path in paths:
        if path == "-":
            state.out += state.stdin
        elif path == "/etc/hostname" and path not in state.disk.files:
            state.out += f"{state.hostname}\n".encode()
        elif path != "/dev/null" and path not in state.disk.files:
            code = state.fail("cat", f"{path}: No such file or directory")
        else:
            state.out += state.disk.read(path)
    return code


def _sleep(state: Run, arguments: list[str]) -> int:
    try:
        state.seconds += float(arguments[0].rstrip("s"))
    except (IndexError, ValueError):
        return state.fail("sleep", "invalid time interval")
    return 0


def _exit(state: Run, arguments: list[str]) -> int:
    state.exited = True
    return int(arguments[0]) & 0xFF if arguments and arguments[0].isdigit() else state.code


def _mkdir(state: Run, arguments: list[str]) -> int:
    _, paths = _options(arguments)
    for path in paths:
        while len(path) > 1:
            state.disk.folders.add(path)
            path = posixpath.dirname(path)
    return 0


def _touch(state: Run, arguments: list[str]) -> int:
    for path in _options(arguments)[1]:
        state.disk.write(path, b"", mode=state.mode, append=True)
    return 0


def _rm(state: Run, arguments: list[str]) -> int:
    letters, paths = _options(arguments)
    for path in paths:
        found = [name for name in state.disk.files if name == path or ("r" in letters and name.startswith(path + "/"))]
        if not found and "f" not in letters:
            return state.fail("rm", f"cannot remove '{path}': No such file or directory")
        for name in found:
            del state.disk.files[name]
            state.disk.meta.pop(name, None)
    return 0


def _chmod(state: Run, arguments: list[str]) -> int:
    mode, *paths = _options(arguments)[1]
    for path in paths:
        state.disk.read(path)
        state.disk.meta[path].mode = mode.lstrip("0") or "0"
    return 0


def _chown(state: Run, arguments: list[str]) -> int:
    owner, *paths = _options(arguments)[1]
    user, _, group = owner.partition(":")
    for path in paths:
        state.disk.read(path)
        meta = state.disk.meta[path]
        meta.user, meta.group = user or meta.user, group or meta.group
    return 0


def _number(name: str) -> str:
    """The id of a user or group: root is 0, all others are one."""
    return {"root": "0"}.get(name, name if name.isdigit() else "1000")


def _mv(state: Run, arguments: list[str]) -> int:
    old, new = _options(arguments)[1][-2:]
    content, meta = state.disk.read(old), state.disk.meta.setdefault(old, Meta())
    state.disk.write(new, content)
    state.disk.meta[new] = meta
    del state.disk.files[old], state.disk.meta[old]
    return 0


def _stat(state: Run, arguments: list[str]) -> int:
    if arguments[:1] != ["-c"] or len(arguments) < 3:
        return 0
    for path in arguments[2:]:
        folder = path not in state.disk.files and state.disk.shows_folder(path)
        content = b"" if folder else state.disk.read(path)
        meta = Meta("755") if folder else state.disk.meta.setdefault(path, Meta())
        values = {"%a": meta.mode, "%U": meta.user, "%G": meta.group, "%s": str(len(content)), "%n": path}
        values |= {"%u": _number(meta.user), "%g": _number(meta.group)}
        values["%f"] = f"{int(meta.mode, 8) | (0o040000 if folder else 0o100000):x}"
        parts = re.split(r"(%[a-zA-Z])", arguments[1])
        state.out += "".join(values.get(part, part) for part in parts).encode() + b"\n"
    return 0


def _test(state: Run, arguments: list[str]) -> int:
    words = arguments[:-1] if arguments[-1:] == ["]"] else arguments
    match words:
        case ["-e" | "-f" | "-r", path]:
            return int(path not in state.disk.files and not (words[0] == "-e" and state.disk.shows_folder(path)))
        case ["-s", path]:
            return int(not state.disk.files.get(path))
        case ["-d", path]:
            return int(path in state.disk.files or not state.disk.shows_folder(path))
        case ["-n", text]:
            return int(not text)
        case ["-z", text]:
            return int(bool(text))
        case [left, "=" | "==", right]:
            return int(left != right)
    return 0


def _kill(state: Run, arguments: list[str]) -> int:
    signal = 15
    for word in arguments:
        if re.fullmatch(r"-\d+", word):
            signal = int(word[1:])
        elif word.isdigit():
            state.kills.append((int(word), signal))
    return 0


def _sha256sum(state: Run, arguments: list[str]) -> int:
    if not arguments:
        state.out += f"{hashlib.sha256(state.stdin).hexdigest()}  -\n".encode()
    for path in arguments:
        state.out += f"{hashlib.sha256(state.disk.read(path)).hexdigest()}  {path}\n".encode()
    return 0


def _head(state: Run, arguments: list[str]) -> int:
    if arguments[:1] == ["-c"] and len(arguments) == 3 and arguments[1].isdigit():
        zero = arguments[2] == "/dev/zero"
        state.out += bytes(int(arguments[1])) if zero else state.disk.read(arguments[2])[: int(arguments[1])]
    return 0


def _umask(state: Run, arguments: list[str]) -> int:
    if arguments and re.fullmatch(r"[0-7]{1,4}", arguments[0]):
        state.mode = f"{0o666 & ~int(arguments[0], 8):o}"
    return 0


def _hostname(state: Run, arguments: list[str]) -> int:
    state.out += f"{state.hostname}\n".encode()
    return 0


PROGRAMS: dict[str, Callable[[Run, list[str]], int]] = {
    "true": lambda state, arguments: 0,
    "false": lambda state, arguments: 1,
    "echo": _echo,
    "printf": _printf,
    "cat": _cat,
    "sleep": _sleep,
    "exit": _exit,
    "mkdir": _mkdir,
    "mv": _mv,
    "touch": _touch,
    "rm": _rm,
    "chmod": _chmod,
    "chown": _chown,
    "stat": _stat,
    "test": _test,
    "[": _test,
    "kill": _kill,
    "sha256sum": _sha256sum,
    "head": _head,
    "umask": _umask,
    "hostname": _hostname,
}
