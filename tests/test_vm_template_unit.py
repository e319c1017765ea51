"""The bootstrap's unit of role vm_template, on a real systemd: what it may, what it may not, and that it stays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import jinja2
import pytest
from hosts import REPOSITORY, Host, host
from labs import until

UNIT = "autovibe-bootstrap.service"
ROLE = REPOSITORY / "roles" / "vm_template"
#: Like the agent: root that becomes user agent, by the same calls as agent/autovibe_agent/process.py.
PROBE = r"""
import json, os, signal, subprocess, sys, time

def tried(action):
    try:
        action()
    except OSError as error:
        return error.strerror
    return "done"

def write(path):
    with open(path, "w") as file:
        file.write("x")

def as_agent(shell):
    done = subprocess.run(["sh", "-c", shell], user=1000, group=1000, extra_groups=[], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "refused"

def kill():
    child = subprocess.Popen(["sleep", "100"], user=1000, group=1000, extra_groups=[], start_new_session=True)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait(5)

found = {
    "root writes /run/autovibe": tried(lambda: write("/run/autovibe/x")),
    "root gives a file away": tried(lambda: os.chown("/run/autovibe/x", 1000, 1000)),
    "root writes /workspace": tried(lambda: write("/workspace/root")),
    "root writes /etc": tried(lambda: write("/etc/x")),
    "root writes /usr": tried(lambda: write("/usr/local/bin/x")),
    "root loads a module": tried(lambda: write("/proc/sys/kernel/hostname")),
    "root ends the CLI": tried(kill),
    "cli is": as_agent("id -un; id -Gn"),
    "cli writes /workspace": as_agent("echo x >/workspace/cli && echo done"),
    "cli writes its home": as_agent("mkdir -p ~agent/.cache && echo done"),
    "cli writes /tmp": as_agent("echo x >/tmp/cli && echo done"),
    "cli writes /run": as_agent("echo x >/run/autovibe/y && echo done"),
    "cli reads the identity": as_agent("cat /run/autovibe/identity.json"),
    "cli runs git's kind of programs": as_agent("sh -c 'ls / | wc -l' >/dev/null && echo done"),
    "cli mounts": as_agent("unshare --user --map-root-user true && echo done"),
    "cli becomes root": as_agent("cp /bin/sh /tmp/s && chmod 4755 /tmp/s && echo done"),
}
with open("/tmp/probe.json.new", "w") as file:
    json.dump(found, file)
os.rename("/tmp/probe.json.new", "/tmp/probe.json")
time.sleep(1000)
"""
EXPECTED = {
    "root writes /run/autovibe": "done",
    "root gives a file away": "done",
    "root writes /workspace": "done",
    "root writes /etc": "Read-only file system",
    "root writes /usr": "Read-only file system",
    "root loads a module": "Read-only file system",
    "root ends the CLI": "done",
    "cli is": "agent\nagent",
    "cli writes /workspace": "done",
    "cli writes its home": "done",
    "cli writes /tmp": "done",
    "cli writes /run": "refused",
    "cli reads the identity": "refused",
    "cli runs git's kind of programs": "done",
    "cli mounts": "refused",
    "cli becomes root": "refused",
}


def rendered(name: str, **variables: object) -> str:
    text = (ROLE / "templates" / name).read_text()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(text).render(vm_template_agent_uid=1000, **variables)


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    """A Debian with what the role's steps put there."""
    with host(name="machine") as h:
        h.run("sh -s", stdin=rendered("agent.sh.j2"))
        h.write("/usr/local/lib/autovibe/bootstrap.py", (REPOSITORY / "agent/autovibe_agent/bootstrap.py").read_text())
        h.write(f"/etc/systemd/system/{UNIT}", rendered(f"{UNIT}.j2"))
        h.run(f"systemctl daemon-reload && systemctl enable --now {UNIT}")
        yield h


def test_the_unit_is_sound_and_hardened(machine: Host) -> None:
    assert machine.run(f"cd / && systemd-analyze verify /etc/systemd/system/{UNIT} 2>&1").stdout == ""
    said = machine.run(f"systemd-analyze security --no-pager {UNIT}").stdout
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1])
    print(said.splitlines()[-1])
    assert exposure < 4, said


def test_the_steps_can_be_run_twice(machine: Host) -> None:
    machine.run("sh -s", stdin=rendered("agent.sh.j2"))
    assert machine.run("stat -c '%U %a' /workspace /home/agent").stdout.startswith("agent 755\nagent 7")
    assert machine.run("passwd --status agent").stdout.split()[1] == "L"


def test_it_takes_an_identity_and_goes_on_after_a_kill(machine: Host) -> None:
    identity = {"machine": "m", "generation": 1, "hub_url": "https://127.0.0.1:9", "ca_sha256": "0", "token": "secret"}
    machine.write("/run/autovibe/identity.json", json.dumps(identity), "600")
    log = f"journalctl -u {UNIT} -o cat"
    until(lambda: "Connection refused" in machine.run(log).stdout)
    before = machine.run(f"systemctl show -P MainPID {UNIT}").stdout
    machine.run(f"kill -KILL {before}")
    until(lambda: machine.run(f"systemctl show -P MainPID {UNIT}").stdout.strip() not in ("0", before.strip()))
    assert "secret" in machine.read("/run/autovibe/identity.json"), "the restart has lost the identity"
    assert "secret" not in machine.run(log).stdout


def test_it_may_what_the_agent_does_and_no_more(machine: Host) -> None:
    machine.write("/run/autovibe/identity.json", "{}", "600")
    machine.write("/opt/probe.py", PROBE)
    drop_in = "[Service]\nExecStart=\nExecStart=/usr/bin/python3 /opt/probe.py\n"
    machine.write(f"/etc/systemd/system/{UNIT}.d/probe.conf", drop_in)
    machine.run(f"systemctl daemon-reload && systemctl restart {UNIT}")
    until(lambda: machine.run("test -e /tmp/probe.json", check=False).returncode == 0)
    assert json.loads(machine.read("/tmp/probe.json")) == EXPECTED
