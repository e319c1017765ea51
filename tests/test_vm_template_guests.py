"""Role vm_template with real guests: templates are sealed and cloned twice, and the clones are two machines.

The lab's own small image in the normal suite; a cloud image, customised at its first boot, among the long tests:
without KVM a boot with systemd and cloud-init takes a minute, and apt another.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cloud_image
import hosts
import pytest
from autovibe_lab import image as lab_image
from autovibe_lab.paths import LabPaths
from host_mirror import _Handler
from labs import ROOT, Lab, running_lab
from steps import Task

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

#: The only address that the lab's guests reach; on it the test puts a proxy for apt.
PROXY = "http://192.168.100.2:8000"
BUILD = {
    "name": "claude-code-template", "vm_id": 100, "cores": 2, "memory": 1024, "disk_size": "4G", "bridge": "vmbr1",
    "packages": ["jq", "qemu-guest-agent"],
    "customize": [{"shell": "echo secret >/root/.bash_history; echo secret >/home/agent/.bash_history; jq --version"}],
}  # fmt: skip
#: What a person would look at in a clone, a line each.
LOOK = r"""
say() { printf '%s: %s\n' "$1" "$(cat)"; }
cloud-init status --wait >/dev/null 2>&1
cat /etc/machine-id | say machine_id
cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub | say ssh_key
hostname | say hostname
cat /sys/class/net/e*/address | say mac
ip -4 -o addr show scope global | awk '{print $4}' | say address
systemctl is-active autovibe-bootstrap.service ssh.service | tr '\n' ' ' | say active
systemctl show -P NRestarts autovibe-bootstrap.service | say restarts
stat -c '%U %a' /workspace | say workspace
id -un 1000 | say user
jq --version | say jq
cat /root/.bash_history /home/agent/.bash_history 2>/dev/null | wc -c | say history
ls /var/log/journal 2>/dev/null | grep -vc "$(cat /etc/machine-id)" | say foreign_journals
ls /run/autovibe-build.env /etc/apt/apt.conf.d/90cloud-init-aptproxy 2>/dev/null | wc -l | say proxies
getent passwd ubuntu debian | wc -l | say other_users
grep -rl 192.168.100.2:8000 /etc /root /home /var/lib/cloud 2>/dev/null | wc -l | say proxy_named
df --output=size -BG / | tail -1 | tr -d ' ' | say root
"""

#: The lines of it that the lab's own image can say: it has neither sshd nor systemd.
SMALL = ("say()", "cat /etc/machine-id", "hostname", "cat /sys", "ip -4")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    with running_lab(tmp_path_factory.mktemp("state"), "--hub-port", str(proxy.server_port)) as found:
        # The kernel of the lab's guests; --no-image, because this lab has a template of its own.
        lab_image.install(lab_image.build(), LabPaths(found.folder))
        yield found
    proxy.shutdown()


def play(lab: Lab, **extra: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        lab.argv("templates", extra, ("--diff",)),
        cwd=ROOT,
        env=lab.environment("ansible.builtin.default"),
        capture_output=True,
        text=True,
        timeout=1800,
    )


def clones(lab: Lab, template: str, look: str, *vmids: int) -> list[dict[str, str]]:
    """What `look` says in linked clones of the template that start together."""
    for vmid in vmids:
        machine = {"vm_id": vmid, "name": f"clone-{vmid}", "source": {"name": template}, "state": "started",
                   "ip": f"192.168.100.{vmid - 100}/24", "gateway": "192.168.100.1"}  # fmt: skip
        made = lab.tasks_run(Task("machine", machine).play("made"))
        assert made.rc == 0, made.output
    found = []
    for vmid in vmids:
        waits = Task("guest_wait", {"vm_id": vmid, "wait_timeout": 900}).play("up")
        looks = Task("guest_exec", {"vm_id": vmid, "shell": look, "exec_timeout": 600}).play("look")
        said = _patient(lab, waits, looks)
        found.append(dict(line.split(": ", 1) for line in said.splitlines() if ": " in line))
    return found


def _patient(lab: Lab, *tasks: dict[str, Any]) -> str:
    book = lab.state / "look.json"
    play = {"hosts": "localhost", "gather_facts": False, "tasks": list(tasks),
            "module_defaults": {"group/autovibe.proxmox.all": lab.connection()}}  # fmt: skip
    book.write_text(json.dumps([play]))
    done = subprocess.run(lab.argv(str(book), {}, ()), cwd=ROOT, env=lab.environment(), capture_output=True,
                          text=True, timeout=1800)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout[done.stdout.index("{\n") :])
    return document["plays"][0]["tasks"][-1]["hosts"]["localhost"]["stdout"]


def test_two_clones_of_a_small_template_are_two_machines(lab: Lab) -> None:
    lab.ok("templates", template_name="small", template_disk_source="local:import/autovibe-guest.qcow2")
    look = "\n".join(line for line in LOOK.splitlines() if line.startswith(SMALL))
    one, other = clones(lab, "small", look, 301, 302)
    assert one.keys() == {"machine_id", "hostname", "mac", "address"}
    assert all(one[name] and one[name] != other[name] for name in one), (one, other)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(bool(hosts.why_not()), reason=hosts.why_not())
def test_two_clones_of_a_sealed_template_are_two_machines(lab: Lab) -> None:
    folder: Path = cloud_image.cloud_image()
    with cloud_image.served(folder) as url:
        variables = {
            "vm_template_connection": lab.connection(),
            "vm_template_image_url": f"{url}/{cloud_image.NAME}",
            "vm_template_storage": "local",
            "vm_template_pool": "",
            "vm_template_builds": [BUILD],
            "vm_template_build_proxy": PROXY,
            "vm_template_upgrade": False,
        }
        made = play(lab, **variables)
        assert made.returncode == 0, made.stdout + made.stderr
        again = play(lab, **variables)
    assert "changed=0" in again.stdout, again.stdout
    one, other = clones(lab, BUILD["name"], LOOK, 201, 202)
    print(one, other, sep="\n")
    for name in ("machine_id", "ssh_key", "hostname", "mac", "address"):
        assert one[name], f"no {name}"
        assert one[name] != other[name], name
    assert (one["hostname"], one["address"]) == ("clone-201", "192.168.100.101/24")
    same = {"active": "active active", "restarts": "0", "workspace": "agent 755", "user": "agent", "history": "0",
            "foreign_journals": "0", "proxies": "0", "proxy_named": "0"}  # fmt: skip
    for machine in (one, other):
        assert {name: machine[name].strip() for name in same} == same
        assert machine["jq"].startswith("jq-")
        assert int(machine["root"].rstrip("G")) >= 2
