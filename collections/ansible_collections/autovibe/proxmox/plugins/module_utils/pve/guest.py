# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest, through its agent: run a program, read and write files.

Text is latin-1 on the wire: Proxmox VE hands the agent's bytes on as characters. So bytes go out as
`b.decode("latin-1")` and come back by `s.encode("latin-1")`; UTF-8 survives that.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
import re
import secrets
import shlex
import stat
from dataclasses import dataclass, replace
from typing import Any

from .client import Client, waits
from .errors import AgentError, AgentNotAnswering, ApiError, NoAnswer, NotFound

#: Bytes of one file-write: 61440 characters of base64, which keeps every byte as it is.
WRITE_CHUNK = 46080
#: Characters of an exec's standard input.
INPUT_LIMIT = 65536
#: Mode of a new file for which none was given.
NEW_MODE = "600"
#: How long a killed program may take to be gone.
KILL_SECONDS = 10
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Kills a process with all that it has started: each is stopped before its children are looked for.
KILL_TREE = """\
k() { kill -STOP "$1"; for d in /proc/[0-9]*; do p=; while read -r n v; do
[ "$n" = PPid: ] && { p=$v; break; }; done < "$d/status"; [ "$p" = "$1" ] && k "${d##*/}"; done; kill -KILL "$1"; }
exec 2> /dev/null; k """


@dataclass(frozen=True)
class ExecResult:
    """How a program in the guest ended; `rc` is None when a signal ended it."""

    rc: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool
    timed_out: bool = False


