"""The parameters of Proxmox's calls, declared once: `declared.json`, a table of facts about PVE 8.4's API.

`"params"` are the distinct declarations (type, format, enum, limits, default), `"calls"` says which of them each call
has.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

from autovibe_lab.formats import CHECKS, property_string
from autovibe_lab.schema import Param, Schema

FILE = Path(__file__).with_name("declared.json")
#: How many there may be of `net[n]` …: the schema's own limits are not published.
LARGEST = {"net": 31, "ipconfig": 31, "scsi": 30, "ide": 3, "sata": 5, "virtio": 15, "unused": 255, "serial": 3}
LARGEST |= {"parallel": 2, "usb": 13, "hostpci": 15, "numa": 7, "virtiofs": 9, "link": 7}


@functools.cache
def _table() -> dict:
    return json.loads(FILE.read_text())


def calls() -> set[str]:
    """All that are declared, as `"GET /path"`."""
    return set(_table()["calls"])


def rules(call: str) -> dict[str, dict]:
    """The declarations of a call's parameters, by name; `net[n]` is a family of them."""
    table = _table()
    return {name: table["params"][number] for name, number in table["calls"][call].items()}


@functools.cache
def schema(call: str) -> Schema:
    """The parameters of a call such as `"POST /nodes/{node}/qemu"`. KeyError when it is none of Proxmox's."""
    params: dict[str, Param] = {}
    numbered: dict[str, Param] = {}
    for name, rule in rules(call).items():
        if name.endswith("[n]"):
            numbered[name.removesuffix("[n]")] = parameter(rule)
        else:
            params[name] = parameter(rule)
    return Schema(params, numbered, {stem: LARGEST[stem] for stem in numbered if stem in LARGEST})


def parameter(rule: dict) -> Param:
    """One declaration as what checks it."""
    form = rule.get("format", "")
    if form == "pve-qm-ide":
        form = _ide()
    return Param(
        rule.get("type", "string"),
        optional=bool(rule.get("optional")),
        enum=tuple(rule.get("enum") or ()),
        minimum=rule.get("minimum"),
        maximum=rule.get("maximum"),
        min_length=rule.get("minLength", 0),
        max_length=rule.get("maxLength"),
        pattern=_pattern(rule.get("pattern", "")),
        requires=rule.get("requires", ""),
        check=property_string(form) if isinstance(form, dict) else CHECKS.get(form),
        is_list=isinstance(form, str) and form.endswith("-list"),
    )


def _ide() -> dict[str, dict]:
    """An IDE drive is published as a mere name; it has what a SATA one has, and a model."""
    sata = rules("PUT /nodes/{node}/qemu/{vmid}/config")["sata[n]"]["format"]
    return sata | {"model": {"optional": 1, "maxLength": 120}}


def _pattern(perl: str) -> str:
    """Perl's regular expression as Python's."""
    return re.sub(r"\(\?\^?([a-z]*):", lambda match: f"(?{match[1]}:" if match[1] else "(?:", perl).replace(
        r"\z", r"\Z"
    )
