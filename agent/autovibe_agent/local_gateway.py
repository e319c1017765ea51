"""The hub's AI gateway on the guest's own loopback, for CLIs that read their key once and trust no CA of ours.

The machine's token lives for an hour; such a CLI may work for longer. So it gets a key of its own, which opens nothing
but this door, and every call goes on with the token of the moment. A hub that is away is waited for before a call is
sent; once sent, a call is never repeated here: it may have been paid.
"""

import hmac
import http.client
import json
import logging
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from autovibe_agent.hub import BACKOFF_SECONDS, Hub

BODY_LIMIT = 64 << 20
CHUNK = 1 << 16
#: How long a call waits for a hub that is away: shorter than the CLIs' own patience.
PATIENCE_SECONDS = 240.0
#: How long an answer may be silent.
SILENCE_SECONDS = 600.0
SENT_ON = ("content-type", "accept", "user-agent", "anthropic-version", "anthropic-beta")
SENT_BACK = ("content-type", "retry-after", "x-should-retry", "request-id", "x-request-id")

log = logging.getLogger(__name__)


class LocalGateway:
    """Serves `url` (http://127.0.0.1:PORT) to whoever knows `key`, until closed. Counts what the hub answers."""

    def __init__(self, hub: Hub, max_answers: int | None = None, patience: float = PATIENCE_SECONDS):
        self.hub, self.patience = hub, patience
        self.key = f"local-{secrets.token_urlsafe(24)}"
        self.answers = 0
        self.last_status: int | None = None
        self._max_answers = max_answers
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.gateway = self
        self._closed = threading.Event()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def is_exhausted(self) -> bool:
        """Whether the model has answered as often as it may."""
        return self._max_answers is not None and self.answers >= self._max_answers

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def note(self, status: int) -> None:
        """What the hub answered to a call of a model."""
        with self._lock:
            self.last_status = status
            self.answers += status < 300

    def connect(self) -> http.client.HTTPSConnection | None:
        """A connection to the hub, waited for; None when it does not come."""
        end, delay = time.monotonic() + self.patience, BACKOFF_SECONDS[0]
        while True:
            connection = self.hub.connection(SILENCE_SECONDS)
            try:
                connection.connect()
                return connection
            except OSError as error:
                connection.close()
                if time.monotonic() + delay > end or self._closed.wait(delay):
                    log.warning("a model call found no hub: %s", error)
                    return None
            delay = min(delay * 2, BACKOFF_SECONDS[1])


class _Handler(BaseHTTPRequestHandler):
    """One call: checked, sent on with the machine's token, its answer streamed back."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_LIMIT:
            self.close_connection = True
            return self._refuse(413, "the body has no length, or is too large")
        return self._serve(self.rfile.read(int(length)))

    def log_message(self, *_) -> None:
        """Nothing: calls are counted by the hub."""

    def _serve(self, body: bytes) -> None:
        gateway: LocalGateway = self.server.gateway
        is_call = self.command == "POST"
        if not self._is_authentic(gateway.key):
            return self._refuse(401, "not the key of this machine's local gateway")
        if not self.path.startswith("/v1/"):
            return self._refuse(404, "the gateway has no such path")
        if is_call and gateway.is_exhausted:
            return self._refuse(403, "the limit of turns is reached")
        connection = gateway.connect()
        if connection is None:
            return self._refuse(503, "the hub does not answer")
        try:
            return self._send_on(gateway, connection, body, is_call)
        finally:
            connection.close()

    def _send_on(self, gateway: LocalGateway, connection, body: bytes, is_call: bool) -> None:
        headers = {name: self.headers[name] for name in SENT_ON if self.headers.get(name)}
        headers["Authorization"] = f"Bearer {gateway.hub.token}"
        try:
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            if is_call:
                gateway.note(502)
            return self._refuse(502, f"the hub went away: {type(error).__name__}")
        if is_call:
            gateway.note(answer.status)
        return self._send_back(answer)

    def _send_back(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        for name in SENT_BACK:
            if answer.getheader(name):
                self.send_header(name, answer.getheader(name))
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while chunk := answer.read1(CHUNK):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            if answer.length:  # read1 does not say that an answer ended before its length
                raise http.client.IncompleteRead(b"", answer.length)
            self.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException):
            # A cut answer has no end: the CLI is to see that it is not whole.
            self.close_connection = True

    def _is_authentic(self, key: str) -> bool:
        scheme, _, shown = self.headers.get("Authorization", "").partition(" ")
        shown = shown.strip() if scheme.lower() == "bearer" else self.headers.get("x-api-key", "")
        return hmac.compare_digest(shown.encode("utf-8", "replace"), key.encode())

    def _refuse(self, status: int, why: str) -> None:
        body = json.dumps({"error": {"message": why, "type": "autovibe", "code": status}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
