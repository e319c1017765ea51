"""The firewall's IP sets and aliases: names for addresses, of the cluster or a guest."""

from __future__ import annotations

import ipaddress
import re

from autovibe_lab.api.firewall_place import Place, commented, create_named, digest, listed
from autovibe_lab.api.routes import Call, route
from autovibe_lab.errors import ApiError, invalid
from autovibe_lab.firewall import rules
from autovibe_lab.firewall.files import Entry, Firewall, version_of
from autovibe_lab.formats import register


def _cidr(text: str) -> None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("value does not look like a valid IP address or CIDR network") from None


@register("IPorCIDRorAlias")
def _cidr_or_alias(text: str) -> None:
    if not rules.SCOPED.fullmatch(text):
        _cidr(text)


# IP sets --------------------------------------------------------------------------------------------------------------


def register_ipsets(scope: str, path: str) -> None:
    one, entry_path = f"{path}/ipset/{{name}}", f"{path}/ipset/{{name}}/{{cidr*}}"

    @route("GET", f"{path}/ipset")
    async def listing(call: Call) -> object:
        return listed(_ipsets(Place.of(call, scope).own))

    @route("POST", f"{path}/ipset")
    async def create(call: Call) -> None:
        place = Place.of(call, scope)
        create_named(place, place.own.ipsets, place.own.ipset_comments, "IPSet", "name", _ipsets(place.own))
        place.save()

    @route("DELETE", one)
    async def delete(call: Call) -> None:
        place, name = Place.of(call, scope), str(call.params["name"]).lower()
        if place.ipset() and not call.get("force"):
            raise ApiError(500, f"IPSet '{call.params['name']}' is not empty")
        del place.own.ipsets[name]
        place.own.ipset_comments.pop(name, None)
        place.save()

    @route("GET", one)
    async def show(call: Call) -> object:
        return listed(Place.of(call, scope).ipset())

    @route("POST", one)
    async def add(call: Call) -> None:
        place = Place.of(call, scope)
        entries, cidr = place.ipset(), _entry_name(place)
        if any(entry["cidr"] == cidr for entry in entries):
            raise invalid(cidr=f"address '{cidr}' already exists")
        if re.search(r"/0+$", cidr):
            raise invalid(cidr="a zero prefix is not allowed in ipset entries")
        entries.append(commented(call, cidr=cidr) | ({"nomatch": 1} if call.get("nomatch") else {}))
        entries.sort(key=lambda entry: str(entry["cidr"]))
        place.save()

    @route("GET", entry_path)
    async def entry(call: Call) -> object:
        place = Place.of(call, scope)
        return _find_entry(place) | {"digest": digest(place.ipset())}

    @route("PUT", entry_path)
    async def update(call: Call) -> None:
        place = Place.of(call, scope)
        place.unchanged(place.ipset())
        found = _find_entry(place)
        changed = commented(call, cidr=found["cidr"]) | ({"nomatch": 1} if call.get("nomatch") else {})
        found.clear()
        found.update(changed)
        place.save()

    @route("DELETE", entry_path)
    async def remove(call: Call) -> None:
        place = Place.of(call, scope)
        place.unchanged(place.ipset())
        entries = place.ipset()
        entries[:] = [entry for entry in entries if entry["cidr"] != call.params["cidr"]]
        place.save()


def _ipsets(firewall: Firewall) -> list[Entry]:
    comments = firewall.ipset_comments
    names = sorted(firewall.ipsets)
    return [{"name": name} | ({"comment": comments[name]} if name in comments else {}) for name in names]


def _entry_name(place: Place) -> str:
    """How an address stands in a set: a single one has no prefix length; an alias must be there."""
    given = str(place.call.params["cidr"])
    if rules.SCOPED.fullmatch(given):
        rules.resolve_alias(given, place.own, place.cluster)
        return given
    return re.sub(r"(?<=\.\d)/32$|(?<=\.\d\d)/32$|(?<=\.\d\d\d)/32$|/128$", "", given)


def _find_entry(place: Place) -> Entry:
    for entry in place.ipset():
        if entry["cidr"] == place.call.params["cidr"]:
            return entry
    raise invalid(cidr="no such IP/Network")


def register_aliases(scope: str, path: str) -> None:
    one = f"{path}/aliases/{{name}}"

    @route("GET", f"{path}/aliases")
    async def listing(call: Call) -> object:
        return listed(Place.of(call, scope).aliases())

    @route("POST", f"{path}/aliases")
    async def create(call: Call) -> None:
        place, name = Place.of(call, scope), str(call.params["name"])
        if name.lower() in place.own.aliases:
            raise invalid(name=f"alias '{name}' already exists")
        place.own.aliases[name.lower()] = _alias(call, name)
        place.save()

    @route("GET", one)
    async def show(call: Call) -> object:
        return Place.of(call, scope).alias()

    @route("PUT", one)
    async def update(call: Call) -> None:
        place, name = Place.of(call, scope), str(call.params["name"])
        place.unchanged(place.aliases())
        assert place.alias()
        new = str(call.get("rename", name))
        if new.lower() != name.lower() and new.lower() in place.own.aliases:
            raise invalid(name=f"alias '{new}' already exists")
        del place.own.aliases[name.lower()]
        place.own.aliases[new.lower()] = _alias(call, new)
        place.save()

    @route("DELETE", one)
    async def delete(call: Call) -> None:
        place = Place.of(call, scope)
        place.unchanged(place.aliases())
        place.own.aliases.pop(str(call.params["name"]).lower(), None)
        place.save()


def _alias(call: Call, name: str) -> Entry:
    cidr = str(call.params["cidr"])
    return commented(call, name=name, cidr=cidr, ipversion=version_of(cidr))
