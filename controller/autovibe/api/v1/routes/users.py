"""/api/v1/users, /keys, /auth, /me and /audit: who may do what, and who did."""

from __future__ import annotations

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from sqlalchemy import select

from autovibe import apikeys, audit, db, logins, users
from autovibe.access import SCOPES, Forbidden, Level
from autovibe.api.v1 import paging, schemas
from autovibe.api.v1.calls import Answer, ApiRoute, Call, doc, needs
from autovibe.api.v1.doors import address_of
from autovibe.api.v1.routes import PREFIX
from autovibe.errors import Invalid
from autovibe.models import ApiKey, AuditLine, Project, User

router = APIRouter(prefix=PREFIX, route_class=ApiRoute)


@router.post("/auth/login", response_model=schemas.LoggedIn, tags=["auth"], **doc(401, 429))
def login(request: Request, body: schemas.Login):
    """A name and a password become an access token, for minutes, and a refresh token, which is good once."""
    settings, asked = request.app.state.settings, _asked(request)
    return _logged_in(logins.login(partial(db.session_scope, settings), settings, body.name, body.password, asked))


@router.post("/auth/refresh", response_model=schemas.LoggedIn, tags=["auth"], **doc(401, 429))
def refresh(request: Request, body: schemas.Refresh):
    """New tokens for a refresh token. Shown a second time, it ends its session: somebody has copied it."""
    settings, asked = request.app.state.settings, _asked(request)
    try:
        return _logged_in(logins.refresh(partial(db.session_scope, settings), settings, body.refresh_token, asked))
    except logins.SessionEnded:
        # Other processes hear of that from the database, this one knows.
        request.app.state.doors.forget()
        raise


def _asked(request: Request) -> logins.Asked:
    """Who knocks, when that is not too often; TooManyRequests."""
    address = address_of(request)
    request.app.state.doors.take_login(address)
    return logins.Asked(address, request.state.request_id)


def _logged_in(made: logins.Tokens) -> dict:
    return {
        "access_token": made.access_token,
        "token_type": "bearer",
        "expires_in": made.expires_in,
        "refresh_token": made.refresh_token,
    }


@router.post("/auth/logout", tags=["auth"], **doc(status=204))
@needs(Level.METRICS)
def logout(call: Call):
    """End the session of this access token, with all its tokens, at once."""
    if call.caller.session_uuid is None:
        raise Invalid("This is not a login", "A key is ended by DELETE /api/v1/keys/….")
    logins.logout(call.session, call.caller.session_uuid)
    call.audit("logout", "user", uuid=call.caller.user_uuid, name=call.caller.name)
    return Answer(None, 204)


@router.get("/me", response_model=schemas.Me, tags=["auth"], **doc())
@needs(Level.METRICS)
def me(call: Call):
    """Who you are, and what you may do."""
    caller = call.caller
    rows = None
    if caller.grants is not None:
        query = select(Project).where(caller.visible(Project.uuid)).order_by(Project.name)
        rows = [
            {"project": row.name, "project_uuid": row.uuid, "role": caller.grants[row.uuid].name.lower()}
            for row in call.session.scalars(query)
        ]
    return {
        "name": caller.name,
        "role": caller.role,
        "level": caller.level.name.lower(),
        "user": caller.user_uuid,
        "key": caller.key_uuid,
        "projects": rows,
    }


@router.post("/users", response_model=schemas.User, tags=["users"], **doc(409, status=201))
@needs(Level.ADMIN)
def create_user(call: Call, body: schemas.UserNew):
    """Make a user. One who is no admin sees nothing before a project is granted."""
    made = users.create(call.session, body.name, role=body.role, password=body.password)
    view = users.view(call.session, made)
    call.audit("create", "user", uuid=made.uuid, name=made.name, after=view)
    return Answer(view, 201, {"Location": f"/api/v1/users/{made.uuid}"})


