"""What the gateway's tests share: a migrated database, the demo model as a process, a hub serving the real app."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import httpx
import sqlalchemy as sa
from autovibe import allocations, db, tokens
from autovibe.models import Budget, Machine, Project, Reservation, Usage
from autovibe.settings import Settings, load_settings
from autovibe.tests.ports import free_port

MODEL = "claude-sonnet-5-5"
#: httpx, which gives up after five seconds by itself: too few on a busy machine.
patient = SimpleNamespace(
    **{name: partial(getattr(httpx, name), timeout=60) for name in ("request", "get", "post", "head", "stream")}
)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} after {seconds} s")
        time.sleep(0.02)


@dataclass
class DemoModel:
    """The demo model, asked as its owner."""

    url: str
    key: str
    process: subprocess.Popen[bytes]

    def ask(self, method: str, path: str, **options: object) -> dict:
        response = patient.request(method, f"{self.url}{path}", headers={"x-api-key": self.key}, **options)
        response.raise_for_status()
        return response.json()

    def bill(self) -> list[dict]:
        return self.ask("GET", "/bill")["lines"]

    def fault(self, kind: str, **details: object) -> None:
        self.ask("POST", "/lab/faults", json={"kind": kind, **details})

    def faults(self) -> int:
        """How many of the next calls are to have a fault."""
        return self.ask("GET", "/lab/faults")["waiting"]


@contextlib.contextmanager
def demo_model(folder: Path) -> Iterator[DemoModel]:
    """The demo model serving on a free port; its port and key are where the gateway looks for them."""
    folder.mkdir(parents=True, exist_ok=True)
    key_file, port_file = folder / "model-key", folder / "model-port"
    key_file.write_text(secrets.token_hex(16))
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "autovibe_lab.model", "--key-file", key_file, "--port-file", port_file]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    try:
        wait_for(port_file.exists, "port of the demo model")
        yield DemoModel(f"http://127.0.0.1:{port_file.read_text().strip()}", key_file.read_text(), process)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def migrated(folder: Path) -> Iterator[Settings]:
    """Settings of an installation with an embedded database of its own."""
    from autovibe import postgres

    settings = load_settings(
        state_dir=folder, database_url=None, anthropic_api_key=None, usd_to_cad=None, reservation_wait_seconds=1
    )
    try:
        db.upgrade(settings)
        yield settings
    finally:
        db.dispose(settings)
        postgres.stop(settings)
        postgres.remove(settings)


@dataclass
class Account:
    """A project with a budget and a machine of it."""

    settings: Settings
    project: UUID
    machine: UUID
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"x-api-key": self.token, "anthropic-version": "2023-06-01"}

    def budget(self) -> Budget:
        with db.session_scope(self.settings) as session:
            budget = allocations.get(session, self.project)
            assert budget is not None
            return budget

    def settled(self) -> None:
        """Until nothing is held: a call is settled a moment after its answer."""
        wait_for(lambda: self.held() == 0, "settlement")

    def lines(self, resource_type: str = "money") -> list[Usage]:
        mine = (Usage.project_uuid == self.project, Usage.resource_type == resource_type)
        with db.session_scope(self.settings) as session:
            return list(session.scalars(sa.select(Usage).where(*mine).order_by(Usage.recorded_at)))

    def held(self) -> int:
        mine = (Reservation.project_uuid == self.project, Reservation.status == "held")
        with db.session_scope(self.settings) as session:
            return session.scalar(sa.select(sa.func.count()).select_from(Reservation).where(*mine)) or 0

    def api_calls(self) -> int:
        with db.session_scope(self.settings) as session:
            return session.scalar(sa.select(Machine.api_calls).where(Machine.uuid == self.machine)) or 0


def account(settings: Settings, budget_cad: Decimal | str, max_cad: Decimal | None = None) -> Account:
    """`max_cad`: the machine's own limit."""
    name = f"p{secrets.token_hex(6)}"
    with db.session_scope(settings) as session:
        project = Project(name=name)
        session.add(project)
        session.flush()
        machine = Machine(name=name, machine_type="claude_code", status="working", project_uuid=project.uuid)
        machine.max_cad = max_cad
        session.add(machine)
        session.flush()
        session.refresh(machine)
        allocations.create(session, project.uuid, Decimal(budget_cad))
        return Account(settings, project.uuid, machine.uuid, tokens.machine_token(machine, settings))


SERVE = """
import socket, sys, uvicorn
from autovibe.api.app import create_app
from autovibe.settings import load_settings
app = create_app(load_settings())
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, lifespan="on")
uvicorn.Server(config).run([listener])
"""


@contextlib.contextmanager
def hub(settings: Settings, **environment: str) -> Iterator[str]:
    """A process that serves the real application over plain HTTP; its URL."""
    with hub_process(settings, **environment) as (url, _):
        yield url


@contextlib.contextmanager
def hubs(settings: Settings, count: int, **environment: str) -> Iterator[str]:
    """So many processes of a hub on one port, as `hub_processes` has them; their URL."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(hub_process(settings, port, **environment))
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def hub_process(
    settings: Settings, port: int | None = None, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Like `hub`, with the process; on a port of its own, or on one that it shares."""
    port = port or free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOVIBE_", "ANTHROPIC_"))}
    env |= {"AUTOVIBE_STATE_DIR": str(settings.state_dir), "AUTOVIBE_RESERVATION_WAIT_SECONDS": "1"}
    # Storms of calls come from one machine here.
    env |= {"AUTOVIBE_MACHINE_CALLS_PER_MINUTE": "0", "AUTOVIBE_MACHINE_CALLS_AT_ONCE": "0", **environment}
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], env=env)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, "the hub ended"
        with contextlib.suppress(httpx.HTTPError):
            return httpx.head(url).status_code == 200
        return False

    try:
        wait_for(answers, "answer of the hub")
        yield url, process
    finally:
        process.terminate()
        process.wait(60)


def request_body(prompt: str = "Write a small program with a test", **fields: object) -> dict:
    return {"model": MODEL, "max_tokens": 1000, "messages": [{"role": "user", "content": prompt}], **fields}
