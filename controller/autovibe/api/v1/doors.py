"""Who asks (the owner of the hub's socket, a key, an access token; no machine), and how often they may ask."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from dataclasses import replace
from typing import Any

import limits
from anyio import to_thread
from fastapi import Request
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from autovibe import access, apikeys, db, logins, tokens, users
from autovibe.access import LOCAL, Caller, Forbidden, Unauthenticated
from autovibe.errors import AutovibeError, SettingsError
from autovibe.notifications import Notifications
from autovibe.settings import Settings

#: How long a process remembers who a key or token is. It forgets at once when the database notifies a change.
REMEMBER_SECONDS = 10.0
REMEMBERED = 10_000
#: Logins from one address.
LOGINS = "20/minute"


class TooManyRequests(AutovibeError):
    """You ask too often."""

    code = "too_many_requests"
    http_status = 429


class MachineForbidden(Forbidden):
    """Machines may not use this API."""

    code = "machine_forbidden"
    default_hint = "A machine has /agent/v1 and the gateway on its own port."


class Windows(MemoryStorage):
    """How often everybody has asked, in this process.

    What has expired is dropped here: the library starts a thread for that, every hundredth of a second that somebody
    asks in.
    """

    SWEEP_SECONDS = 1.0

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._swept = time.time()

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        with self._lock:
            now = time.time()
            if abs(now - self._swept) >= self.SWEEP_SECONDS:
                self._swept = now
                for one, end in list(self.expirations.items()):
                    if end <= now:
                        self.clear(one)
            count = self.storage[key] = self.get(key) + amount
            if count == amount:
                self.expirations[key] = now + expiry
            return count


class Doors:
    """One process's door keeper."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.notifications = Notifications(settings, self.forget)
        self._known: dict[str, tuple[Caller, float]] = {}
        #: How often rights have changed, or may have.
        self.changes = 0
        self._limiter = SlidingWindowCounterRateLimiter(Windows())
        self._rate = parsed_rate(settings.api_rate_limit, "api_rate_limit")
        self._failures = parsed_rate(settings.api_failure_limit, "api_failure_limit")

    def forget(self) -> None:
        """Ask the database again who everybody is."""
        self.changes += 1
        self._known.clear()

    async def caller(self, request: Request) -> Caller:
        """Who asks. Unauthenticated, MachineForbidden, TooManyRequests."""
        if request.scope.get("autovibe.local"):
            return LOCAL
        address = address_of(request)
        secret = tokens.shown(request.headers)
        if not secret:
            raise Unauthenticated("No key or token was given")
        name = hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
        found = self._remembered(name)
        if found is None:
            self._check(self._failures, "failures", address)
            changes = self.changes
            found = await to_thread.run_sync(self._look_up, secret, address)
            if self.notifications.connected and changes == self.changes:
                self._remember(name, found)
        self._take(self._rate, "requests", found.identity)
        return replace(found, address=address)

    def take_login(self, address: str) -> None:
        """One more login from this address; TooManyRequests."""
        self._take(limits.parse(LOGINS), "logins", address)

    def _remembered(self, name: str) -> Caller | None:
        kept = self._known.get(name)
        if kept is None or not self.notifications.connected:
            return None
        return kept[0] if kept[1] > time.monotonic() else None

    def _remember(self, name: str, found: Caller) -> None:
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[name] = (found, time.monotonic() + REMEMBER_SECONDS)

    def _look_up(self, secret: str, address: str) -> Caller:
        with db.session_scope(self.settings) as session:
            if apikeys.looks_like_one(secret):
                if known := apikeys.authenticate(session, secret):
                    key, user = known
                    granted = users.grants_of(session, user.uuid)
                    return access.caller(
                        user.name, user.role, granted, scope=key.scope, only_project=key.project_uuid,
                        user_uuid=user.uuid, key_uuid=key.uuid,
                    )  # fmt: skip
            elif known := logins.authenticate(session, self.settings, secret):
                row, user = known
                granted = users.grants_of(session, user.uuid)
                return access.caller(user.name, user.role, granted, user_uuid=user.uuid, session_uuid=row.uuid)
            elif _is_machine(session, secret, self.settings):
                raise MachineForbidden()
        self._take(self._failures, "failures", address)
        raise Unauthenticated()

    def _check(self, item: limits.RateLimitItem, kind: str, key: str) -> None:
        if not self._limiter.test(item, kind, key):
            self._refuse(item, kind, key)

    def _take(self, item: limits.RateLimitItem, kind: str, key: str) -> None:
        if not self._limiter.hit(item, kind, key):
            self._refuse(item, kind, key)

    def _refuse(self, item: limits.RateLimitItem, kind: str, key: str) -> None:
        reset = self._limiter.get_window_stats(item, kind, key).reset_time
        wait = max(1, math.ceil(reset - time.time()))
        raise TooManyRequests(f"At most {item} are allowed", f"Wait {wait} s.", retry_after=wait)


def parsed_rate(text: str, setting: str) -> limits.RateLimitItem:
    """A rate such as `200/second`; SettingsError for anything else."""
    try:
        return limits.parse(text)
    except ValueError:
        message = f"Setting {setting!r} is wrong: {text!r} is not a rate"
        raise SettingsError(message, "Example: 200/second.") from None


def address_of(request: Request) -> str:
    """Where a request comes from: an address, or what a proxy takes for one, of at most 64 characters."""
    return "local" if request.scope.get("autovibe.local") or request.client is None else request.client.host[:64]


def _is_machine(session: Any, secret: str, settings: Settings) -> bool:
    try:
        tokens.read(session, {"authorization": f"Bearer {secret}"}, settings)
    except tokens.BadToken:
        return False
    return True
