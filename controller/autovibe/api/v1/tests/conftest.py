"""The people's API as it runs: its process over TLS on a free port and on its socket, a real Postgres."""

import contextlib
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from autovibe import apikeys, ca, db, machines, postgres, projects, tokens, users
from autovibe.api.v1 import server
from autovibe.models import Machine
from autovibe.settings import Settings, load_settings
from autovibe.tests import world
from autovibe.tests.conftest import fresh_database, running_server
from autovibe.tests.ports import free_port

PASSWORD = "correct horse battery"
#: Of the VM that the hub would run in.
SMBIOS_UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"


@dataclass
class People:
    """A running API and what a test does with it."""

    settings: Settings
    folder: Path
    process: subprocess.Popen | None = None
    keys: dict[str, str] = field(default_factory=dict)
    port: int = 0

    def up(self, **environment: str) -> None:
        """Start the process; returns once its socket is served."""
        variables = {
            **os.environ,
            "AUTOVIBE_STATE_DIR": str(self.settings.state_dir),
            "AUTOVIBE_DATABASE_URL": self.settings.database_url.get_secret_value(),
            "AUTOVIBE_API_BIND": "127.0.0.1",
            "AUTOVIBE_API_PORT": str(self.port),
            "AUTOVIBE_API_RATE_LIMIT": "100000/second",
            "AUTOVIBE_API_FAILURE_LIMIT": "100000/second",
            "AUTOVIBE_HUB_SMBIOS_UUID": SMBIOS_UUID,
            **environment,
        }
        log = self.folder / "people.log"
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "autovibe.api.v1"], env=variables, stdout=file, stderr=file
            )
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            if server.answers(self.settings.api_socket):
                return
            time.sleep(0.05)
        self.process.kill()
        raise RuntimeError(f"the API did not start: {log.read_text()}")

    def down(self) -> int:
        self.process.terminate()
        return self.process.wait(60)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca.ensure_for(self.settings).ca)
        return context

    def client(self, who: str | None = None, **options) -> httpx.Client:
        """An HTTP client: `local` (the socket), somebody whose key there is, or nobody."""
        if who == "local":
            transport = httpx.HTTPTransport(uds=str(self.settings.api_socket))
            return httpx.Client(transport=transport, base_url="http://hub/api/v1", timeout=90, **options)
        headers = {"Authorization": f"Bearer {self.keys[who]}"} if who else {}
        return httpx.Client(verify=self.tls(), base_url=f"{self.url}/api/v1", headers=headers, timeout=90, **options)

    def session(self):
        return db.session_scope(self.settings)

    def machine(self, project: str, name: str, **values) -> Machine:
        """A machine that works."""
        with self.session() as session:
            owner = projects.get(session, project)
            made = machines.spawn(session, self.settings, project=owner, prompt="x", name=name)
            world.do(session, self.settings, kind="spawn")
            made.status, made.enrolled_at = "working", made.spawned_at
            for key, value in values.items():
                setattr(made, key, value)
            return made

    def checkpoint(self, machine: Machine) -> UUID:
        """A verified checkpoint of a machine."""
        with self.session() as session:
            found = session.get_one(Machine, machine.uuid)
            made, _ = machines.checkpoint(session, self.settings, found, description="half way")
            world.do(session, self.settings, kind="checkpoint")
            return made.uuid


def pytest_collection_modifyitems(items):
    """Give each of schemathesis's tests an id of its own.

    pytest 9.2 takes no notice of their names and gives them all one, and pytest-xdist runs one test of each id.
    """
    for item in items:
        if item.name not in item.nodeid:
            item._id = item.id.parse(f"{item.parent.nodeid}::{item.name}")


@pytest.fixture(scope="session")
def api_server() -> Iterator[postgres.Server]:
    with running_server(postgres.find_programs(Settings(postgres_bin=None))) as one:
        yield one


@contextlib.contextmanager
def running(api_server: postgres.Server, folder: Path, **environment: str) -> Iterator[People]:
    """An API of its own, with a database of its own and nobody in it."""
    with fresh_database(api_server) as fresh:
        settings = load_settings(
            state_dir=folder / "state",
            database_url=fresh.database_url,
            api_port=free_port(),
            hub_smbios_uuid=SMBIOS_UUID,
        )
        one = People(settings, folder, port=settings.api_port)
        try:
            one.up(**environment)
            yield one
        finally:
            if one.process is not None and one.process.poll() is None:
                one.down()
            db.dispose(settings)


def populate(people: People) -> None:
    """Two projects, `ours` and `theirs`; an admin, and of each an operator, a viewer and a machine. Their keys."""
    with people.session() as session:
        world.template(session)
        root = users.create(session, "root", role="admin", password=PASSWORD)
        people.keys["admin"] = apikeys.create(session, root, "test", scope="admin")[1]
        people.keys["metrics"] = apikeys.create(session, root, "test", scope="metrics")[1]
        for name in ("ours", "theirs"):
            project = projects.create(session, name, budget_cad=5)
            for role in ("operator", "viewer"):
                user = users.create(session, f"{role}-{name}", role=role)
                users.grant(session, user, project, role)
                people.keys[f"{role}-{name}"] = apikeys.create(session, user, "test", scope="admin")[1]
            operator = users.find(session, f"operator-{name}")
            people.keys[f"reader-{name}"] = apikeys.create(session, operator, "read only", scope="read")[1]
    for name in ("ours", "theirs"):
        machine = people.machine(name, f"machine-{name}")
        people.checkpoint(machine)
        with people.session() as session:
            people.keys[f"machine-{name}"] = tokens.machine_token(
                session.get_one(Machine, machine.uuid), people.settings
            )


@pytest.fixture(scope="session")
def people(api_server, tmp_path_factory) -> Iterator[People]:
    """One API for all tests of a file, populated."""
    with running(api_server, tmp_path_factory.mktemp("people")) as one:
        populate(one)
        yield one


@pytest.fixture
def admin(people):
    with people.client("admin") as client:
        yield client


@pytest.fixture
def operator(people):
    with people.client("operator-ours") as client:
        yield client
