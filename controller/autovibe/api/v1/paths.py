"""A request's path, whose parts may have slashes of their own: a project's name may."""

from __future__ import annotations

from urllib.parse import quote, unquote

from starlette.types import Scope

#: Stands for a slash within a part (%2F) until the route is found. No name has it: it is not printable.
_SLASH = "\ue000"


def keep_slashes(scope: Scope) -> None:
    """Give the router a path in which %2F parts nothing."""
    raw = scope.get("raw_path") or b""
    if b"%2f" in raw.lower():
        parts = raw.decode("latin-1").split("/")
        scope["path"] = "/".join(unquote(part).replace("/", _SLASH) for part in parts)


def parameters(scope: Scope) -> dict[str, str]:
    """The route's parameters as they were meant."""
    return {name: value.replace(_SLASH, "/") for name, value in scope["path_params"].items()}


def shown(scope: Scope) -> str:
    """The path for a message or a log: one line, not endless."""
    return quote(scope["path"].replace(_SLASH, "%2F"), safe="/%")[:200]
