"""The firewall's options, rules and security groups, of the cluster, a node and its guests.

A new rule goes to position 0. Lists carry a digest of their content, which a caller may give back. The firewall of a
guest that does not exist can be read and written like any other, as on a node.
"""

from __future__ import annotations

import re

from autovibe_lab.api.firewall_place import Place, create_named, digest, listed
from autovibe_lab.api.firewall_sets import register_aliases, register_ipsets
from autovibe_lab.api.routes import Answer, Call, route
from autovibe_lab.errors import ApiError, invalid
from autovibe_lab.firewall import rules
from autovibe_lab.firewall.files import Entry, Firewall
from autovibe_lab.firewall.macros import DESCRIPTIONS
from autovibe_lab.firewall.options import OPTIONS

#: Where the three kinds of firewall are found, and what their index lists.
SCOPES = {
    "cluster": "/cluster/firewall",
    "host": "/nodes/{node}/firewall",
    "vm": "/nodes/{node}/qemu/{vmid}/firewall",
}
INDEX = {
    "cluster": ("rules", "options", "groups", "ipset", "aliases", "macros", "refs"),
    "host": ("rules", "options", "log"),
    "vm": ("rules", "aliases", "ipset", "refs", "options"),
}


# Rules --------------------------------------------------------------------------------------------------------------


def _register_rules(scope: str, path: str) -> None:
    where = f"{path}/{{pos}}"

    @route("GET", path)
    async def listing(call: Call) -> object:
        return [entry | {"pos": pos} for pos, entry in enumerate(listed(Place.of(call, scope).rules()))]

    @route("GET", where)
    async def show(call: Call) -> object:
        place = Place.of(call, scope)
        return place.rule() | {"pos": str(call.params["pos"]), "digest": digest(place.rules())}

    @route("POST", path)
    async def create(call: Call) -> None:
        place, rule = Place.of(call, scope), {}
        rules.change(rule, call.params)
        rules.verify(rule, scope, place.own, place.cluster)
        rule.setdefault("enable", 0)
        place.rules().insert(0, rule)
        place.save()

    @route("PUT", where)
    async def update(call: Call) -> None:
        place, pos, moveto = Place.of(call, scope), call.params["pos"], call.get("moveto")
        found = place.rules()
        place.unchanged(found)
        rule = place.rule()
        if moveto is not None and moveto != pos:
            # It comes to stand before what is at `moveto` now.
            found.insert(moveto, rule)
            found.pop(pos if moveto > pos else pos + 1)
        else:
            rules.change(rule, call.params)
            rules.take_away(rule, str(call.get("delete", "")))
            rules.verify(rule, scope, place.own, place.cluster)
        place.save()

    @route("DELETE", where)
    async def delete(call: Call) -> None:
        place = Place.of(call, scope)
        place.unchanged(place.rules())
        assert place.rule()
        place.rules().pop(call.params["pos"])
        place.save()


# Options, index and references ----------------------------------------------------------------------------------------


def _register_options(scope: str, path: str) -> None:
    options = OPTIONS[scope]

    @route("GET", path)
    async def index(call: Call) -> object:
        return [{"name": name} for name in INDEX[scope]]

    @route("GET", f"{path}/options")
    async def show(call: Call) -> object:
        found = Place.of(call, scope).own.options
        return found | {"digest": digest([found])}

    @route("PUT", f"{path}/options")
    async def change(call: Call) -> None:
        place = Place.of(call, scope)
        found = place.own.options
        place.unchanged([found])
        for name in re.findall(r"[^,; ]+", str(call.get("delete", ""))):
            if name not in options:
                raise invalid(delete=f"no such option '{name}'")
            found.pop(name, None)
        for name in options:
            if name in call.params:
                value = call.params[name]
                found[name] = int(value) if isinstance(value, bool) else value
        place.save()


def _register_log(path: str) -> None:
    @route("GET", f"{path}/log")
    async def log(call: Call) -> object:
        # Nothing is ever logged here; so says a node that has no log yet.
        return Answer({"n": 1, "t": "unable to open file - No such file or directory"}, {"total": 1})


def _register_refs(scope: str, path: str) -> None:
    @route("GET", f"{path}/refs")
    async def refs(call: Call) -> object:
        place, found = Place.of(call, scope), []
        places = [(place.cluster, "dc")] + ([(place.own, "guest")] if scope == "vm" else [])
        for firewall, where in places:
            if call.get("type", "ipset") == "ipset":
                found += [
                    _reference("ipset", name, where, firewall.ipset_comments.get(name)) for name in firewall.ipsets
                ]
            if call.get("type", "alias") == "alias":
                aliases = firewall.aliases.items()
                found += [_reference("alias", name, where, entry.get("comment")) for name, entry in aliases]
        return found


def _reference(kind: str, name: str, scope: str, comment: object) -> Entry:
    ref = f"+{name}" if kind == "ipset" else name
    return {"type": kind, "name": name, "ref": ref, "scope": scope} | ({"comment": comment} if comment else {})


# Security groups ------------------------------------------------------------------------------------------------------


def _register_groups(path: str) -> None:
    @route("GET", path)
    async def listing(call: Call) -> object:
        return listed(_groups(Place.of(call, "cluster").own))

    @route("POST", path)
    async def create(call: Call) -> None:
        place = Place.of(call, "cluster")
        own = place.own
        create_named(place, own.groups, own.group_comments, "Security group", "group", _groups(own))
        place.save()

    @route("DELETE", f"{path}/{{group}}")
    async def delete(call: Call) -> None:
        place, name = Place.of(call, "group"), str(call.params["group"])
        if place.rules():
            raise ApiError(500, f"Security group '{name}' is not empty")
        del place.own.groups[name.lower()]
        place.own.group_comments.pop(name.lower(), None)
        place.save()


def _groups(firewall: Firewall) -> list[Entry]:
    comments = firewall.group_comments
    names = sorted(firewall.groups)
    return [{"group": name} | ({"comment": comments[name]} if name in comments else {}) for name in names]


@route("GET", "/cluster/firewall/macros")
async def macros(call: Call) -> object:
    return [{"macro": name, "descr": text} for name, text in DESCRIPTIONS.items()]


for _scope, _path in SCOPES.items():
    _register_options(_scope, _path)
    _register_rules(_scope, f"{_path}/rules")
    if _scope != "cluster":
        _register_log(_path)
    if _scope != "host":
        register_ipsets(_scope, _path)
        register_aliases(_scope, _path)
        _register_refs(_scope, _path)
_register_groups("/cluster/firewall/groups")
_register_rules("group", "/cluster/firewall/groups/{group}")
