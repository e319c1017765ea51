"""Hooks: what a CLI asks its agent before it runs a command, and tells it at the end of a turn.

Claude Code and qwen-code post such events to a URL and wait for the answer. So a command that may destroy something
is kept waiting until there is a checkpoint to go back to; without one it runs all the same, and that is said.
"""

import json
import logging
import re
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from autovibe_agent.base import Guard, Message
from autovibe_agent.checkpoints import Checkpoints

BODY_LIMIT = 16 << 20
#: Both CLIs know their shell by this name.
SHELL = "Bash"
#: How much longer than the checkpoint a CLI waits for the answer.
GRACE_SECONDS = 15
#: A CLI that works on for so long after the end of a turn has another one before it: else the final checkpoint is due.
NEXT_TURN_SECONDS = 5.0
SHOWN_CHARS = 120
#: How much of a command is looked at, and at once: what a pattern costs may grow with the cube of the latter.
LOOKED_AT, PIECE, OVERLAP = 1 << 15, 800, 200

log = logging.getLogger(__name__)


class Hooks:
    """Serves the hooks of one run of a CLI on the guest's loopback, until closed.

    Whoever else posts to it gets a checkpoint made, which the CLI's user may ask the hub for anyway.
    """

    def __init__(
        self,
        guard: Guard,
        checkpoints: Checkpoints,
        tell: Callable[[Message], None],
        next_turn_seconds: float = NEXT_TURN_SECONDS,
    ):
        self._guard, self._checkpoints, self._tell = guard, checkpoints, tell
        self._next_turn_seconds = next_turn_seconds
        self._risky = list(_compiled(guard.risky))
        self._turn: threading.Timer | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hooks = self
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def settings(self) -> dict:
        """What the CLI's settings have under `hooks`."""
        hook = {"type": "http", "url": f"http://127.0.0.1:{self._server.server_address[1]}/"}
        found = {}
        if self._risky and self._guard.risky_seconds:
            waits = {**hook, "timeout": int(self._guard.risky_seconds) + GRACE_SECONDS}
            found["PreToolUse"] = [{"matcher": SHELL, "hooks": [waits]}]
        if self._guard.turns:
            found["Stop"] = [{"hooks": [{**hook, "timeout": GRACE_SECONDS}]}]
        return found

    def close(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
        self._server.shutdown()
        self._server.server_close()

    def heard(self, event: dict) -> None:
        """One event; returns when the CLI may go on."""
        if event.get("hook_event_name") == "Stop":
            self._end_turn()
            return
        arguments = event.get("tool_input")
        command = arguments.get("command") if isinstance(arguments, dict) else None
        if isinstance(command, str) and self.is_risky(command):
            self._before(command)

    def is_risky(self, command: str) -> bool:
        """Whether one of the patterns finds something in one of its lines."""
        return any(pattern.search(piece) for piece in _pieces(command) for pattern in self._risky)

    def _before(self, command: str) -> None:
        shown = " ".join(command.split())
        shown = shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}…"
        missing = self._checkpoints.before(f"before: {shown}", self._guard.risky_seconds)
        if missing is not None:
            self._tell(Message("error", f"no checkpoint before {shown}: {missing}. It is run all the same"))

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
        why = ("at the end of a turn",)
        self._turn = threading.Timer(self._next_turn_seconds, self._checkpoints.consider, why)
        self._turn.daemon = True
        self._turn.start()


def _pieces(command: str) -> Iterable[str]:
    """Its lines, the continued ones in one; long ones in pieces."""
    lines = dict.fromkeys(command[:LOOKED_AT].replace("\\\n", " ").split("\n"))
    return (line[at : at + PIECE] for line in lines for at in range(0, max(1, len(line) - OVERLAP), PIECE - OVERLAP))


def _compiled(patterns: Iterable[str]) -> Iterable[re.Pattern]:
    for pattern in patterns:
        try:
            yield re.compile(pattern)
        except re.error as error:  # this guest's Python may be older than the hub's
            log.warning("the pattern %r of risky commands is left out: %s", pattern, error)


class _Handler(BaseHTTPRequestHandler):
    """One event. Its answer is empty: the CLI does what it was about to do."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_LIMIT:
            self.close_connection = True
            return self._answer(413)
        try:
            event = json.loads(self.rfile.read(int(length)))
        except ValueError:
            return self._answer(400)
        if isinstance(event, dict):
            self.server.hooks.heard(event)
        return self._answer(200)

    def log_message(self, *_) -> None:
        """Nothing: what matters is said in the machine's log."""

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