@dataclass(frozen=True)
class Found:
    """A path in a guest, as it is: kind is absent, file, directory or other. Without `stat` there, content only."""

    kind: str
    sha256: str | None = None
    size: int | None = None
    mode: str | None = None
    owners: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class Guest:
    def __init__(self, client: Client, node: str, vmid: int):
        self.client, self.vmid = client, vmid
        self._path = f"/nodes/{node}/qemu/{vmid}/agent/"

    def ping(self) -> bool:
        try:
            self.client.post(self._path + "ping")
        except NoAnswer:
            return False
        except ApiError as error:
            if error.status in (500, 596) and not error.no_such_vm:
                self._refuse_hopeless(error)
                return False
            raise
        return True

    def wait(self, timeout: float) -> None:
        """Returns when the agent answers."""
        for left in waits(timeout):
            if self.ping():
                return
            if left <= 0:
                break
        raise AgentNotAnswering(
            f"VM {self.vmid} did not answer a ping within {timeout:g} s; does qemu-guest-agent run in it?"
        )

    def run(
        self, argv: list[str], *, stdin: bytes | None = None, timeout: float = 60, large: bool = False
    ) -> ExecResult:
        """Runs a program to its end; one that outlives `timeout` is killed with all that it has started.

        With `large` its output goes to files in the guest, which are then read: the agent itself loses an output of
        some megabytes.
        """
        if stdin is not None and len(stdin) > INPUT_LIMIT:
            raise AgentError(
                f"Standard input of {len(stdin)} bytes is more than the {INPUT_LIMIT} that an exec can carry."
            )
        if large:
            return self._run_to_files(argv, stdin, timeout)
        text = None if stdin is None else stdin.decode("latin-1")
        pid = self._call("post", "exec", argv[0], command=[_latin1(arg) for arg in argv], input__data=text)["pid"]
        result = self._ended(pid, argv[0], timeout)
        if result is not None:
            return result
        self._call("post", "exec", "kill", command=["/bin/sh", "-c", f"{KILL_TREE}{int(pid)}"])
        result = self._ended(pid, argv[0], KILL_SECONDS) or ExecResult(None, None, b"", b"", False)
        return replace(result, rc=None, timed_out=True)

    def interfaces(self) -> list[dict[str, Any]]:
        """The network interfaces and their addresses, as the agent says."""
        return self._call("get", "network-get-interfaces", "network-get-interfaces")["result"]

    def exists(self, path: str) -> bool:
        return self.run(["/bin/sh", "-c", f"test -e {shlex.quote(path)}"]).rc == 0

    def read(self, path: str) -> bytes | None:
        """A file's content (up to 16 MiB), None when it is not there."""
        content, truncated = self._read(path)
        if truncated:
            raise AgentError(f"{path} in VM {self.vmid} is longer than the 16 MiB that the agent can read.")
        return content

    def put(
        self,
        path: str,
        content: bytes,
        *,
        mode: str | None = None,
        owner: str | None = None,
        group: str | None = None,
        check: bool = False,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The file with this content, mode (octal text) and owner (user or user:group): (before, after), by hash.

        Its folder is made when missing. The file is written beside its place, where nobody else can read it, given its
        mode and owner, and then renamed: a reader sees the old content or the new one.
        """
        after = described(path, content, mode, owner, group)
        found = self.look(path)
        if found.kind == "directory":
            raise AgentError(f"{path} in VM {self.vmid} is a directory; name a file.")
        before = self._before(path, found, after)
        if before == after or check:
            return before, after
        user, _colon, both = (owner or "").partition(":")
        user = user or next(iter(found.owners), "")
        both = both or group or next(iter(found.groups), "")
        settings = [f"chown {shlex.quote(user + (':' + both if both else ''))}"] if user or both else []
        settings.append(f"chmod {shlex.quote(mode or found.mode or NEW_MODE)}")
        if before.get("sha256") == after["sha256"]:
            self._shell(" && ".join(f"{setting} {shlex.quote(path)}" for setting in settings), path)
        else:
            self._write(path, content, settings)
        return before, after

    def remove(self, path: str, *, check: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """The file gone: (before, after)."""
        found = self.look(path)
        if found.kind == "absent":
            return {}, {}
        if found.kind == "directory":
            raise AgentError(f"{path} in VM {self.vmid} is a directory; only files are removed.")
        if not check:
            self._shell(f"rm -f {shlex.quote(path)}", path)
        return {"path": path, **({"sha256": found.sha256, "size": found.size} if found.sha256 else {})}, {}

    def look(self, path: str) -> Found:
        """What stands at a path: one call, whatever its length."""
        quoted = shlex.quote(path)
        result = self.run(
            [
                "/bin/sh",
                "-c",
                f"test -e {quoted} || exit 44; stat -c '%f %s %U %u %G %g' {quoted} && sha256sum < {quoted}",
            ]
        )
        if result.rc == 44:
            return Found("absent")
        words = result.stdout.decode(errors="replace").split()
        if len(words) < 6:  # no stat in this guest: content decides
            content = self.read(path)
            return Found("absent") if content is None else Found("file", _sha256(content), len(content))
        kind = int(words[0], 16)
        rights = f"{stat.S_IMODE(kind):o}"
        if stat.S_ISDIR(kind):
            return Found("directory", mode=rights)
        if not stat.S_ISREG(kind) or len(words) < 7:
            return Found("other", mode=rights)
        return Found("file", words[6], int(words[1]), rights, (words[2], words[3]), (words[4], words[5]))

    def _before(self, path: str, found: Found, after: dict[str, Any]) -> dict[str, Any]:
        """The file that was found, in the words of the one that is wanted."""
        if found.kind == "absent":
            return {}
        before = {"path": path, "sha256": found.sha256, "size": found.size}
        if "mode" in after:
            before["mode"] = found.mode or after["mode"]
        if "owner" in after:
            user, colon, group = after["owner"].partition(":")
            before["owner"] = _named(user, found.owners) + (colon and ":" + _named(group, found.groups))
        if "group" in after:
            before["group"] = _named(after["group"], found.groups)
        return before

    def _write(self, path: str, content: bytes, settings: list[str]) -> None:
        folder, name = posixpath.split(path)
        # Its name follows from what it is for: one that a broken-off run has left is found and removed.
        parts = posixpath.join(folder or "/", f".{name}.autovibe-{_sha256(content)[:8]}")
        quoted = shlex.quote(parts)
        self._shell(f"rm -rf {quoted}; mkdir -p {shlex.quote(folder or '/')} && umask 077 && mkdir {quoted}", path)
        offsets = range(0, len(content), WRITE_CHUNK)
        for number, offset in enumerate(offsets):
            encoded = base64.b64encode(content[offset : offset + WRITE_CHUNK]).decode()
            self._call("post", "file-write", path, file=_latin1(f"{parts}/{number}"), content=encoded, encode=False)
        joined = " ".join(shlex.quote(f"{parts}/{number}") for number in range(len(offsets))) or "/dev/null"
        new = shlex.quote(f"{parts}/new")
        steps = [f"umask 077; cat {joined} > {new}", *(f"{setting} {new}" for setting in settings)]
        steps += [f"mv -f {new} {shlex.quote(path)}", f"rm -rf {quoted}"]
        self._shell(" && ".join(steps), path)

    def _run_to_files(self, argv: list[str], stdin: bytes | None, timeout: float) -> ExecResult:
        names = f"/tmp/.autovibe-exec-{secrets.token_hex(8)}"
        script = f'umask 077; exec "$@" > {names}.out 2> {names}.err'
        result = self.run(["/bin/sh", "-c", script, "sh", *argv], stdin=stdin, timeout=timeout)
        try:
            out, cut_out = self._read(f"{names}.out")
            err, cut_err = self._read(f"{names}.err")
        finally:
            self._shell(f"rm -f {names}.out {names}.err", names)
        return replace(result, stdout=out or b"", stderr=(err or b"") + result.stderr, truncated=cut_out or cut_err)

    def _ended(self, pid: int, program: str, timeout: float) -> ExecResult | None:
        for left in waits(timeout):
            status = self._call("get", "exec-status", program, pid=pid)
            if status.get("exited"):
                return _result(status)
            if left <= 0:
                break
        return None

    def _read(self, path: str) -> tuple[bytes | None, bool]:
        """A file's content, None when it is not there, and whether a part of it is missing."""
        try:
            answer = self.client.get(self._path + "file-read", file=_latin1(path))
        except ApiError as error:
            if "No such file or directory" in error.reason:
                return None, False
            raise self._explained(error, path) from error
        return answer.get("content", "").encode("latin-1"), bool(answer.get("truncated"))

    def _shell(self, script: str, path: str) -> ExecResult:
        result = self.run(["/bin/sh", "-c", script])
        if result.rc != 0:
            why = "it took too long" if result.timed_out else result.stderr.decode(errors="replace").strip()
            raise AgentError(f"{path} in VM {self.vmid}: {why or result}")
        return result

    def _call(self, method: str, verb: str, what: str, **values: Any) -> Any:
        try:
            return getattr(self.client, method)(self._path + verb, **values)
        except ApiError as error:
            raise self._explained(error, what) from error

    def _explained(self, error: ApiError, what: str) -> Exception:
        if error.status == 596:
            return AgentError(f"'{what}' in VM {self.vmid}: no such program, or the agent hangs.")
        if error.no_such_vm:
            return NotFound(f"VM {self.vmid} does not exist.")
        if "is not running" in error.reason or "No QEMU guest agent" in error.reason:
            return AgentNotAnswering(f"VM {self.vmid}: {error.reason}")
        return AgentError(f"{what} in VM {self.vmid}: {error.reason}") if error.status == 500 else error

    def _refuse_hopeless(self, error: ApiError) -> None:
        if "No QEMU guest agent configured" in error.reason or error.reason == f"VM {self.vmid} is not running":
            raise AgentNotAnswering(f"VM {self.vmid}: {error.reason}.") from error


def wrapped(argv: list[str], environment: dict[str, Any], chdir: str | None) -> list[str]:
    """The program with its environment and folder; the guest's shell and `env` see to them, the arguments stay."""
    for name in environment:
        if not VARIABLE.fullmatch(name):
            raise AgentError(f"'{name}' is not the name of an environment variable.")
    if environment:
        argv = ["env", *(f"{name}={value}" for name, value in environment.items()), *argv]
    if chdir is not None:
        argv = ["/bin/sh", "-c", f'cd {shlex.quote(chdir)} && exec "$@"', "sh", *argv]
    return argv


def described(
    path: str, content: bytes, mode: str | None, owner: str | None, group: str | None = None
) -> dict[str, Any]:
    """A file as before and after show it: never its content."""
    given = {"mode": (mode.lstrip("0") or "0") if mode else None, "owner": owner, "group": group}
    return {
        "path": path,
        "sha256": _sha256(content),
        "size": len(content),
        **{key: value for key, value in given.items() if value},
    }


def _named(wanted: str, names: tuple[str, ...]) -> str:
    """The owner that was found, as it was asked for: by name or by number."""
    return wanted if wanted in names or not names else names[0]


def _latin1(text: str) -> str:
    return text.encode().decode("latin-1")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _result(status: dict[str, Any]) -> ExecResult:
    return ExecResult(
        rc=status.get("exitcode"),
        signal=status.get("signal"),
        stdout=status.get("out-data", "").encode("latin-1"),
        stderr=status.get("err-data", "").encode("latin-1"),
        truncated=bool(status.get("out-truncated") or status.get("err-truncated")),
    )
