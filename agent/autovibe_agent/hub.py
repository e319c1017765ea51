"""The hub's HTTP API as an agent sees it: JSON over TLS that trusts the hub's CA alone."""

import http.client
import json
import logging
import ssl
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 30
ANSWER_LIMIT = 32 << 20
BACKOFF_SECONDS = (0.3, 15.0)
CLOCK_TOLERANCE_SECONDS = 60.0
# X509_V_FLAG_NO_CHECK_TIME; and OpenSSL's codes for "not yet valid" and "has expired".
NO_CHECK_TIME = 0x200000
DATE_ERRORS = {9, 10}

log = logging.getLogger(__name__)


class HubUnreachable(Exception):
    """The hub gave no usable answer; the same call may be made again."""


class HubRefused(Exception):
    """The hub answered and said no."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(f"{code} ({status}): {message}")
        self.status = status
        self.code = code

    @property
    def identity_is_over(self) -> bool:
        """Whether there is nothing more to do under this identity: refused, superseded, enrolled elsewhere, ended."""
        return self.status == 401 or self.code in {"superseded", "already_enrolled", "stopping"}


class Hub:
    """Calls of one machine to its hub. Safe to share between threads; each keeps its own connection."""

    def __init__(self, url: str, ca: Path, set_clock: bool = False):
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError("hub_url must be an https URL")
        self.url = url.rstrip("/")
        self.token: str | None = None
        self._host, self._port, self._ca = parts.hostname, parts.port or 443, ca
        self._context = self._make_context()
        self._set_clock = set_clock
        self._local = threading.local()

    def _make_context(self, check_time: bool = True) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cafile=str(self._ca))
        if not check_time:
            context.verify_flags |= NO_CHECK_TIME
        return context

    def call(self, method: str, path: str, body: dict | bytes | None = None) -> dict:
        """The answer's JSON object ({} when it has none); HubUnreachable or HubRefused otherwise."""
        data = body if body is None or isinstance(body, bytes) else _encode(body)
        try:
            status, content = self._exchange(method, path, data)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code not in DATE_ERRORS or not self._set_clock:
                raise HubUnreachable(f"{method} {path}: {error.verify_message}") from error
            self._learn_time()
            raise HubUnreachable(f"{method} {path}: clock was wrong") from error
        except (OSError, http.client.HTTPException) as error:
            raise HubUnreachable(f"{method} {path}: {type(error).__name__}: {error}") from error
        return self._read(method, path, status, content)

    def persist(self, method: str, path: str, body: dict | bytes | None = None, seconds: float | None = None) -> dict:
        """Like `call`, but made again until the hub answers, or (HubUnreachable) the seconds are over."""
        end = None if seconds is None else time.monotonic() + seconds
        delay = BACKOFF_SECONDS[0]
        while True:
            try:
                return self.call(method, path, body)
            except HubUnreachable as error:
                if delay == BACKOFF_SECONDS[0]:
                    log.warning("hub does not answer: %s; trying again", error)
                if end is not None and time.monotonic() + delay > end:
                    raise
            time.sleep(delay)
            delay = min(delay * 2, BACKOFF_SECONDS[1])

    def connection(self, timeout: float) -> http.client.HTTPSConnection:
        """A new connection to the hub, which is made when it is first used."""
        return http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=timeout)

    def _exchange(self, method: str, path: str, data: bytes | None) -> tuple[int, bytes]:
        """One exchange; a kept connection that the hub has closed meanwhile is opened once more."""
        headers = {"Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                return self._send(connection, method, path, data, headers)
            except (ConnectionError, http.client.RemoteDisconnected, http.client.CannotSendRequest, ssl.SSLEOFError):
                connection.close()
        connection = self.connection(TIMEOUT_SECONDS)
        self._local.connection = connection
        return self._send(connection, method, path, data, headers)

    def _send(self, connection, method, path, data, headers) -> tuple[int, bytes]:
        try:
            connection.request(method, path, body=data, headers=headers)
            answer = connection.getresponse()
            content = answer.read(ANSWER_LIMIT + 1)
        except BaseException:
            connection.close()
            self._local.connection = None
            raise
        if self._set_clock:
            step_clock(answer.getheader("Date"))
        return answer.status, content

    def _read(self, method: str, path: str, status: int, content: bytes) -> dict:
        try:
            body = json.loads(content) if content else {}
        except ValueError:
            body = None
        if not isinstance(body, dict) or len(content) > ANSWER_LIMIT:
            raise HubUnreachable(f"{method} {path}: HTTP {status} without a JSON object")
        if status < 300:
            return body
        error = body.get("error") if isinstance(body.get("error"), dict) else {}
        code, message = str(error.get("type", "unknown")), str(error.get("message", ""))[:500]
        if status >= 500 or status == 429:
            raise HubUnreachable(f"{method} {path}: HTTP {status} {code}")
        raise HubRefused(status, code, message)

    def _learn_time(self) -> None:
        """Sets the clock by the hub, whose chain is verified except for its dates."""
        connection = http.client.HTTPSConnection(
            self._host, self._port, context=self._make_context(check_time=False), timeout=TIMEOUT_SECONDS
        )
        try:
            connection.request("GET", "/healthz")
            step_clock(connection.getresponse().getheader("Date"))
        except (OSError, http.client.HTTPException) as error:
            raise HubUnreachable(f"GET /healthz: {error}") from error
        finally:
            connection.close()


def _encode(body: dict) -> bytes:
    """As JSON in valid UTF-8: output and file names may be any bytes."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def step_clock(date: str | None) -> None:
    """Sets the clock when a hub's Date header is more than a minute away: a restored guest wakes up in the past."""
    try:
        hub_time = parsedate_to_datetime(date).timestamp()
        if abs(hub_time - time.time()) > CLOCK_TOLERANCE_SECONDS:
            time.clock_settime(time.CLOCK_REALTIME, hub_time)
    except (TypeError, ValueError, OSError):
        return
