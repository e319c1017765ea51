"""The parameters of every call that the lab answers are those of the published API, and are held to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from autovibe_lab import declared
from autovibe_lab.api.routes import ROUTES, Route
from autovibe_lab.errors import ApiError
from autovibe_lab.formats import MISSING, UNDEFINED
from autovibe_lab.schema import Schema
from autovibe_lab.tests import declare, reference
from autovibe_lab.tests.testing import LabInThread

#: Calls that a node answers and that the reference leaves out.
NOT_PUBLISHED = {"GET /", "GET /nodes/{node}/lxc", "GET /nodes/{node}/capabilities/qemu/machines"}

with_reference = pytest.mark.skipif(
    not (reference.folder() / "pve").exists(), reason="no published API: set AUTOVIBE_REFERENCE"
)


def call_of(route: Route) -> str:
    return f"{route.method} {route.template.replace('*}', '}')}"


PUBLISHED = [route for route in ROUTES if call_of(route) not in NOT_PUBLISHED]


def test_no_call_is_answered_by_two() -> None:
    assert sorted({call_of(route) for route in ROUTES}) == sorted(map(call_of, ROUTES))


def test_the_readme_counts_what_is_answered() -> None:
    """The server itself answers a login; all others are routes."""
    answered = {call_of(route) for route in PUBLISHED} | {"POST /access/ticket"}
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"{len(answered)} of the API's {len(declared.calls())} calls are answered" in text


def errors(schema: Schema, given: dict[str, object]) -> dict[str, str]:
    """What is wrong with these parameters; `{}` when nothing is."""
    try:
        schema.verify(given)
    except ApiError as error:
        return (error.errors or {}) if error.status == 400 else {"status": str(error.status)}
    return {}


@with_reference
def test_the_table_is_the_published_schema() -> None:
    table = {call: declared.rules(call) for call in declared.calls()}
    assert table == declare.calls(), "run python -m autovibe_lab.tests.declare"


@with_reference
def test_every_answered_call_is_published() -> None:
    assert {call_of(route) for route in ROUTES} - set(reference.api_schema()) <= NOT_PUBLISHED


@pytest.mark.parametrize("route", PUBLISHED, ids=call_of)
def test_a_call_has_the_declared_parameters_and_no_other(route: Route) -> None:
    schema = declared.schema(call_of(route))
    assert (set(route.schema.params), set(route.schema.numbered)) == (set(schema.params), set(schema.numbered))


def wrong_values(rule: dict) -> list[tuple[object, str]]:
    """Values that break one rule each, and how the message about it begins."""
    kind, found = rule.get("type", "string"), []
    if kind in ("integer", "number", "boolean"):
        found.append(("x", f"type check ('{kind}') failed - got 'x'"))
    if kind == "boolean":
        found.append(("2", "type check"))
    if rule.get("enum"):
        found.append(("no such word", "value 'no such word' does not have a value in the enumeration '"))
    formatted = isinstance(rule.get("format"), str)
    if "minimum" in rule and kind in ("integer", "number") and not formatted:
        found.append((str(rule["minimum"] - 1), f"value must have a minimum value of {rule['minimum']}"))
    if "maximum" in rule and kind in ("integer", "number") and not formatted:
        found.append((str(rule["maximum"] + 1), f"value must have a maximum value of {rule['maximum']}"))
    if "maxLength" in rule and "format" not in rule and "pattern" not in rule and "enum" not in rule:
        longest = f"value may only be {rule['maxLength']} characters long"
        found.append(("a" * (rule["maxLength"] + 1), longest))
    if rule.get("minLength", 0) > 1 and "format" not in rule and "pattern" not in rule:
        found.append(("a", f"value must be at least {rule['minLength']} characters long"))
    if "pattern" in rule and "format" not in rule:
        found.append(("\x7f no pattern takes this \x7f", "value does not match the regex pattern"))
    if isinstance(rule.get("format"), dict):
        found.append(("nosuch=1", "invalid format - format error\n"))
    if kind not in ("array",) and not str(rule.get("format", "")).endswith("-list"):
        found.append((["a", "b"], f"type check ('{kind}') failed - got ARRAY"))
    return found


@pytest.mark.parametrize("route", PUBLISHED, ids=call_of)
def test_each_declared_rule_is_kept(route: Route) -> None:
    rules = declared.rules(call_of(route))
    assert errors(route.schema, {"no_such": 1}).get("no_such") == UNDEFINED
    for name, rule in rules.items():
        own = name.replace("[n]", "0")
        if not rule.get("optional") and "[n]" not in name:
            assert errors(route.schema, {}).get(name) == MISSING, name
        for value, message in wrong_values(rule):
            assert errors(route.schema, {own: value}).get(own, "").startswith(message), (name, value)
        if "requires" in rule and not str(rule["requires"]).startswith("!"):
            said = errors(route.schema, {own: rule.get("default", "1")}).get(rule["requires"], "")
            assert said.startswith("missing property"), name


def test_families_end() -> None:
    schema = declared.schema("POST /nodes/{node}/qemu")
    vm = {"node": "pve1", "vmid": "100"}
    assert errors(schema, vm | {"net31": "virtio"}) == {}
    assert errors(schema, vm | {"net32": "virtio"}) == {"net32": UNDEFINED}
    assert errors(schema, vm | {"net01": "virtio"}) == {"net01": UNDEFINED}


def test_unknown_parameters_are_refused_on_the_wire(lab: LabInThread) -> None:
    """Before anything else is looked at: no call of these does anything."""
    values = {"vmid": "100", "node": "pve1"}
    login = {"username": "root@pam", "password": lab.lab.secrets.root_password}
    session = requests.Session()
    session.trust_env = False
    session.verify = str(lab.state / "ca.pem")
    ticket = session.post(f"{lab.url}/api2/json/access/ticket", data=login).json()["data"]
    session.headers["CSRFPreventionToken"] = ticket["CSRFPreventionToken"]
    session.cookies["PVEAuthCookie"] = ticket["ticket"]
    for route in PUBLISHED:
        path = route.template.replace("*}", "}")
        for name in declared.rules(call_of(route)):
            path = path.replace(f"{{{name}}}", values.get(name, "1"))
        given = {"no_such": "1"}
        keywords = {"params": given} if route.method in ("GET", "DELETE") else {"data": given}
        answer = session.request(route.method, f"{lab.url}/api2/json{path}", **keywords)
        assert answer.status_code == 400, (call_of(route), answer.text)
        assert answer.json()["errors"]["no_such"] == UNDEFINED, call_of(route)
