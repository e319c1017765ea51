"""/agent/v1: what the agent in a machine talks to. A machine sees and changes itself only: its token says who it is."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session
from starlette.routing import Route

from autovibe import agentpack, agents, db, machine_files, tokens
from autovibe.api import messages
from autovibe.errors import Invalid, NotFound
from autovibe.heartbeats import Heartbeats


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    if heartbeats := getattr(app.state, "heartbeats", None):
        app.state.heartbeats = None
        await heartbeats.close()


router = APIRouter(prefix="/agent/v1", lifespan=lifespan)


async def read_body(request: Request) -> bytes:
    """The raw body: it is parsed only after the token has been checked."""
    return await request.body()


RawBody = Annotated[bytes, Depends(read_body)]


@contextmanager
def caller(request: Request) -> Iterator[tuple[Session, tokens.Authenticated]]:
    """One transaction of the machine that asks; BadToken when none does."""
    settings = request.app.state.settings
    with db.session_scope(settings) as session:
        who = tokens.read(session, request.headers, settings)
        request.app.state.rate_limit.take(who.machine.uuid)
        yield session, who


@router.get("/agent")
def agent_index() -> dict[str, str]:
    pack = agentpack.current()
    return {"sha256": pack.sha256, "path": f"{router.prefix}/agent/{pack.sha256}.pyz"}


@router.get("/agent/{name}")
def agent_file(name: str) -> Response:
    pack = agentpack.current()
    if name != f"{pack.sha256}.pyz":
        raise NotFound("This hub serves another agent", f"Ask {router.prefix}/agent.")
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(pack.content, media_type="application/zip", headers=headers)


@router.post("/enrol")
def enrol(request: Request, body: RawBody) -> dict:
    settings = request.app.state.settings
    asked = messages.parse(messages.Enrol, body)
    with db.session_scope(settings) as session:
        token, expires_at = agents.enrol(session, settings, agents.Enrolment(**asked.model_dump()))
    return {
        "token": token,
        "expires_at": expires_at.isoformat(),
        "heartbeat_seconds": settings.heartbeat_seconds,
    }


@router.get("/assignment")
def assignment(request: Request) -> dict:
    with caller(request) as (session, who):
        return agents.assignment(session, request.app.state.settings, who.machine)


async def heartbeat(request: Request) -> Response:
    state = request.app.state
    token = tokens.shown(request.headers)
    state.rate_limit.take(tokens.claims_of(token, state.settings).machine_uuid)
    if getattr(state, "heartbeats", None) is None:
        state.heartbeats = Heartbeats(state.settings)
    try:
        beat = messages.parse(messages.Heartbeat, await request.body())
    except Invalid:
        # Who may not ask is told that, whatever it sends; and what it sends shows that it lives.
        await state.heartbeats.answer(token, None)
        raise
    return JSONResponse(await state.heartbeats.answer(token, beat.progress))


# The most frequent request by far: it is found first, and nothing stands between it and its statement.
router.routes.insert(0, Route(f"{router.prefix}/heartbeat", heartbeat, methods=["POST"], include_in_schema=False))


@router.post("/progress", status_code=204)
def progress(request: Request, body: RawBody) -> Response:
    with caller(request) as (session, who):
        told = messages.parse(messages.Progress, body)
        agents.record_progress(session, who.machine, [message.model_dump() for message in told.messages], told.spool)
    return Response(status_code=204)


@router.post("/checkpoints", status_code=202)
def request_checkpoint(request: Request, body: RawBody) -> JSONResponse:
    with caller(request) as (session, who):
        asked = messages.parse(messages.CheckpointRequest, body)
        context = asked.context if isinstance(asked.context, str | None) else json.dumps(asked.context)
        checkpoint, operation = agents.request_checkpoint(
            session,
            request.app.state.settings,
            who.machine,
            checkpoint_type=asked.type,
            standing=asked.standing,
            description=asked.description,
            context=context,
            manifest=asked.manifest.model_dump(),
        )
    return JSONResponse({"checkpoint": str(checkpoint), "operation": str(operation)}, 202)


@router.get("/checkpoints/{uuid}")
def checkpoint_status(request: Request, uuid: str) -> dict[str, str]:
    with caller(request) as (session, who):
        try:
            checkpoint_uuid = UUID(uuid)
        except ValueError:
            raise NotFound(f"This machine has no checkpoint {uuid[:40]!r}") from None
        return {"status": agents.checkpoint_status(session, who.machine, checkpoint_uuid)}


@router.post("/files/{name}/parts")
def file_part(request: Request, name: str, offset: int, body: RawBody) -> dict[str, int]:
    with caller(request) as (_, who):
        if not re.fullmatch(r"[0-9a-f]{64}", name) or offset < 0:
            raise NotFound("A file is named by its SHA-256, or 64 such digits; a part by its offset")
        return {"size": machine_files.receive(request.app.state.settings, who.machine, name, offset, body)}


@router.post("/files", status_code=204)
def keep_file(request: Request, body: RawBody) -> Response:
    with caller(request) as (session, who):
        told = messages.parse(messages.File, body)
        machine_files.keep(session, request.app.state.settings, who.machine, **told.model_dump())
    return Response(status_code=204)


@router.post("/result", status_code=202)
def result(request: Request, body: RawBody) -> JSONResponse:
    with caller(request) as (session, who):
        told = messages.parse(messages.Result, body)
        ended = agents.record_result(session, request.app.state.settings, who.machine, told.model_dump())
    return JSONResponse({"outcome": told.outcome, "paused": not ended}, 202)
