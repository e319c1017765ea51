"""Logins: a name and a password become an access token (a JWT, for minutes) and a refresh token (good once).

Whoever guesses a password waits, twice as long after each failure. A session ends by logout, by a refresh token that is
shown a second time (somebody has copied it), by a new password, and when its user is disabled. A refresh token says by
whom it was made (an HMAC by the hub's key): one that somebody has made up, around a session's id, ends nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import jwt
from sqlalchemy import case, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe import audit, passwords, signing
from autovibe.access import Caller, Level, Unauthenticated
from autovibe.errors import AutovibeError
from autovibe.hubkey import hub_key
from autovibe.models import LoginFailure, LoginSession, User
from autovibe.settings import Settings

ALGORITHM = "HS256"
AUDIENCE, ISSUER = "api", "autovibe"
ACCESS_SECONDS = 15 * 60
SESSION_DAYS = 30
FREE_TRIES = 5
_LOCK_FIRST, _LOCK_MOST = 30, 3600
_FORGET = timedelta(days=1)
NO_USE = "The refresh token is of no more use"

Transactions = Callable[[], AbstractContextManager[Session]]


class LoginLocked(AutovibeError):
    """Too many logins have failed."""

    code = "login_locked"
    http_status = 429


class BadLogin(Unauthenticated):
    """The name or the password is wrong."""

    code = "bad_login"
    default_hint = ""


@dataclass(frozen=True)
class Asked:
    """Where a request came from, and its id: for the audit log."""

    address: str
    request_id: str


@dataclass(frozen=True)
class Tokens:
    """What a login gives."""

    access_token: str
    refresh_token: str
    expires_in: int
    session_uuid: UUID
    user: User


def login(transactions: Transactions, settings: Settings, name: str, password: str, asked: Asked) -> Tokens:
    """Log a user in. BadLogin, or LoginLocked (`details["retry_after"]`, seconds).

    The failure is committed even though the login is not: that is why this opens its own transactions.
    """
    address = asked.address
    with transactions() as session:
        _refuse_while_locked(session, name, address)
        user = session.scalars(select(User).where(User.name == name)).first()
    # Outside of a transaction: it takes a tenth of a second.
    checked = user.password_hash if user else None
    good = passwords.fits(password, checked)
    with transactions() as session:
        if not good or user is None:
            _failed(session, name, address)
        else:
            _refuse_while_locked(session, name, address)
            user = session.get_one(User, user.uuid, with_for_update=True)
            # It may have been changed meanwhile, which ends all that was begun with the old one.
            good = user.disabled_at is None and user.password_hash == checked
            if good:
                session.execute(delete(LoginFailure).where(*_of(name, address)))
                user.last_login_at = datetime.now(UTC)
                made = _begin(session, settings, user)
                _note(session, asked, "login", user, made.session_uuid)
                return made
    raise BadLogin()


class SessionEnded(Unauthenticated):
    """The session of that token has just ended."""


def refresh(transactions: Transactions, settings: Settings, token: str, asked: Asked) -> Tokens:
    """New tokens for a refresh token, which is good once: shown again, it ends its session (SessionEnded).

    Unauthenticated for any other: whoever sends nonsense changes nothing.
    """
    session_uuid = _session_of(token) if _is_ours(settings, token) else None
    error: type[Unauthenticated] = Unauthenticated
    with transactions() as session:
        row = session.get(LoginSession, session_uuid, with_for_update=True) if session_uuid else None
        if row is not None and row.revoked_at is None and row.expires_at > datetime.now(UTC):
            user = session.get_one(User, row.user_uuid)
            if user.disabled_at is not None:
                raise error(NO_USE, "Log in again.")
            if hmac.compare_digest(row.refresh_hash, _hash(token)):
                new = _refresh_token(settings, row.uuid)
                row.refresh_hash, row.refreshed_at = _hash(new), datetime.now(UTC)
                _note(session, asked, "refresh", user, row.uuid)
                return Tokens(_access_token(settings, user, row.uuid), new, ACCESS_SECONDS, row.uuid, user)
            row.revoked_at, error = datetime.now(UTC), SessionEnded
            _note(session, asked, "end session", user, row.uuid, reason="a refresh token was shown again")
    raise error(NO_USE, "Log in again.")


def _note(session: Session, asked: Asked, action: str, user: User, session_uuid: UUID, **more: str) -> None:
    """Write it down, in its own transaction: never a token."""
    who = Caller(user.name, Level.METRICS, user_uuid=user.uuid, address=asked.address)
    after = {"session": session_uuid, **more}
    audit.record(session, who, asked.request_id, action, "user", uuid=user.uuid, name=user.name, after=after)


def logout(session: Session, session_uuid: UUID) -> None:
    """End a session: its tokens are refused from this commit on."""
    session.execute(
        update(LoginSession)
        .where(LoginSession.uuid == session_uuid, LoginSession.revoked_at.is_(None))
        .values(revoked_at=func.now())
    )


def authenticate(session: Session, settings: Settings, token: str) -> tuple[LoginSession, User] | None:
    """The session and user of an access token, when both are good now."""
    try:
        kid = jwt.get_unverified_header(token).get("kid")
        secret = signing.by_kid(settings.state_dir, kid) if isinstance(kid, str) else None
        if secret is None:
            return None
        claims = jwt.decode(
            token,
            secret,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            options={"require": ["sub", "sid", "aud", "iss", "exp"]},
        )
        session_uuid = UUID(claims["sid"])
    except (jwt.InvalidTokenError, ValueError, TypeError, AttributeError):
        return None
    row = session.execute(
        select(LoginSession, User)
        .join(User, User.uuid == LoginSession.user_uuid)
        .where(LoginSession.uuid == session_uuid, LoginSession.revoked_at.is_(None), User.disabled_at.is_(None))
    ).first()
    if row is None or str(row[1].uuid) != claims["sub"]:
        return None
    return row[0], row[1]


def forget(session: Session) -> None:
    """Drop the sessions that have ended by themselves long ago."""
    session.execute(delete(LoginSession).where(LoginSession.expires_at < func.now() - _FORGET))


def _begin(session: Session, settings: Settings, user: User) -> Tokens:
    uuid = uuid4()
    token = _refresh_token(settings, uuid)
    session.add(
        LoginSession(
            uuid=uuid,
            user_uuid=user.uuid,
            refresh_hash=_hash(token),
            expires_at=datetime.now(UTC) + timedelta(days=SESSION_DAYS),
        )
    )
    session.flush()
    return Tokens(_access_token(settings, user, uuid), token, ACCESS_SECONDS, uuid, user)


def _access_token(settings: Settings, user: User, session_uuid: UUID) -> str:
    kid, secret = signing.current(settings.state_dir)
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(user.uuid),
        "sid": str(session_uuid),
        "iat": now,
        "exp": now + ACCESS_SECONDS,
    }
    return jwt.encode(claims, secret, algorithm=ALGORITHM, headers={"kid": kid})


def _refresh_token(settings: Settings, session_uuid: UUID) -> str:
    made = f"avr_{session_uuid.hex}_{secrets.token_urlsafe(32)}"
    return f"{made}.{_seal(settings, made)}"


def _is_ours(settings: Settings, token: str) -> bool:
    """Whether this hub has made it, at some time."""
    made, _, seal = token.rpartition(".")
    return hmac.compare_digest(_seal(settings, made).encode(), seal.encode("utf-8", "replace"))


def _seal(settings: Settings, made: str) -> str:
    digest = hmac.digest(hub_key(settings.state_dir), b"refresh token " + made.encode("utf-8", "replace"), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _session_of(token: str) -> UUID | None:
    parts = token.split("_", 2)
    try:
        return UUID(parts[1]) if len(parts) == 3 and parts[0] == "avr" else None
    except ValueError:
        return None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _of(name: str, address: str) -> tuple:
    return LoginFailure.name == name, LoginFailure.address == address


def _refuse_while_locked(session: Session, name: str, address: str) -> None:
    until = session.scalar(select(LoginFailure.locked_until).where(*_of(name, address)))
    if until is not None and (left := (until - datetime.now(UTC)).total_seconds()) > 0:
        raise LoginLocked(f"Too many logins have failed; wait {left:.0f} s", retry_after=int(left) + 1)


def _failed(session: Session, name: str, address: str) -> None:
    """Count a failure; from the sixth on each doubles the wait. Old ones are forgotten."""
    now = datetime.now(UTC)
    session.execute(delete(LoginFailure).where(LoginFailure.last_at < now - _FORGET))
    failures = LoginFailure.failures + 1
    seconds = func.least(_LOCK_MOST, _LOCK_FIRST * func.power(2, func.least(failures - FREE_TRIES, 20)))
    until = case((failures >= FREE_TRIES, now + seconds * timedelta(seconds=1)), else_=None)
    statement = insert(LoginFailure).values(name=name, address=address, last_at=now)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["name", "address"], set_={"failures": failures, "locked_until": until, "last_at": now}
        )
    )
