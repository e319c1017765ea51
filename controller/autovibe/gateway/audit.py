"""One line of JSON for each model call: who, which model, what came of it, tokens, milliseconds; never its content."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any

from autovibe.settings import Settings


class Audit:
    """Appends to the audit file, which may be rotated meanwhile; several processes share it, a line is one write."""

    def __init__(self, settings: Settings) -> None:
        self._handler: WatchedFileHandler | None = None
        if settings.gateway_audit:
            path = settings.gateway_audit_path or settings.log_dir / "calls.log"
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            self._handler = WatchedFileHandler(path, encoding="utf-8")

    def note(self, call: Any, held: Any) -> None:
        """`call`: a `calls.Call` that has ended; `held`: what was reserved for it, if anything was."""
        if self._handler is None:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request": call.request_id,
            "machine": str(call.claims.machine_uuid),
            "project": str(call.caller.project_uuid) if call.caller else None,
            "api": call.protocol.name,
            "provider": call.provider.name,
            "model": call.request.model[:200],
            "status": call.status,
            "milliseconds": call.milliseconds,
            "reservation": str(held.reservation_uuid) if held else None,
            "billed": call.billed,
            "usage": call.meter.reported or call.meter.usage,
        }
        self._handler.emit(logging.makeLogRecord({"msg": json.dumps(line, separators=(",", ":"))}))

    def close(self) -> None:
        if self._handler is not None:
            self._handler.close()