@router.get("/users", response_model=schemas.Page[schemas.User], tags=["users"], **doc())
@needs(Level.ADMIN)
def list_users(call: Call, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """Users and what they are granted, the newest first."""
    columns = (User.created_at, User.uuid)
    return paging.by_time(call.session, select(User), columns, cursor, limit, lambda row: users.view(call.session, row))


@router.get("/users/{user}", response_model=schemas.User, tags=["users"], **doc(404))
@needs(Level.ADMIN)
def show_user(call: Call, user: str):
    """A user and what is granted to them."""
    return users.view(call.session, users.find(call.session, user))


@router.patch("/users/{user}", response_model=schemas.User, tags=["users"], **doc(404, 409, 412))
@needs(Level.ADMIN)
def change_user(call: Call, user: str, body: schemas.UserChange):
    """Change a role or a password, or disable: then all keys and logins end at once."""
    found = users.find(call.session, user)
    before = users.view(call.session, found)
    call.unchanged_since(before)
    users.change(call.session, found, **body.model_dump(exclude_none=True))
    view = users.view(call.session, found)
    said = {"password": "changed"} if body.password is not None else {}
    call.audit("change", "user", uuid=found.uuid, name=found.name, before=before, after=view | said)
    return view


@router.post("/keys", response_model=schemas.KeyMade, tags=["keys"], **doc(404, status=201))
@needs(Level.METRICS)
def create_key(call: Call, body: schemas.KeyNew):
    """Make an API key; it may do no more than what makes it, nor longer when that is a key. It is shown this once."""
    owner = _owner(call, body.user)
    project = call.project(body.project, Level.METRICS) if body.project else None
    _not_more(call, body, owner)
    maker = call.session.get_one(ApiKey, call.caller.key_uuid) if call.caller.key_uuid is not None else None
    made, secret = apikeys.create(
        call.session,
        owner,
        body.name,
        scope=body.scope,
        days=body.days,
        project=project,
        until=maker.expires_at if maker is not None else None,
    )
    view = apikeys.view(call.session, made)
    call.audit("create", "key", uuid=made.uuid, name=made.prefix, project_uuid=made.project_uuid, after=view)
    headers = {"Location": f"/api/v1/keys/{made.uuid}"}
    return Answer(view | {"key": secret}, 201, headers, remembered=view | {"key": None})


def _owner(call: Call, name: str | None) -> User:
    """Whose key is made: one's own, or, for an admin, anybody's."""
    if name is None:
        if call.caller.user_uuid is None:
            raise Invalid("Say whose key it is", "Name a user; `autovibe user create` makes one.")
        return call.session.get_one(User, call.caller.user_uuid)
    if name != call.caller.name and call.caller.level < Level.ADMIN:
        raise Forbidden("Only an admin makes keys for others")
    if call.caller.level == Level.ADMIN:
        call.require(Level.ADMIN)
        return users.find(call.session, name)
    return call.session.get_one(User, call.caller.user_uuid)


def _not_more(call: Call, body: schemas.KeyNew, owner: User) -> None:
    if owner.uuid != call.caller.user_uuid:
        return
    # A key that is bound to projects cannot make one that is not.
    bound = call.caller.key_uuid is not None and call.session.get_one(ApiKey, call.caller.key_uuid).project_uuid
    if SCOPES[body.scope] > call.caller.level or (bound and body.project is None):
        raise Forbidden("A key may do no more than what makes it", "Ask for a narrower scope, or for its project.")


@router.get("/keys", response_model=schemas.Page[schemas.Key], tags=["keys"], **doc())
@needs(Level.METRICS)
def list_keys(
    call: Call,
    revoked: Annotated[bool, Query(description="Also those that are revoked.")] = False,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """Keys, the newest first: an admin sees everybody's, the others their own."""
    query = select(ApiKey)
    if call.caller.level < Level.ADMIN:
        query = query.where(ApiKey.user_uuid == call.caller.user_uuid)
    if not revoked:
        query = query.where(ApiKey.revoked_at.is_(None))
    columns = (ApiKey.created_at, ApiKey.uuid)
    return paging.by_time(call.session, query, columns, cursor, limit, lambda row: apikeys.view(call.session, row))


@router.get("/keys/{key}", response_model=schemas.Key, tags=["keys"], **doc(404))
@needs(Level.METRICS)
def show_key(call: Call, key: str):
    """A key, by its prefix or uuid: never the key itself."""
    return apikeys.view(call.session, _key(call, key))


@router.delete("/keys/{key}", response_model=schemas.Key, tags=["keys"], **doc(404, 412))
@needs(Level.METRICS)
def revoke_key(call: Call, key: str):
    """End a key at once. A key ends itself, and those of its user that may do no more than it."""
    found = _key(call, key)
    _not_over(call, found)
    before = apikeys.view(call.session, found)
    call.unchanged_since(before)
    view = apikeys.view(call.session, apikeys.revoke(call.session, found))
    call.audit("revoke", "key", uuid=found.uuid, name=found.prefix, before=before, after=view)
    return view


def _not_over(call: Call, key: ApiKey) -> None:
    """Forbidden for a key of narrower rights: who finds one in a script ends nothing that it could not have made."""
    if call.caller.key_uuid in (None, key.uuid):
        return
    bound = call.session.get_one(ApiKey, call.caller.key_uuid).project_uuid
    if SCOPES[key.scope] > call.caller.level or (bound is not None and key.project_uuid != bound):
        raise Forbidden("A key ends no key that may do more", "Log in, or use a key that may do as much.")


def _key(call: Call, text: str | UUID) -> ApiKey:
    owner = None if call.caller.level == Level.ADMIN else call.caller.user_uuid
    return apikeys.find(call.session, text, owner)


@router.get("/audit", response_model=schemas.Page[schemas.AuditLine], tags=["audit"], **doc(404))
@needs(Level.ADMIN)
def audit_log(
    call: Call,
    project: Annotated[str | None, Query(max_length=255, description="Of this project only.")] = None,
    object: Annotated[UUID | None, Query(description="Of this machine, project, user … only.")] = None,
    actor: Annotated[str | None, Query(max_length=63, description="By this user only.")] = None,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """Every change that somebody asked for, the newest first."""
    query = select(AuditLine)
    if project is not None:
        query = query.where(AuditLine.project_uuid == call.project(project).uuid)
    if object is not None:
        query = query.where(AuditLine.object_uuid == object)
    if actor is not None:
        query = query.where(AuditLine.actor == actor.replace("\0", ""))
    return paging.by_id(call.session, query, AuditLine.id, cursor, limit, audit.view, newest_first=True)
