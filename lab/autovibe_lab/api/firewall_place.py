"""The firewall that a call is about: its file read, changed and written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from autovibe_lab.api.routes import Call
from autovibe_lab.errors import ApiError, invalid
from autovibe_lab.firewall import enforce
from autovibe_lab.firewall.files import Entry, Firewall


@dataclass
class Place:
    """The firewall that a call is about, read from its file."""

    call: Call
    scope: str
    own: Firewall
    cluster: Firewall

    @classmethod
    def of(cls, call: Call, scope: str) -> Place:
        name = {"vm": call.get("vmid"), "group": "cluster"}.get(scope, scope)
        own = call.node.firewall.load(name)
        return cls(call, scope, own, own if name == "cluster" else call.node.firewall.load("cluster"))

    def save(self) -> None:
        """Write the file; what it decides holds from now on."""
        name = {"vm": self.call.get("vmid"), "group": "cluster"}.get(self.scope, self.scope)
        self.call.node.firewall.save(name, self.own)
        enforce.refresh(self.call.node)

    def unchanged(self, content: Iterable[Entry]) -> None:
        """Refuse a caller who has seen another state of these entries."""
        if self.call.get("digest", (found := digest(content))) != found:
            raise ApiError(500, "detected modified configuration - file changed by other user? Try again.")

    def rules(self) -> list[Entry]:
        if self.scope != "group":
            return self.own.rules
        name = str(self.call.params["group"])
        if name.lower() not in self.own.groups:
            raise ApiError(500, f"no such security group '{name}'")
        return self.own.groups[name.lower()]

    def rule(self) -> Entry:
        """The rule at the path's position."""
        pos = self.call.params["pos"]
        if pos >= len(self.rules()):
            raise ApiError(500, f"no rule at position {pos}")
        return self.rules()[pos]

    def ipset(self) -> list[Entry]:
        name = str(self.call.params["name"])
        if name.lower() not in self.own.ipsets:
            raise ApiError(500, f"no such IPSet '{name}'")
        return self.own.ipsets[name.lower()]

    def aliases(self) -> list[Entry]:
        return [entry for _, entry in sorted(self.own.aliases.items())]

    def alias(self) -> Entry:
        name = str(self.call.params["name"]).lower()
        if name not in self.own.aliases:
            raise invalid(name="no such alias")
        return self.own.aliases[name]


def digest(content: Iterable[Entry]) -> str:
    lines = (f"{key}:{entry[key]}\n" for entry in content for key in sorted(entry))
    return hashlib.sha1("".join(lines).encode(), usedforsecurity=False).hexdigest()


def listed(content: list[Entry]) -> list[Entry]:
    found = digest(content)
    return [entry | {"digest": found} for entry in content]


def commented(call: Call, **entry: object) -> Entry:
    return entry | ({"comment": call.params["comment"]} if call.get("comment") else {})


def create_named(
    place: Place, found: dict[str, list[Entry]], comments: dict[str, str], what: str, key: str, content: list[Entry]
) -> None:
    """A new set or group; with `rename`, one that is there gets this name, or only this comment."""
    given, rename = str(place.call.params[key]), place.call.get("rename")
    name = given.lower()
    if rename is None:
        if name in found:
            raise invalid(**{key: f"{what} '{given}' already exists"})
        found[name] = []
    else:
        place.unchanged(content)
        old = str(rename).lower()
        if old not in found:
            raise invalid(**{key: f"{what} '{rename}' does not exist"})
        if name != old and name in found:
            raise invalid(**{key: f"{what} '{given}' already exists"})
        found[name] = found.pop(old)
        if old in comments:
            comments[name] = comments.pop(old)
    if place.call.get("comment"):
        comments[name] = str(place.call.params["comment"])
