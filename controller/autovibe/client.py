"""The hub's API as the command line uses it: a distant hub that one has logged in to, or the one of the state folder.

`<state>/login.json` (0600: {"url", "key", "ca"}) says which distant hub; without it commands go to the socket of the
hub that runs here. When none does, the same application serves them from this process: it is done when the hub is up.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from autovibe.errors import AutovibeError
from autovibe.hubkey import write_secret
from autovibe.settings import Settings

TIMEOUT_SECONDS = 60
#: A stream is not silent for longer.
STREAM_SECONDS = 45
RECONNECT_SECONDS = 60
#: How long a request is sent again while the hub still works on its first sending.
IN_USE_SECONDS = 120
_PREFIX = "/api/v1"


class HubUnreachable(AutovibeError):
    """The hub cannot be reached."""

    code = "hub_unreachable"
    http_status = 503


class NoHub(AutovibeError):
    """There is no hub here."""

    code = "no_hub"
    default_hint = "`autovibe up` starts one here, `autovibe login URL` has the commands go to a distant one."


class NotLoggedIn(AutovibeError):
    """The login is not good any more."""

    code = "not_logged_in"
    default_hint = "Log in again with `autovibe login URL`."


class Refused(AutovibeError):
    """The hub has refused it."""

    def __init__(self, status: int, code: str, message: str, hint: str | None, retry_after: int | None = None) -> None:
        super().__init__(message, hint or "")
        self.status, self.code, self.retry_after = status, code, retry_after
        # What is wrong with the request is wrong with the command.
        self.exit_code = 2 if status == 400 else 1


class UnknownAnswer(AutovibeError):
    """The hub's answer is not of a form that this command knows."""

    code = "unknown_answer"
    default_hint = "If it is a hub, it is of another version: bring it and this command to the same one."


class StillUnderWay(AutovibeError):
    """The hub has not finished yet what it was asked for."""

    code = "still_under_way"
    default_hint = (
        "Look at what there is (`autovibe machine list`, `autovibe checkpoint list`, `autovibe hub`) before you run the"
        " command again: that would ask anew."
    )


@dataclass(frozen=True)
class Login:
    """A distant hub: its URL, the key that it knows us by, and its own CA when it has one."""

    url: str
    key: str
    ca: str | None = None


