"""Machine tokens: what a guest shows at the hub's API and at the gateway.

A JWT signed with the hub's key, for one machine and one generation of it, for an hour. It is refused once the machine
has another generation (a restore) or has ended.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from uuid import UUID

import jwt
from sqlalchemy.orm import Session

from autovibe.errors import AutovibeError
from autovibe.hubkey import hub_key
from autovibe.models import Machine
from autovibe.settings import Settings, load_settings

ALGORITHM = "HS256"
AUDIENCE = "machine"
LIFETIME_SECONDS = 3600
ENDED = "The machine has ended"
OLD = "The machine token is of an older generation"
EXPIRED = "The machine token has expired"


class BadToken(AutovibeError):
    """The token is missing, not valid, or of no more use."""

    code = "bad_token"
    http_status = 401


@dataclass(frozen=True)
class Claims:
    """What a token says: whose it is, of which generation, and when it ends (seconds since 1970)."""

    machine_uuid: UUID
    generation: int
    expires_at: float

    @property
    def is_old(self) -> bool:
        """Whether more than half of the token's life is over."""
        return self.expires_at - time.time() < LIFETIME_SECONDS / 2


@dataclass(frozen=True)
class Authenticated:
    """A machine, the token that it showed, and when that ends."""

    machine: Machine
    token: str
    expires_at: datetime


def machine_token(machine: Machine, settings: Settings | None = None) -> str:
    """A token for the machine's present generation, good for an hour from now."""
    return issue(machine, settings)[0]


def issue(machine: Machine, settings: Settings | None = None) -> tuple[str, datetime]:
    """A token and when it ends."""
    return issue_for(machine.uuid, machine.generation, settings)


def issue_for(machine_uuid: UUID, generation: int, settings: Settings | None = None) -> tuple[str, datetime]:
    """A token of a machine's generation, and when it ends."""
    now = int(time.time())
    claims = {
        "sub": str(machine_uuid),
        "gen": generation,
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
    }
    token = jwt.encode(claims, _key(settings), algorithm=ALGORITHM)
    return token, datetime.fromtimestamp(claims["exp"], UTC)


def authenticate(session: Session, headers: Mapping[str, str], settings: Settings | None = None) -> Machine:
    """The machine that a request comes from, by `Authorization: Bearer` or `x-api-key`; BadToken otherwise."""
    return read(session, headers, settings).machine


def read(session: Session, headers: Mapping[str, str], settings: Settings | None = None) -> Authenticated:
    """Like `authenticate`, with the token that was shown."""
    token = shown(headers)
    claims = claims_of(token, settings)
    machine = session.get(Machine, claims.machine_uuid, populate_existing=True)
    if machine is None or machine.status == "terminated":
        raise BadToken(ENDED)
    if machine.generation != claims.generation:
        raise BadToken(OLD)
    return Authenticated(machine, token or "", datetime.fromtimestamp(claims.expires_at, UTC))


def claims_of(token: str | None, settings: Settings | None = None) -> Claims:
    """What a token that the hub has signed says; BadToken otherwise. Whether it still holds, the database knows."""
    if not token:
        raise BadToken("No machine token was given")
    claims = _decoded(token, _key(settings))
    if claims.expires_at <= time.time():
        raise BadToken(EXPIRED)
    return claims


@lru_cache(maxsize=4096)
def _decoded(token: str, key: bytes) -> Claims:
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            options={"require": ["sub", "gen", "aud", "exp"]},
        )
        return Claims(UUID(claims["sub"]), int(claims["gen"]), float(claims["exp"]))
    except jwt.ExpiredSignatureError:
        raise BadToken(EXPIRED) from None
    except (jwt.InvalidTokenError, ValueError, TypeError, AttributeError):
        raise BadToken("The machine token is not valid") from None


def shown(headers: Mapping[str, str]) -> str | None:
    """The token in a request's headers (lower-case names)."""
    scheme, _, value = (headers.get("authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key") or None


def _key(settings: Settings | None) -> bytes:
    return hub_key((settings or load_settings()).state_dir)
