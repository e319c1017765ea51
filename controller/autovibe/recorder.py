"""The recorder: one thread that writes what Ansible says into the database.

ansible-runner's event handler must return at once, so it only puts events on a queue. An operation ends as soon as
its host has ended: a fast machine does not wait for a slow one of the same run. What has come meanwhile is recorded in
one transaction: a burst of events costs one commit, and wakes the workers once.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from autovibe import db, operations, records
from autovibe.errors import DatabaseError
from autovibe.models import TaskResult
from autovibe.runner import Outcome, names_a_secret
from autovibe.settings import Settings

log = logging.getLogger(__name__)

_OURS = "autovibe.proxmox."
_STATUS = {"runner_on_ok": "ok", "runner_on_failed": "failed", "runner_on_unreachable": "unreachable"}
#: What the controller records of a result; everything else is kept for people in `task_results`.
_FACTS = ("machine", "checkpoint", "template")
_LISTS = ("machines",)
#: Events that one transaction records at most.
_BATCH = 100
_TEXT_MOST = 4000
_LIST_MOST = 100


@dataclass
class Progress:
    """What is known so far of one run: by host, what it waits for, the facts its tasks returned, how it failed."""

    awaited: dict[str, tuple[str, str]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)


class Recorder(threading.Thread):
    """Takes events and ends of runs from a queue, in order. `on_end(run_uuid)` is called after a run is recorded."""

    def __init__(self, settings: Settings, on_end: Callable[[UUID], None]) -> None:
        super().__init__(name="recorder", daemon=True)
        self.settings = settings
        self.on_end = on_end
        self.runs: dict[UUID, Progress] = {}
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], tuple] | None] = queue.SimpleQueue()
        self._closing = threading.Event()

    def begin(self, run_uuid: UUID, awaited: dict[str, tuple[str, str]]) -> None:
        """A run begins; call before its first event. `awaited`: by host, what `records.awaited` says."""
        self.runs[run_uuid] = Progress(awaited)

    def event(self, run_uuid: UUID, event: dict[str, Any]) -> None:
        """Take an event of ansible-runner; returns at once."""
        if event.get("event") in _STATUS and event.get("event_data", {}).get("host"):
            self._queue.put((self._record_event, (run_uuid, event)))

    def ended(self, run_uuid: UUID, outcome: Outcome) -> None:
        """The run has ended and its processes are gone."""
        self._queue.put((self._record_end, (run_uuid, outcome)))

    def close(self, timeout: float = 10.0) -> None:
        """Record what is on the queue, then end."""
        self._queue.put(None)
        self.join(timeout)
        self._closing.set()

    def run(self) -> None:
        """The thread."""
        while (items := self._next())[0] is not None:
            closing = items[-1] is None
            items = [item for item in items if item is not None]
            self._persist(items)
            for record, arguments in items:
                if record == self._record_end:
                    self._tell(arguments[0])
            if closing:
                return

    def _tell(self, run_uuid: UUID) -> None:
        self.runs.pop(run_uuid, None)
        try:
            self.on_end(run_uuid)
        except Exception:
            # Without this thread nothing of any run would be recorded any more.
            log.exception("after the end of run %s", run_uuid)

    def _next(self) -> list[tuple[Callable[..., None], tuple] | None]:
        """What is on the queue, at least one item; None, which closes the recorder, comes last."""
        items = [self._queue.get()]
        with contextlib.suppress(queue.Empty):
            while items[-1] is not None and len(items) < _BATCH:
                items.append(self._queue.get_nowait())
        return items

    def _persist(self, items: list[tuple[Callable[..., None], tuple]]) -> None:
        """In one transaction. A database that is away is waited for; what cannot be recorded is logged and skipped."""
        pause = 0.2
        while not self._closing.is_set():
            try:
                with db.session_scope(self.settings) as session:
                    for record, arguments in items:
                        record(session, *arguments)
                return
            except Exception as error:
                if _is_away(error):
                    log.warning("the database is away; trying again: %s", error)
                    self._closing.wait(pause)
                    pause = min(pause * 2, 5.0)
                elif len(items) > 1:
                    for item in items:
                        self._persist([item])
                    return
                else:
                    log.exception("could not record %s", items[0][1][0])
                    return

    def _record_event(self, session: Session, run_uuid: UUID, event: dict[str, Any]) -> None:
        data = event["event_data"]
        host = data["host"]
        result = data.get("res") or {}
        action = data.get("resolved_action") or data.get("task_action") or ""
        operation_uuid = _uuid(host)
        session.add(
            TaskResult(
                run_uuid=run_uuid,
                operation_uuid=operation_uuid,
                host=host,
                task=str(data.get("task") or "")[:_TEXT_MOST],
                action=action,
                status=_STATUS[event["event"]],
                changed=bool(result.get("changed")),
                duration=data.get("duration"),
                result=censored(result) if action.startswith(_OURS) or event["event"] != "runner_on_ok" else None,
            )
        )
        progress = self.runs.get(run_uuid)
        if operation_uuid is None or progress is None:
            return
        if event["event"] == "runner_on_ok":
            self._succeeded_task(session, run_uuid, operation_uuid, action, result, event.get("created"))
        elif not data.get("ignore_errors"):
            progress.failures[host] = failure(event["event"], data)
            self._end(session, operation_uuid, run_uuid, **progress.failures[host])

    def _succeeded_task(
        self,
        session: Session,
        run_uuid: UUID,
        operation_uuid: UUID,
        action: str,
        result: dict[str, Any],
        at: str | None,
    ) -> None:
        progress = self.runs[run_uuid]
        facts = progress.facts.setdefault(str(operation_uuid), {})
        if action.startswith(_OURS):
            facts |= facts_of(result)
            if action == _OURS + "guest_exec" and "stdout" in result:
                facts["exec"] = {key: result.get(key) for key in ("rc", "stdout", "truncated")}
            facts["changed"] = facts.get("changed", False) or bool(result.get("changed"))
            if isinstance(result.get("machine"), dict):
                # When it was seen as it was to be, by the host's clock that Ansible runs on: from then on it is billed.
                facts["machine_at"] = at
        module, fact = progress.awaited.get(str(operation_uuid), ("", ""))
        if module and action == _OURS + module and fact in facts:
            self._end(session, operation_uuid, run_uuid, result=facts)

    def _record_end(self, session: Session, run_uuid: UUID, outcome: Outcome) -> None:
        progress = self.runs.get(run_uuid) or Progress()
        left = operations.of_run(session, run_uuid, unfinished=True)
        if outcome.interrupted:
            for operation in operations.put_back(session, left, f"The run was interrupted ({outcome.status})"):
                said = {"error": f"Its runs were interrupted {operation.attempts} times", "error_class": "Interrupted"}
                self._end(session, operation.uuid, run_uuid, **said)
            operations.end_run(session, run_uuid, "lost", outcome.rc)
            return
        for operation in left:
            host = str(operation.uuid)
            said = {"result": progress.facts.get(host)} if outcome.rc == 0 else _unexplained(outcome)
            said = progress.failures.get(host, said)
            self._end(session, operation.uuid, run_uuid, **said)
        operations.end_run(session, run_uuid, "succeeded" if outcome.rc == 0 else "failed", outcome.rc)

    def _end(self, session: Session, operation_uuid: UUID, run_uuid: UUID, **said: Any) -> None:
        """End an operation as `records.end` does. If that cannot be recorded, it has failed, and says why.

        It would be running for ever otherwise: its run is over, and its worker lives. If what follows from the failure
        cannot be recorded either, only the operation ends.
        """
        session.flush()
        failed: dict[str, Any] = {}
        for ending in (records.end, records.end, _only_finish):
            try:
                with session.begin_nested():
                    ending(session, self.settings, operation_uuid, run_uuid=run_uuid, **(failed or said))
                return
            except Exception as error:
                if _is_away(error):
                    raise
                log.exception("could not record the end of operation %s", operation_uuid)
                failed = failed or _unrecorded(said, error)


def facts_of(result: dict[str, Any]) -> dict[str, Any]:
    """The facts that a task of ours returned. Of a loop, a list of each (`checkpoint` → `checkpoints`)."""
    facts: dict[str, Any] = {key: result[key] for key in _FACTS if isinstance(result.get(key), dict)}
    facts |= {key: result[key] for key in _LISTS if isinstance(result.get(key), list)}
    items = result.get("results")
    for item in items if isinstance(items, list) else []:
        for key, value in facts_of(item).items() if isinstance(item, dict) else ():
            facts.setdefault(f"{key}s", []).append(value)
    return facts


def failure(event: str, data: dict[str, Any]) -> dict[str, Any]:
    """How a host failed, as `records.end` takes it."""
    result = data.get("res") or {}
    facts = facts_of(result)
    # Of a loop, the first item that failed says more.
    items = [one for one in result.get("results") or [] if isinstance(one, dict) and one.get("failed")]
    result = items[0] if items else result
    message = str(result.get("msg") or f"Task {data.get('task')!r} failed").strip()
    if event == "runner_on_unreachable":
        message = f"Ansible could not reach it: {message}"
    kept = {"task": data.get("task")} | facts
    if result.get("task_log"):
        kept["task_log"] = censored(result["task_log"])
    return {
        "error": message[:_TEXT_MOST],
        "error_class": str(result.get("error_class") or "")[:100] or None,
        "result": kept,
    }


def censored(value: Any, depth: int = 0) -> Any:
    """A result without what is secret by its name, without Ansible's own keys, and cut to a sane size."""
    if depth > 8:
        return None
    if isinstance(value, dict):
        return {
            str(key): "(hidden)" if names_a_secret(str(key)) and item else censored(item, depth + 1)
            for key, item in value.items()
            if key != "invocation" and not str(key).startswith("_ansible")
        }
    if isinstance(value, (list, tuple)):
        return [censored(item, depth + 1) for item in value[:_LIST_MOST]]
    if isinstance(value, str):
        # Postgres keeps no NUL in JSON.
        return value.replace("\0", "")[:_TEXT_MOST]
    return value


