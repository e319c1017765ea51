"""Templates and backups with real disks: what is sealed away, what a clone keeps, what a restored disk holds."""

from __future__ import annotations

import pytest
from labs import Lab
from steps import Task

pytestmark = [pytest.mark.vm, pytest.mark.soak, pytest.mark.timeout(900)]

IMAGE = {"disk_source": "local:import/autovibe-guest.qcow2", "storage": "local", "memory": 768}
#: What a machine must not inherit, and what it is to have.
TRACES = """\
mkdir -p /etc/ssh /var/tmp /var/log && echo key > /etc/ssh/ssh_host_ed25519_key && echo old > /root/.bash_history
echo much > /var/log/left.log && echo x > /var/tmp/left && echo made > /srv/made
"""
LOOK = """\
cat /srv/made /srv/motd; ls /etc/ssh/ssh_host_*_key /root/.bash_history /var/tmp/left 2> /dev/null
stat -c %s /var/log/left.log; cat /etc/machine-id
"""
STEPS = [{"shell": TRACES}, {"path": "/srv/motd", "content": "welcome\n", "mode": "0644"}]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("state"))
    lab.command("up", "--port", str(lab.port), "--site", "full")
    try:
        yield lab
    finally:
        lab.command("down")


def booted(vmid, name):
    machine = {"vm_id": vmid, "name": name, "source": {"name": "sealed"}, "state": "started"}
    return [Task("machine", machine).play(f"machine_{vmid}"), ready(vmid)]


def ready(vmid):
    return Task("guest_wait", {"vm_id": vmid, "wait_timeout": 300}).play(f"ready_{vmid}")


def off(vmid):
    return Task("machine", {"vm_id": vmid, "state": "stopped"}).play(f"off_{vmid}")


def read(vmid, script):
    return Task("guest_exec", {"vm_id": vmid, "shell": script}).play(f"read_{vmid}")


def ran(lab, *tasks):
    done = lab.tasks_run(*tasks)
    assert done.rc == 0, done.output[-4000:]
    return done.named


def test_a_template_is_customised_and_sealed(lab):
    template = Task("template", {"name": "sealed", "customize": STEPS, **IMAGE})
    made = ran(lab, template.play("template"), template.play("template_again"))
    assert [made[step]["changed"] for step in ("template", "template_again")] == [True, False]
    seen = []
    for vmid, name in ((300, "one"), (301, "two")):
        named = ran(lab, *booted(vmid, name), read(vmid, LOOK), off(vmid))
        seen.append(named[f"read_{vmid}"]["stdout"].splitlines())
    assert seen[0][:-1] == seen[1][:-1] == ["made", "welcome", "0"]
    assert seen[0][-1] != seen[1][-1], "two clones have one machine-id"


def test_a_restored_disk_holds_what_was_written_before_the_backup(lab):
    data = {"vm_id": 300, "path": "/srv/data", "content": "précieux\n"}
    backup = Task("backup", {"vm_id": 300, "storage": "local", "max_age": 3600, "compress": "zstd"})
    restore = Task("backup", {"vm_id": 300, "storage": "local", "state": "restored", "restore_vm_id": 310})
    ran(lab, *booted(300, "one"), Task("guest_file", data).play("written"))
    made = ran(lab, backup.play("backup"), backup.play("backup_again"))
    assert [made[step]["changed"] for step in ("backup", "backup_again")] == [True, False]
    verified = Task("backup", {"volume": made["backup"]["backup"]["volume"], "state": "verified"})
    ran(lab, verified.play("verified"), Task("guest_file", {**data, "content": "lost\n"}).play("lost"), off(300))
    ran(lab, restore.play("restored"))
    started = Task("machine", {"vm_id": 310, "state": "started"}).play("machine_310")
    named = ran(lab, started, ready(310), read(310, "cat /srv/data /srv/made"), off(310))
    assert named["read_310"]["stdout"] == "précieux\nmade\n"
