"""A request's body: JSON, said to be JSON, each key of an object once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from fastapi import Request

from autovibe.errors import AutovibeError


class NotJson(AutovibeError):
    """The body is not said to be JSON."""

    code = "unsupported_media_type"
    http_status = 415
    default_hint = "Send it with `Content-Type: application/json`."


class JsonRequest(Request):
    """A request whose JSON means one thing only: of two equal keys another reader may have seen the other one."""

    async def require_json(self) -> None:
        """NotJson for a body of another type."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
            return
        if await self.body():
            raise NotJson(f"The body is said to be {kind[:80]!r}, not JSON" if kind else None)

    async def json(self) -> Any:
        """The body's data; JSONDecodeError says why there is none."""
        if not hasattr(self, "_json"):
            self._json = parsed(await self.body())
        return self._json


def parsed(body: bytes) -> Any:
    """What the JSON says; JSONDecodeError, also for a key that is there twice, NaN, and what is nested too deeply."""
    try:
        return json.loads(body, object_pairs_hook=_once, parse_constant=_no_number)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except ValueError as error:
        reason = str(error).partition(";")[0]
    raise json.JSONDecodeError(reason, "", 0)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
