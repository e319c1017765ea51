"""`autovibe up` and `down`: one hub for a state folder, everything stops together, a crash is mended."""

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from autovibe import ca, postgres, supervise
from autovibe.settings import Settings
from autovibe.sockets import answers
from autovibe.tests.ports import free_port
from prometheus_client.parser import text_string_to_metric_families

AUTOVIBE = str(Path(sys.executable).parent / "autovibe")


class Hub:
    def __init__(self, folder):
        self.port = free_port()
        self.settings = Settings(state_dir=folder / "state", hub_port=self.port)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AUTOVIBE_")}
        self.environment = {
            **kept,
            "AUTOVIBE_STATE_DIR": str(self.settings.state_dir),
            "AUTOVIBE_HUB_PORT": str(self.port),
            "AUTOVIBE_ANTHROPIC_API_KEY": "sk-planted",
        }

    def run(self, *arguments):
        return subprocess.run([AUTOVIBE, *arguments], env=self.environment, capture_output=True, text=True, check=False)

    def up(self):
        done = self.run("up", "--detach", "--json")
        assert done.returncode == 0, done.stderr
        return psutil.Process(json.loads(done.stdout)["pid"])

    def processes(self):
        """All that works on this state folder."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process):
        try:
            said = process.environ().get("AUTOVIBE_STATE_DIR") == str(self.settings.state_dir)
            return said and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@pytest.fixture
def hub():
    folder = Path(tempfile.mkdtemp(prefix="autovibe-test-up-"))
    folder.chmod(0o711)
    hub = Hub(folder)
    yield hub
    hub.run("down")
    left = hub.processes()
    postgres.remove(hub.settings)
    shutil.rmtree(folder)
    assert left == []


def wait_for(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def child(process, name):
    for one in process.children():
        with contextlib.suppress(psutil.Error):  # it may be ending
            if f"autovibe.{name}" in one.cmdline():
                return one
    return None


def ask_for_certificate(hub):
    certificate = ca.ensure_for(hub.settings)
    tls = ssl.create_default_context(cadata=certificate.ca_pem.decode())
    answer = httpx.get(f"https://127.0.0.1:{hub.port}/ca.pem", verify=tls, timeout=60)
    assert answer.content == certificate.ca_pem


def counted(hub):
    """How often the certificate was asked for, as the metrics have it: None until they know of it."""
    transport = httpx.HTTPTransport(uds=str(hub.settings.api_socket))
    with httpx.Client(transport=transport, base_url="http://hub", timeout=60) as local:
        text = local.get("/metrics").text
    found = {sample.name: sample.value for sample in samples(text) if sample.labels.get("route") == "/ca.pem"}
    return found.get("autovibe_guest_duration_seconds_count")


def samples(text):
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def test_up_answers_and_down_leaves_nothing(hub):
    process = hub.up()
    with socket.create_connection(("127.0.0.1", hub.port), timeout=30):
        pass
    again = hub.run("up", "--detach")
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
    assert f"already up (pid {process.pid}" in again.stderr
    assert answers(hub.settings.api_socket)
    ask_for_certificate(hub)
    # It is counted a moment after its answer.
    wait_for(lambda: counted(hub), "the figures")
    assert counted(hub) == 1
    for name in ("worker", "scheduler"):
        wait_for(lambda n=name: child(process, n), f"the {name}")
        assert "sk-planted" not in " ".join(child(process, name).environ().values())
    assert "The hub is down" in hub.run("down").stdout
    assert hub.processes() == []
    assert not postgres.is_running(hub.settings)
    assert "was not up" in hub.run("down").stdout


def test_a_crashed_child_is_started_again(hub):
    process = hub.up()
    for name in ("worker", "api"):
        victim = child(process, name)
        victim.kill()
        wait_for(lambda v=victim, n=name: child(process, n) not in (None, v), f"another {name}")


def test_a_database_that_was_killed_is_started_again_with_all_that_was_in_it(hub):
    hub.up()
    hub.run("project", "create", "kept", "--budget", "1")
    victim = postgres.server(hub.settings).postmaster()
    victim.kill()
    wait_for(lambda: postgres.server(hub.settings).postmaster() not in (None, victim), "another server", 60)
    wait_for(lambda: hub.run("project", "show", "kept").returncode == 0, "the hub's answer")


def test_the_children_die_with_the_supervisor(hub):
    process = hub.up()
    children = process.children()
    process.kill()
    psutil.wait_procs(children, timeout=30)
    wait_for(lambda: not hub.processes(), "the end of the children")
    assert supervise.status(hub.settings) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "Port {port} on 127.0.0.1 cannot be used: address already in use"),
        ({"API_BIND": "127.0.0.1", "API_PORT": "{port}", "HUB_PORT": "{free}"}, "Port {port} on 127.0.0.1 cannot be"),
        ({"API_BIND": "127.0.0.1", "API_PORT": "{free}", "HUB_PORT": "{free}"}, "Port {free} on 127.0.0.1 cannot be"),
        ({"API_BIND": "0.0.0.0", "API_TLS": "no", "HUB_PORT": "{free}"}, "would listen on 0.0.0.0 without TLS"),
        ({"HUB_BIND": "192.0.2.1"}, "Port {port} on 192.0.2.1 cannot be used: cannot assign requested address"),
        ({"HUB_BIND": "nowhere.invalid"}, "Port {port} on nowhere.invalid cannot be used: "),
    ],
)
def test_an_address_that_cannot_be_used_is_one_clear_line(hub, given, said):
    names = {"port": hub.port, "free": free_port()}
    hub.environment |= {f"AUTOVIBE_{name}": value.format(**names) for name, value in given.items()}
    with socket.socket() as other:
        other.bind(("127.0.0.1", hub.port))
        other.listen()
        done = hub.run("up", "--detach")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert said.format(**names) in done.stderr
    assert hub.processes() == []


def test_machines_are_served_while_peoples_address_is_missing(hub):
    """As after a boot, when an address may come late."""
    hub.environment |= {"AUTOVIBE_API_BIND": "192.0.2.1"}
    process = psutil.Popen([AUTOVIBE, "up"], env=hub.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert b"People's API: Port 18001 on 192.0.2.1 cannot be used" in process.stderr.readline()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        for name in ("api", "worker", "scheduler"):
            wait_for(lambda n=name: child(process, n), f"the {name}", 60)
    finally:
        process.terminate()
        assert process.wait(40) == 0


def test_ctrl_c_stops_the_hub_in_the_foreground(hub):
    process = subprocess.Popen(
        [AUTOVIBE, "up"], env=hub.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert "The hub is up" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 0
    assert hub.processes() == []
