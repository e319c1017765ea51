"""API keys: `avk_<prefix>_<secret>`.

The hub keeps the SHA-256 of the key (its secret is 256 random bits) and the prefix that people know it by; the key
itself is shown once.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from autovibe import access, lookup
from autovibe.errors import Invalid
from autovibe.models import ApiKey, Project, User

_FORM = re.compile(r"(avk_[a-z0-9]{8})_[A-Za-z0-9_-]{43}")
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
MOST_DAYS = 3650
#: `last_used_at` is not written more often.
USED_EVERY = timedelta(minutes=1)


def looks_like_one(text: str) -> bool:
    """Whether this has the form of a key."""
    return _FORM.fullmatch(text) is not None


def create(
    session: Session,
    user: User,
    name: str,
    *,
    scope: str = "operate",
    days: int | None = 90,
    project: Project | None = None,
    until: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key of a user, and the key itself: nobody can see it again.

    `days`: None never ends. `until`: it ends then at the latest, whatever the days.
    """
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise Invalid("A key's name has 1 to 100 characters, all of them printable")
    if scope not in access.SCOPES:
        raise Invalid(f"There is no scope {scope[:40]!r}", f"Scopes: {', '.join(access.SCOPES)}.")
    if days is not None and not 1 <= days <= MOST_DAYS:
        raise Invalid(f"A key is good for 1 to {MOST_DAYS} days, not {days}")
    ends = [until] if until is not None else []
    ends += [datetime.now(UTC) + timedelta(days=days)] if days is not None else []
    prefix = "avk_" + "".join(secrets.choice(_LETTERS) for _ in range(8))
    secret = f"{prefix}_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        uuid=uuid4(),
        user_uuid=user.uuid,
        name=name.strip(),
        prefix=prefix,
        key_hash=_hash(secret),
        scope=scope,
        project_uuid=project.uuid if project else None,
        expires_at=min(ends, default=None),
    )
    session.add(key)
    session.flush()
    session.refresh(key)
    return key, secret


def find(session: Session, text: str | UUID, owner: UUID | None = None) -> ApiKey:
    """By prefix, uuid or uuid prefix; with `owner` only a key of that user."""
    scope = {"user_uuid": owner} if owner is not None else {}
    by_prefix = session.scalars(select(ApiKey).filter_by(prefix=str(text), **scope)).first()
    return by_prefix or lookup.find(session, ApiKey, text, "key", **scope)


def revoke(session: Session, key: ApiKey) -> ApiKey:
    """End a key at once; again, it changes nothing."""
    session.execute(
        update(ApiKey).where(ApiKey.uuid == key.uuid, ApiKey.revoked_at.is_(None)).values(revoked_at=func.now())
    )
    session.refresh(key)
    return key


def authenticate(session: Session, secret: str) -> tuple[ApiKey, User] | None:
    """The key and its user, when it is good now."""
    form = _FORM.fullmatch(secret)
    if form is None:
        return None
    row = session.execute(
        select(ApiKey, User).join(User, User.uuid == ApiKey.user_uuid).where(ApiKey.prefix == form.group(1))
    ).first()
    known = row[0].key_hash if row else "0" * 64
    if not hmac.compare_digest(known, _hash(secret)) or row is None:
        return None
    key, user = row
    now = datetime.now(UTC)
    if key.revoked_at is not None or user.disabled_at is not None or (key.expires_at and key.expires_at <= now):
        return None
    if key.last_used_at is None or now - key.last_used_at > USED_EVERY:
        key.last_used_at = now
    return key, user


def view(session: Session, key: ApiKey) -> dict[str, Any]:
    """A key as plain data; never the key itself."""
    project = session.get(Project, key.project_uuid) if key.project_uuid else None
    return {
        "uuid": key.uuid,
        "prefix": key.prefix,
        "name": key.name,
        "user": session.get_one(User, key.user_uuid).name,
        "scope": key.scope,
        "project": project.name if project else None,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "revoked_at": key.revoked_at,
    }


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
