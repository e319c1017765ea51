"""What was recorded of a real node, and the published API schema: a folder beside the project, not part of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

PROJECT = Path(__file__).parents[3]


def folder() -> Path:
    """`$AUTOVIBE_REFERENCE`, or `../shared` beside the project."""
    return Path(os.environ.get("AUTOVIBE_REFERENCE") or PROJECT.parent / "shared")


def recorded_calls() -> list[dict]:
    """The recorded calls in order."""
    file = folder() / "pve" / "transcript-8.4.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def api_schema() -> dict[str, dict]:
    """The published API: `"GET /path"` → its description, parameters, permissions."""
    return json.loads((folder() / "pve" / "api-8.4.json").read_text())