@dataclass
class Client:
    """A hub. Answers are plain data with times, uuids and exact decimals as such."""

    http: httpx.Client
    where: str
    #: Nothing here does what is asked for before the hub is up.
    is_down: bool = False

    def ask(
        self, method: str, path: str, view: type[BaseModel] | None = None, *, body: Any = None, **query: Any
    ) -> dict[str, Any]:
        """One request; `view` is the form of its answer. Refused, HubUnreachable, NotLoggedIn,
        UnknownAnswer.

        A POST has an Idempotency-Key, so it is safe to send it again when its answer was lost. StillUnderWay when the
        hub works on it for longer than IN_USE_SECONDS then.
        """
        answer = self._send(method, path, body, query)
        try:
            data = answer.json() if answer.content else None
        except ValueError:
            raise UnknownAnswer(f"The hub ({self.where}) answered {method} {path} with what is no JSON") from None
        return self.read_as(view, data, f"{method} {path}") if view is not None else data

    def read_as(self, view: type[BaseModel], data: Any, what: str) -> dict[str, Any]:
        """What the hub has answered when it was asked for `what`; UnknownAnswer."""
        try:
            return view.model_validate(data).model_dump(by_alias=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "all of it"
            message = f"The hub ({self.where}) answered {what} in another form: {field}: {first['msg']}"
            raise UnknownAnswer(message) from None

    def text(self, path: str, **query: Any) -> str:
        """What a GET answers that is no JSON."""
        return self._send("GET", path, None, query).text

    def download(self, path: str, file: BinaryIO) -> None:
        """Write what a GET answers into a file that is empty."""

        def request() -> httpx.Response:
            file.seek(0)
            file.truncate()
            with self.http.stream("GET", _PREFIX + path) as answer:
                if answer.is_error:
                    answer.read()
                for piece in answer.iter_bytes() if answer.is_success else ():
                    file.write(piece)
            return answer

        self._once(request, f"GET {path}")
        file.seek(0)

    def _send(self, method: str, path: str, body: Any, query: dict[str, Any]) -> httpx.Response:
        headers = {}
        if method == "POST":
            headers["Idempotency-Key"] = query.pop("key", None) or uuid4().hex
        content = None
        if body is not None:
            from autovibe import jsonform

            content, headers["Content-Type"] = jsonform.dumps(body), "application/json"
        asked = {name: value for name, value in query.items() if value is not None}
        request = partial(self.http.request, method, _PREFIX + path, content=content, headers=headers, params=asked)
        return self._once(request, f"{method} {path}")

    def _once(self, request: Callable[[], httpx.Response], what: str) -> httpx.Response:
        """The answer of a request that may be sent again."""
        was_lost, ends = False, None
        while True:
            try:
                return _checked(request())
            except httpx.TransportError as error:
                if was_lost or isinstance(error, httpx.ConnectError):
                    raise HubUnreachable(f"The hub ({self.where}) does not answer: {_reason(error)}") from None
                was_lost = True
            except Refused as refused:
                if refused.code != "idempotency_key_in_use":
                    raise
                ends = ends or time.monotonic() + IN_USE_SECONDS
                left = ends - time.monotonic()
                if left <= 0:
                    raise StillUnderWay(f"The hub ({self.where}) is still busy with {what}") from None
                time.sleep(min(refused.retry_after or 1, left))

    def get(self, path: str, view: type[BaseModel], **query: Any) -> dict[str, Any]:
        return self.ask("GET", path, view, **query)

    def post(self, path: str, view: type[BaseModel] | None = None, body: Any = None, **query: Any) -> dict[str, Any]:
        return self.ask("POST", path, view, body=body, **query)

    def pages(self, path: str, view: type[BaseModel], *, most: int | None = None, **query: Any) -> list[dict[str, Any]]:
        """All items of a list, at most `most`."""
        return list(self.items(path, view, most=most, **query))

    def items(self, path: str, view: type[BaseModel], *, most: int | None = None, **query: Any) -> Iterator[dict]:
        """Such items one by one, of a list that may be long: each page is asked for when it is needed."""
        left, cursor = most, None
        while left is None or left > 0:
            limit = 500 if left is None else min(500, left)
            page = self.ask("GET", path, limit=limit, cursor=cursor, **query)
            try:
                found, cursor = page["items"], page["next_cursor"]
            except (KeyError, TypeError):
                raise UnknownAnswer(f"The hub ({self.where}) answered GET {path} with what is no list") from None
            for item in found:
                yield self.read_as(view, item, f"GET {path}")
            left = None if left is None else left - len(found)
            if cursor is None:
                return

    def follow(
        self, path: str, after: int = 0, on_away: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(event, data) of a stream until its `end`; after a broken connection it goes on where it was.

        `on_away` is called when the hub does not answer then; it is asked for RECONNECT_SECONDS more.
        """
        gone_since, failures = None, 0
        while True:
            try:
                for kind, number, data in self._stream(path, after):
                    gone_since, failures = None, 0
                    after = max(after, number or 0)
                    yield kind, data
                    if kind == "end":
                        return
            except (httpx.TransportError, HubUnreachable, Refused) as error:
                gone_since = gone_since or time.monotonic()
                is_late = time.monotonic() - gone_since > RECONNECT_SECONDS
                if is_late and isinstance(error, httpx.TransportError):
                    raise HubUnreachable(f"The hub ({self.where}) does not answer: {_reason(error)}") from None
                if is_late or not is_away(error):
                    raise
                # The first one may be a connection that broke; the second, that there is no other.
                failures += 1
                if failures == 2:
                    on_away()
            time.sleep(0.5)

    def _stream(self, path: str, after: int) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
        timeout = httpx.Timeout(TIMEOUT_SECONDS, read=STREAM_SECONDS)
        with self.http.stream("GET", _PREFIX + path, params={"after": after}, timeout=timeout) as answer:
            if answer.is_error:
                answer.read()
                _checked(answer)
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                raise UnknownAnswer(f"The hub ({self.where}) answered GET {path} with what is no stream")
            kind, number, lines = "message", None, []
            for line in _lines(answer):
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "id" and value.isdecimal():
                    number = int(value)
                elif name == "data":
                    lines.append(value)
                elif not line and lines:
                    try:
                        data = json.loads("\n".join(lines))
                    except ValueError:
                        raise UnknownAnswer(f"The hub ({self.where}) streams at GET {path} what is no JSON") from None
                    yield kind, number, data
                    kind, number, lines = "message", None, []


def is_away(error: Exception) -> bool:
    """Whether the hub may answer again soon: it, or its database, is being started."""
    return isinstance(error, (httpx.TransportError, HubUnreachable)) or getattr(error, "status", None) == 503


@contextlib.contextmanager
def connect(settings: Settings) -> Iterator[Client]:
    """The hub that commands go to."""
    login = load_login(settings)
    if login is not None:
        with distant(login) as client:
            yield client
        return
    from autovibe.sockets import answers, short

    if answers(settings.api_socket):
        with short(settings.api_socket) as name, _local(name) as http:
            yield Client(http, "here")
        return
    with _inside(settings) as http:
        from autovibe import supervise

        yield Client(http, "here", is_down=supervise.status(settings) is None)


@contextlib.contextmanager
def distant(login: Login) -> Iterator[Client]:
    """The hub of this login."""
    headers = {"Authorization": f"Bearer {login.key}"} if login.key else {}
    with httpx.Client(base_url=login.url, headers=headers, verify=_trust(login), timeout=TIMEOUT_SECONDS) as http:
        yield Client(http, login.url)


@contextlib.contextmanager
def _inside(settings: Settings) -> Iterator[httpx.Client]:
    """No hub is up: serve the commands from this process. NoHub where there never was one.

    It would make a database, and leave its server running, only to say that there is nothing in it.
    """
    from autovibe import db, postgres
    from autovibe.api.v1 import server

    settings.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)  # where there can be none, that is said
    if settings.database_url is None and not postgres.exists(settings):
        raise NoHub(f"There is no hub in {settings.state_dir}")
    # What is wrong with the database is said by itself.
    db.engine(settings)
    with tempfile.TemporaryDirectory(prefix="autovibe-") as folder:
        path = Path(folder) / "api.sock"
        with server.inside(settings, path), _local(str(path)) as http:
            yield http


def _local(path: str) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=path)
    return httpx.Client(transport=transport, base_url="http://hub", timeout=TIMEOUT_SECONDS)


def load_login(settings: Settings) -> Login | None:
    """The distant hub that one has logged in to, or None."""
    try:
        login = Login(**json.loads(login_path(settings).read_bytes()))
        if not all(isinstance(one, str) for one in (login.url, login.key, login.ca or "")):
            raise ValueError("a field is no text")
        if not login.url.startswith(("https://", "http://")):
            raise ValueError("the URL is none")
        _trust(login)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, ssl.SSLError):
        raise NotLoggedIn(f"{login_path(settings)} is not what a login writes") from None
    return login


def save_login(settings: Settings, login: Login) -> None:
    """Remember it, in a file that only its owner can read."""
    path = login_path(settings)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_secret(path, json.dumps(login.__dict__).encode())


def forget_login(settings: Settings) -> None:
    login_path(settings).unlink(missing_ok=True)


def login_path(settings: Settings) -> Path:
    return settings.state_dir / "login.json"


def _trust(login: Login) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=login.ca) if login.ca else ssl.create_default_context()


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        error = answer.json()["error"]
        code, message, hint = error["code"], error["message"], error.get("hint")
    except (ValueError, KeyError, TypeError):
        raise HubUnreachable(f"{answer.url.host} answered {answer.status_code}, and is no hub") from None
    if answer.status_code == 401:
        raise NotLoggedIn(message)
    wait = answer.headers.get("retry-after", "")
    raise Refused(answer.status_code, code, message, hint, int(wait) if wait.isdecimal() else None)


def _lines(answer: httpx.Response) -> Iterator[str]:
    """The lines of a stream. httpx ends one at U+2028 and others, too, which may stand in what a machine says."""
    rest = b""
    for chunk in answer.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode().removesuffix("\r") for line in lines)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