def _unexplained(outcome: Outcome) -> dict[str, Any]:
    lines = [line for line in outcome.tail.splitlines() if line.strip()]
    reason = next((line for line in lines if "ERROR" in line or "fatal" in line), lines[-1] if lines else "no output")
    return {
        "error": f"Ansible ended with {outcome.rc}: {reason.strip()}"[:_TEXT_MOST],
        "error_class": "RunError",
        "result": {"output": lines[-20:]},
    }


def _only_finish(session: Session, _: Settings, operation_uuid: UUID, **said: Any) -> None:
    operations.finish(session, operation_uuid, **said)


def _unrecorded(said: dict[str, Any], error: Exception) -> dict[str, Any]:
    """The failure of an operation whose end could not be recorded, in one line. Its result may be what is wrong."""
    reason = str(error.orig if isinstance(error, DBAPIError) else error).strip() or type(error).__name__
    message = f"What it has done could not be recorded: {reason.splitlines()[0]}"
    if said.get("error"):
        message = f"{said['error']} ({message})"
    return {"error": message.replace("\0", "")[:_TEXT_MOST], "error_class": "RecordError"}


def _is_away(error: Exception) -> bool:
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or type(error).__name__ in ("OperationalError", "InterfaceError")
    return isinstance(error, DatabaseError) and error.code == "database_unreachable"


def _uuid(host: str) -> UUID | None:
    try:
        return UUID(host)
    except ValueError:
        return None
