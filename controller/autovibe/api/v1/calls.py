"""How a path is served: who asks, what that needs, one transaction, one answer.

A path's function is written for a `Call` and plain data:

    @router.get("/machines/{machine}", response_model=MachineInFull, **doc(404))
    @needs(READ)
    def show(call: Call, machine: str): ...

`needs` opens the transaction, remembers the answer of a POST with an Idempotency-Key, and gives a GET its ETag.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from anyio import to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session

from autovibe import audit, db, jsonform, lookup
from autovibe.access import Caller, Forbidden, Level
from autovibe.api.v1 import bodies, paths, replays
from autovibe.api.v1.errors import PreconditionFailed
from autovibe.api.v1.schemas import Error
from autovibe.async_db import Pool
from autovibe.errors import Invalid, NotFound
from autovibe.models import Checkpoint, Machine, Operation, Project
from autovibe.settings import Settings

SAFE = ("GET", "HEAD")
EVERYWHERE, ANYWHERE = "every project", "any project"
WHEN = {
    400: "The request is not valid.",
    401: "Nobody is known by that key or token.",
    402: "The project has not that much money.",
    403: "You may not do that.",
    404: "There is no such thing, or none that you may see.",
    409: "It is not in a state for that, exists already, or the Idempotency-Key is in use or was for something else.",
    412: "It has changed since the ETag in If-Match.",
    413: "The body is too large.",
    429: "Too many requests: Retry-After says when.",
    503: "The hub's database does not answer.",
}


@dataclass
class Answer:
    """What a function answers when it is not 200 and data alone.

    `remembered`: what a repeated request gets instead. Not `once`: a repeated request is asked anew. `content`: data
    that is JSON already, of a GET; or, of one that `reads`, what makes it, where that would hold up the event loop.
    """

    data: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    remembered: Any = None
    once: bool = True
    content: bytes | Callable[[], bytes] | None = None
    #: What is done once the change is committed, and adds to the data; if it is not done, the scheduler does it.
    after: Callable[[], dict[str, Any]] | None = None


@dataclass
class Call:
    """One request in its transaction. What it finds is only what its caller may see, and may do `level` to."""

    request: Request
    session: Session
    settings: Settings
    caller: Caller
    level: Level
    #: Who may do what has changed: this process forgets at once who everybody is, others as the database notifies it.
    changes_access: bool = False
    #: What its caller has been let do, for `require_again`: where (a project's uuid, EVERYWHERE, ANYWHERE) -> level.
    needed: dict[str, int] = field(default_factory=dict)

    @property
    def request_id(self) -> str:
        return self.request.state.request_id

    def project(self, text: str | UUID, level: Level | None = None) -> Project:
        found = self._find(Project, text, "project", Project.uuid)
        self._require_in(found.uuid, level or self.level)
        return found

    def machine(self, text: str | UUID, level: Level | None = None) -> Machine:
        found = self._find(Machine, text, "machine", Machine.project_uuid)
        self._require_in(found.project_uuid, level or self.level)
        return found

    def checkpoint(self, text: str | UUID, level: Level | None = None, project: Project | None = None) -> Checkpoint:
        scope = {"project_uuid": project.uuid} if project is not None else {}
        found = self._find(Checkpoint, text, "checkpoint", Checkpoint.project_uuid, **scope)
        self._require_in(found.project_uuid, level or self.level)
        return found

    def operation(self, uuid: UUID) -> Operation:
        """One of a project that it can see, or of none: templates, and looks for all checkpoints."""
        found = self.session.get(Operation, uuid)
        if found is None or (found.project_uuid is not None and self.caller.level_in(found.project_uuid) is None):
            raise NotFound(f"There is no operation {uuid}")
        return found

    def everything(self, hint: str) -> None:
        """Forbidden for who does not see all projects."""
        if self.caller.grants is not None:
            raise Forbidden(f"{self.caller.name} does not see all projects", hint)
        self.needed[EVERYWHERE] = self.level

    def require(self, level: Level) -> None:
        """Forbidden unless the caller may do such things at all."""
        self.caller.require(level)
        self.needed[ANYWHERE] = max(level, self.needed.get(ANYWHERE, level))

    def _require_in(self, project_uuid: UUID, level: Level) -> None:
        self.caller.require_in(project_uuid, level)
        self.needed[str(project_uuid)] = max(level, self.needed.get(str(project_uuid), level))

    def require_again(self, needed: Mapping[str, int]) -> None:
        """Refuse a repeated request when its caller may not do any more what it was let do then."""
        for where, level in needed.items():
            if where == EVERYWHERE:
                self.everything("Ask an admin of all projects.")
            elif where == ANYWHERE:
                self.require(Level(level))
            elif self.caller.level_in(UUID(where)) is None:
                raise NotFound("What this request was for is not there, or you may not see it any more")
            else:
                self._require_in(UUID(where), Level(level))

    def _find(self, model: Any, text: str | UUID, noun: str, column: Any, **scope: Any) -> Any:
        return lookup.find(self.session, model, text, noun, among=self.caller.visible(column), **scope)

    def audit(self, action: str, object_type: str, **what: Any) -> None:
        """Write down a change, in its own transaction."""
        audit.record(self.session, self.caller, self.request_id, action, object_type, **what)
        self.changes_access |= object_type in ("user", "key") or action in ("grant", "withdraw")

    def unchanged_since(self, view: Any) -> None:
        """PreconditionFailed when the request has an If-Match that is not the ETag of what there is now."""
        wanted = self.request.headers.get("if-match")
        if wanted and wanted.strip() != "*" and etag(jsonform.dumps(view)) not in _etags(wanted):
            raise PreconditionFailed()


@dataclass(frozen=True)
class Reading:
    """One GET that comes often: the event loop answers it itself, by statements that Postgres has planned."""

    request: Request
    pool: Pool
    settings: Settings
    caller: Caller
    level: Level

    def visible(self) -> dict[str, Any]:
        """What a list is limited to, as its statement takes it: the projects that the caller can see."""
        return {} if self.caller.grants is None else {"visible": list(self.caller.grants)}

    async def call(self, work: Callable[[Call], Any]) -> Any:
        """What `work` returns, in a transaction and a thread: for what one statement cannot do."""
        make = functools.partial(Call, self.request, settings=self.settings, caller=self.caller, level=self.level)
        return await to_thread.run_sync(db.transact, self.settings, lambda session: work(make(session=session)))


def needs(level: Level) -> Callable[[Callable[..., Any]], Callable[..., Response]]:
    """A path's function as FastAPI wants it; the route checks `level` before the body is even read."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Response]:
        @functools.wraps(function)
        def endpoint(request: Request, **values: Any) -> Response:
            settings = request.app.state.settings

            def run(scope: Any) -> Answer:
                with scope(settings) as session:
                    call = Call(request, session, settings, request.state.caller, level)
                    answer = replays.once(call, lambda: _answer(function(call, **values)))
                if call.changes_access:
                    request.app.state.doors.forget()
                return answer

            answer = db.again(run)(db.session_scope)
            if answer.after is not None:
                answer.data = {**answer.data, **answer.after()}
            return _respond(request, answer)

        return _as_endpoint(endpoint, function, level)

    return decorate


