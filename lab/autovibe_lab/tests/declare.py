"""Writes `declared.json`, the parameters of Proxmox's calls, from the published API schema: facts without its prose.

::

    python -m autovibe_lab.tests.declare

The schema is `pve/api-8.4.json` in the folder `AUTOVIBE_REFERENCE` (default: `../shared` beside the project).
"""

from __future__ import annotations

import json

from autovibe_lab.declared import FILE
from autovibe_lab.tests.reference import api_schema

#: What is said to people, and no rule.
PROSE = {"description", "verbose_description", "format_description", "typetext", "title"}
#: As in the schema, where it writes them as texts.
NUMBERS = ("minimum", "maximum", "maxLength", "minLength")


def rules(declared: dict) -> dict:
    """A parameter without prose; numbers as numbers."""
    found = {key: value for key, value in declared.items() if key not in PROSE}
    for key in NUMBERS:
        if key in found:
            number = float(found[key])
            found[key] = int(number) if number == int(number) else number
    if isinstance(found.get("format"), dict):
        found["format"] = {name: rules(part) for name, part in found["format"].items()}
    return found


def calls() -> dict[str, dict[str, dict]]:
    """Each call's parameters by name."""
    return {
        call: {name: rules(param) for name, param in entry["parameters"].get("properties", {}).items()}
        for call, entry in api_schema().items()
    }


def main() -> None:
    distinct: dict[str, int] = {}
    table = {
        call: {
            name: distinct.setdefault(json.dumps(param, sort_keys=True, separators=(",", ":")), len(distinct))
            for name, param in params.items()
        }
        for call, params in calls().items()
    }
    lines = [f"{json.dumps(call)}: {json.dumps(params, separators=(',', ':'))}" for call, params in table.items()]
    FILE.write_text('{"params": [\n' + ",\n".join(distinct) + '\n],\n"calls": {\n' + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
