# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest, through its agent: run a program, read and write files.

Text is latin-1 on the wire: Proxmox VE hands the agent's bytes on as characters. So bytes go out as
`b.decode("latin-1")` and come back by `s.encode("latin-1")`; UTF-8 survives that.
"""

from __future__ import annotations

import hashlib
import posixpath
import shlex
from dataclasses import dataclass
from typing import Any

from .client import Client, waits
from .errors import AgentError, AgentNotAnswering, ApiError, NoAnswer

#: Bytes of one file-write that Proxmox VE encodes itself (its limit is 61440 characters after the encoding).
WRITE_CHUNK = 45 * 1024
#: Characters of an exec's standard input.
INPUT_LIMIT = 65536


@dataclass(frozen=True)
class ExecResult:
    """How a program in the guest ended; `rc` is None when a signal ended it."""

    rc: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool


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

    def run(self, argv: list[str], *, stdin: bytes | None = None, timeout: float = 60) -> ExecResult:
        """Runs a program to its end. One that outlives `timeout` is killed and reported as AgentError."""
        if stdin is not None and len(stdin) > INPUT_LIMIT:
            raise AgentError(
                f"Standard input of {len(stdin)} bytes is more than the {INPUT_LIMIT} that an exec can carry."
            )
        text = None if stdin is None else stdin.decode("latin-1")
        pid = self._call("post", "exec", argv[0], command=[_latin1(arg) for arg in argv], input__data=text)["pid"]
        for left in waits(timeout):
            status = self._call("get", "exec-status", argv[0], pid=pid)
            if status.get("exited"):
                return _result(status)
            if left <= 0:
                break
        self._call("post", "exec", "kill", command=["/bin/sh", "-c", f"kill -9 {int(pid)}"])
        raise AgentError(f"'{argv[0]}' in VM {self.vmid} ran for more than {timeout:g} s and was killed.")

    def read(self, path: str) -> bytes | None:
        """A file's content (up to 16 MiB), None when it is not there."""
        try:
            answer = self.client.get(self._path + "file-read", file=_latin1(path))
        except ApiError as error:
            if "No such file or directory" in error.reason:
                return None
            raise self._explained(error, path) from error
        if answer.get("truncated"):
            raise AgentError(f"{path} in VM {self.vmid} is longer than the 16 MiB that the agent can read.")
        return answer.get("content", "").encode("latin-1")

    def put(
        self, path: str, content: bytes, *, mode: str | None = None, owner: str | None = None, check: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The file with this content, mode (octal text) and owner (user or user:group): (before, after), by hash.

        Its folder is made when missing. Mode and owner stand before the content comes, so that nobody else ever reads a
        secret.
        """
        after = described(path, content, mode, owner)
        found = self.read(path)
        before: dict[str, Any] = {}
        if found is not None:
            before = {"path": path, "sha256": _sha256(found), "size": len(found), **self._stat(path, after)}
        if before == after or check:
            return before, after
        self._prepare(path, mode, owner)
        if before.get("sha256") != after["sha256"]:
            self._write(path, content)
        return before, after

    def _write(self, path: str, content: bytes) -> None:
        if len(content) <= WRITE_CHUNK:
            self._write_chunk(path, content)
            return
        parts = []
        for offset in range(0, len(content), WRITE_CHUNK):
            parts.append(f"{path}.part{len(parts)}")
            self._prepare(parts[-1], "600", None)
            self._write_chunk(parts[-1], content[offset : offset + WRITE_CHUNK])
        quoted = " ".join(map(shlex.quote, parts))
        self._shell(f"cat {quoted} > {shlex.quote(path)} && rm -f {quoted}", path)

    def _write_chunk(self, path: str, content: bytes) -> None:
        self._call("post", "file-write", path, file=_latin1(path), content=content.decode("latin-1"))

    def _prepare(self, path: str, mode: str | None, owner: str | None) -> None:
        quoted = shlex.quote(path)
        steps = [f"mkdir -p {shlex.quote(posixpath.dirname(path) or '/')}", f"umask 077; touch {quoted}"]
        steps += [f"chown {shlex.quote(owner)} {quoted}"] if owner else []
        steps += [f"chmod {shlex.quote(mode)} {quoted}"] if mode else []
        self._shell(" && ".join(steps), path)

    def _stat(self, path: str, wanted: dict[str, Any]) -> dict[str, Any]:
        keys = [key for key in ("mode", "owner") if key in wanted]
        if not keys:
            return {}
        answer = self._shell(f"stat -c '%a %U %U:%G' {shlex.quote(path)}", path).stdout.decode().split()
        if len(answer) != 3:  # no stat in this guest: content decides
            return {key: wanted[key] for key in keys}
        mode, user, both = answer
        owner = both if ":" in wanted.get("owner", "") else user
        return {key: {"mode": mode, "owner": owner}[key] for key in keys}

    def _shell(self, script: str, path: str) -> ExecResult:
        result = self.run(["/bin/sh", "-c", script])
        if result.rc != 0:
            raise AgentError(f"{path} in VM {self.vmid}: {result.stderr.decode(errors='replace').strip() or result}")
        return result

    def _call(self, method: str, verb: str, what: str, **values: Any) -> Any:
        try:
            return getattr(self.client, method)(self._path + verb, **values)
        except ApiError as error:
            raise self._explained(error, what) from error

    def _explained(self, error: ApiError, what: str) -> Exception:
        if error.status == 596:
            return AgentError(f"'{what}' in VM {self.vmid}: no such program, or the agent hangs.")
        if "is not running" in error.reason or "No QEMU guest agent" in error.reason:
            return AgentNotAnswering(f"VM {self.vmid}: {error.reason}")
        return AgentError(f"{what} in VM {self.vmid}: {error.reason}") if error.status == 500 else error

    def _refuse_hopeless(self, error: ApiError) -> None:
        if "No QEMU guest agent configured" in error.reason or error.reason == f"VM {self.vmid} is not running":
            raise AgentNotAnswering(f"VM {self.vmid}: {error.reason}.") from error


def described(path: str, content: bytes, mode: str | None, owner: str | None) -> dict[str, Any]:
    """A file as before and after show it: never its content."""
    given = {"mode": mode.lstrip("0") if mode else None, "owner": owner}
    return {
        "path": path,
        "sha256": _sha256(content),
        "size": len(content),
        **{key: value for key, value in given.items() if value},
    }


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
