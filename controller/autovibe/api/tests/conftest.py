"""A real hub: its API process over TLS on a free port, a real Postgres, projects and machines."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from autovibe import allocations, ca, db, identity, postgres, tokens
from autovibe.api.tests.local_guest import LocalGuest
from autovibe.models import Machine, Project, Usage
from autovibe.settings import Settings, load_settings
from autovibe.tests.ports import free_port
from autovibe_lab import image
from sqlalchemy import select, text


@dataclass
class Answer:
    status: int
    headers: dict
    content: bytes

    @property
    def json(self):
        return json.loads(self.content)

    @property
    def code(self):
        return self.json["error"]["type"]


@dataclass
class TestHub:
    """A hub and what a test does with it."""

    __test__ = False
    settings: Settings
    log: Path
    process: subprocess.Popen | None = None
    model_url: str = ""

    def call(self, method, path, body=None, token=None, headers=None) -> Answer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca.ensure_for(self.settings).ca)
        connection = http.client.HTTPSConnection("127.0.0.1", self.settings.hub_port, context=context, timeout=60)
        headers = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, path, body=data, headers=headers)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def up(self, **environment: str):
        self.environment = environment
        self.process = start_api(self.settings, self.log, environment)

    def kill(self):
        """Kills the API's process, and starts it again."""
        self.process.kill()
        self.process.wait()
        self.up(**self.environment)

    def down(self):
        if self.process is not None and self.process.poll() is None:
            stop_api(self.process)

    def session(self):
        return db.session_scope(self.settings)

    def machine(
        self,
        prompt="",
        machine_type="command",
        command=None,
        budget="5",
        status="spawning",
        when_exhausted="pause",
        **assignment,
    ):
        """A machine as `machines.spawn` leaves it, without its template and VM."""
        with self.session() as session:
            project = Project(uuid=uuid4(), name=f"project {uuid4()}", when_exhausted=when_exhausted)
            session.add(project)
            session.flush()
            allocations.create(session, project.uuid, budget)
            uuid = uuid4()
            machine = Machine(
                uuid=uuid,
                name=f"m-{uuid.hex[:8]}",
                machine_type=machine_type,
                project_uuid=project.uuid,
                status=status,
                original_prompt=prompt,
                vm_id=session.scalar(text("SELECT nextval('vm_ids')::integer")),
                assignment={"command": command, **assignment},
            )
            session.add(machine)
        return machine

    def get(self, machine: Machine) -> Machine:
        """The machine as it is in the database now."""
        with self.session() as session:
            return session.get_one(Machine, machine.uuid)

    def change(self, machine: Machine, **values) -> None:
        with self.session() as session:
            fresh = session.get_one(Machine, machine.uuid)
            for name, value in values.items():
                setattr(fresh, name, value)

    def enrolment(self, machine: Machine, /, **changes) -> dict:
        generation = changes.pop("generation", machine.generation or 1)
        token = identity.enrol_token(self.settings, machine.uuid, generation)
        body = {"machine": str(machine.uuid), "generation": generation, "token": token, "nonce": "a nonce of mine"}
        return {**body, **changes}

    def token(self, machine: Machine) -> str:
        """A token of the machine, which has enrolled."""
        answer = self.call("POST", "/agent/v1/enrol", self.enrolment(self.get(machine)))
        assert answer.status == 200, answer.content
        return answer.json["token"]

    def bill(self) -> int:
        """How many calls the demo model has billed."""
        request = urllib.request.Request(f"{self.model_url}/bill", headers={"x-api-key": "sk-demo"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["calls"]

    def paid_once(self, machine: Machine) -> int:
        """How many calls the ledger has of a machine, which are all that its budget was charged for."""

        def settled():
            with self.session() as session:
                return allocations.get(session, machine.project_uuid).reserved_amount == 0

        wait_until(settled)
        with self.session() as session:
            query = select(Usage).where(Usage.machine_uuid == machine.uuid, Usage.resource_type == "money")
            lines = session.scalars(query).all()
            assert allocations.get(session, machine.project_uuid).used_amount == sum(line.cost_cad for line in lines)
        return len(lines)

    def minted(self, machine: Machine) -> str:
        return tokens.machine_token(self.get(machine), self.settings)


class Guest(LocalGuest):
    """A machine's root folder and the bootstrap that runs over it, given the identities of a hub's machines."""

    def __init__(self, hub, root: Path):
        super().__init__(root)
        self.hub = hub

    def push(self, machine, **changes):
        """What role `machine` does: writes the identity of the machine's present generation."""
        content = {**identity.identity(self.hub.settings, self.hub.get(machine)), **changes}
        self.write_identity(json.dumps(content))
        return content


def start_api(settings: Settings, log: Path, more: dict[str, str]) -> subprocess.Popen:
    """The API's process; returns once it answers. Nothing goes to a real provider: port 9 discards."""
    environment = {
        **os.environ,
        "AUTOVIBE_STATE_DIR": str(settings.state_dir),
        "AUTOVIBE_HUB_URL_FOR_GUESTS": settings.hub_url_for_guests,
        "AUTOVIBE_HEARTBEAT_SECONDS": str(settings.heartbeat_seconds),
        "AUTOVIBE_UPSTREAM_URL": "http://127.0.0.1:9",
        "ANTHROPIC_API_KEY": "sk-ant-never-to-be-seen",
        **more,
    }
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "autovibe.api", "--port", str(settings.hub_port)],
            env=environment,
            stdout=file,
            stderr=file,
        )
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", settings.hub_port), 1):
            return process
        time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"the API did not start: {log.read_text()}")