def reads(level: Level) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Like `needs`, for an `async` function of a `Reading` and plain data."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def endpoint(request: Request, **values: Any) -> Response:
            state = request.app.state
            reading = Reading(request, state.pool, state.settings, request.state.caller, level)
            answer = _answer(await function(reading, **values))
            if callable(answer.content):
                return await to_thread.run_sync(_respond, request, answer)
            return _respond(request, answer)

        return _as_endpoint(endpoint, function, level)

    return decorate


def _as_endpoint(endpoint: Any, function: Callable[..., Any], level: Level) -> Any:
    """`endpoint` with the parameters of `function`, but a request for the first one."""
    hints = typing.get_type_hints(function, include_extras=True)
    _, *given = inspect.signature(function).parameters.values()
    parameters = [one.replace(annotation=hints[one.name]) for one in given]
    first = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Request)
    endpoint.__signature__ = inspect.Signature([first, *parameters])
    endpoint.level = level
    return endpoint


class ApiRoute(APIRoute):
    """A route that knows who asks before it reads what is asked."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()
        level = getattr(self.endpoint, "level", None)
        known = {one.alias for one in self.dependant.query_params}

        async def handle(asked: Request) -> Response:
            request = bodies.JsonRequest(asked.scope, asked.receive)
            request.scope["path_params"] = paths.parameters(request.scope)
            if level is not None:
                request.state.caller = await request.app.state.doors.caller(request)
                request.state.caller.require(level)
            # A misspelt filter would silently show everything.
            if unknown := request.query_params.keys() - known:
                raise Invalid(f"There is no query parameter {min(unknown)[:80]!r} here")
            if self.body_field is not None:
                await request.require_json()
            return await handler(request)

        return handle


def doc(*statuses: int, status: int = 200, more: dict[int | str, Any] | None = None) -> dict[str, Any]:
    """The answers of a path, for OpenAPI: what all paths have, `statuses`, and `more`."""
    common = {400, 401, 403, 413, 429, 503, *statuses}
    responses: dict[int | str, Any] = {code: {"model": Error, "description": WHEN[code]} for code in sorted(common)}
    return {"responses": responses | (more or {}), "status_code": status}


def etag(content: bytes) -> str:
    """The ETag of an answer's bytes."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _etags(header: str) -> set[str]:
    return {one.strip().removeprefix("W/") for one in header.split(",")}


def _answer(made: Any) -> Answer:
    return made if isinstance(made, Answer) else Answer(made)


def _respond(request: Request, answer: Answer) -> Response:
    if isinstance(answer.data, Response):
        return answer.data
    if answer.status == 204:
        return Response(status_code=204)
    content = jsonform.dumps(answer.data) if answer.content is None else answer.content
    if callable(content):
        content = content()
    headers: Mapping[str, str] = {"Cache-Control": "private, no-cache", **answer.headers}
    if request.method in SAFE:
        tag = etag(content)
        headers = {**headers, "ETag": tag}
        known = request.headers.get("if-none-match")
        if known and (known.strip() == "*" or tag in _etags(known)):
            return Response(status_code=304, headers=dict(headers))
    return Response(content, request_status(request, answer), dict(headers), media_type="application/json")


def request_status(request: Request, answer: Answer) -> int:
    """The answer's own status, else the one that its route declares."""
    return answer.status if answer.status != 200 else (request.scope["route"].status_code or 200)