def stop_api(process: subprocess.Popen) -> int:
    process.terminate()
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def wait_until(condition, seconds=90):
    """Waits for a condition; fails when it does not come."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the condition did not come"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="session")
def hub():
    with tempfile.TemporaryDirectory(prefix="avhub", ignore_cleanup_errors=True) as folder:
        state = Path(folder) / "state"
        port = free_port()
        settings = load_settings(
            state_dir=state, hub_port=port, hub_url_for_guests=f"https://127.0.0.1:{port}", heartbeat_seconds=1
        )
        one = TestHub(settings, state / "api.log")
        try:
            db.upgrade(settings)
            one.up()
            yield one
        finally:
            one.down()
            db.dispose(settings)
            postgres.stop(settings)
            postgres.remove(settings)


@pytest.fixture
def machine(hub) -> Machine:
    return hub.machine(prompt="say hello")


@pytest.fixture
def no_such_uuid() -> UUID:
    return uuid4()


@pytest.fixture
def guest(hub):
    # /tmp/pytest-of-… is closed to the user that the CLI runs as.
    folder = Path(tempfile.mkdtemp(prefix="avguest"))
    folder.chmod(0o755)
    one = Guest(hub, folder)
    yield one
    one.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def until():
    """Waits for a condition, whose value it returns; fails when it does not come."""
    return wait_until


@pytest.fixture(scope="module")
def paid_hub(hub, until, tmp_path_factory):
    """The hub with the demo model as its provider."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "key").write_text("sk-demo")
    argv = [sys.executable, "-m", "autovibe_lab.model", "--key-file", folder / "key", "--port-file", folder / "port"]
    argv += ["--pace", "0.02"]
    model = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        port = until(lambda: (folder / "port").exists() and (folder / "port").read_text())
        hub.model_url = f"http://127.0.0.1:{port.strip()}"
        hub.down()
        hub.up(AUTOVIBE_UPSTREAM_URL=hub.model_url, ANTHROPIC_API_KEY="sk-demo")
        yield hub
    finally:
        model.terminate()
        model.wait()
        hub.down()
        hub.up()


@pytest.fixture
def guest_with(guest):
    """Gives a guest that has a CLI (claude, qwen, aider) as the lab's guest images have it."""

    def with_cli(name):
        return guest.install(image.coding_cli(name), name)

    return with_cli


@pytest.fixture
def claude_guest(guest_with):
    return guest_with("claude")
