"""The twelve steps of `machine`, and what else it does for one VM."""

from __future__ import annotations

import pytest
from labs import running_lab
from steps import Call, Refusal, Steps, Task, run

ME = {"vm_id": 501, "name": "steps"}
CREATE = {
    **ME,
    "source": {"name": "null"},
    "cores": 2,
    "memory": 512,
    "disk_size": "2G",
    "tags": ["a"],
    "pool": "autovibe",
    "net": {"bridge": "vmbr1", "mac": "BC:24:11:00:05:01", "tag": 20},
    "ip": "192.168.100.51/24",
    "gateway": "192.168.100.1",
    "ciuser": "admin",
    "cipassword": "planted-password",
    "sshkeys": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGnkWVwLx6EGauHikBinrv/HntxNn+s3udanHuNR8yD6 x@y\n",
    "nameservers": ["192.168.100.2", "192.168.100.3"],
    "searchdomain": "example.net",
    "smbios": {"serial": "one", "manufacturer": "somebody"},
    "onboot": True,
    "description": "made",
    "state": "started",
}
CHANGE = {
    **CREATE,
    "cores": 3,
    "disk_size": "3G",
    "tags": ["a", "b"],
    "net": {"bridge": "vmbr0", "tag": 0, "firewall": True, "rate": 12.5},
    "nameservers": ["192.168.100.3"],
    "smbios": {"serial": "two"},
    "onboot": False,
    "description": "",
    "options": {"cpulimit": 2},
    "state": "paused",
}
STEPS = Steps(
    "machine",
    create=CREATE,
    change=CHANGE,
    delete={**ME, "state": "absent", "force": True},
    info=Task("machine_info", {"vm_id": 501}),
    drift=Call("PUT", "/nodes/pve1/qemu/501/config", {"tags": "by-hand"}),
    before=[Task("machine", {"vm_id": 502, "name": "twice", "source": {"name": "null"}, "protection": True})]
    + [Task("machine", {"vm_id": 503, "name": "twice", "source": {"name": "null"}, "state": "started"})],
    errors=[
        Refusal({"name": "steps", "source": {"name": "nope"}}, "NotFound", "No template 'nope'.*there are: null"),
        Refusal({"name": "steps", "source": {"vm_id": 999}}, "NotFound", "VM 999, does not exist"),
        Refusal({"name": "steps", "source": {"vm_id": 502, "snapshot": "no"}}, "NotFound", "no snapshot 'no'; there"),
        Refusal({"name": "steps", "state": "started"}, "NotFound", "no VM 'steps'; give a source"),
        Refusal({"name": "under_score", "source": {"name": "null"}}, "NotPossible", "not a DNS name"),
        Refusal({"name": "twice"}, "Ambiguous", r"502 \(pve1\), 503 \(pve1\); say which by vm_id"),
        Refusal({"vm_id": 502, "identity": {"machine": "m"}}, "IdentityError", "VM 502 .*take another VM id"),
        Refusal({"vm_id": 502, "disk_size": "512M"}, "NotPossible", "scsi0 has 1G; a disk cannot be made smaller"),
        Refusal({**ME, "source": {"name": "null"}, "disk_size": "1M"}, "NotPossible", "cannot be made smaller"),
        Refusal({"vm_id": 502, "disk_size": "big"}, "NotPossible", "'big' is no size"),
        Refusal({"vm_id": 502, "pool": "nope"}, "NotFound", "no pool 'nope'"),
        Refusal({"vm_id": 502, "tags": ["a b"]}, "NotPossible", "'a b' is not a tag"),
        # What Proxmox VE refuses only once the new VM is there.
        *[
            Refusal({"name": "bad", "source": {"name": "null"}, **wrong}, "NotPossible", says)
            for wrong, says in (
                ({"cores": 0}, "cores: at least 1"),
                ({"memory": 1}, "memory: at least 16"),
                ({"ip": "10.0.0.5"}, "ip: '10.0.0.5' lacks the prefix"),
                ({"ip": "here"}, "ip: 'here' is no IPv4"),
                ({"gateway": "10.0.0.1/24"}, "gateway: .* is no IPv4"),
                ({"net": {"mac": "01:00:00:00:00:01"}}, "net.mac"),
                ({"net": {"tag": 5000}}, "net.tag: 0 to 4094"),
                ({"options": {"cpu": ["host"]}}, "options: cpu is no text"),
            )
        ],
        Refusal({"name": "bad", "identity": {"machine": "a b"}}, "SettingsError", "machine has a space in it"),
        Refusal({"vm_id": 502, "state": "absent"}, "NotPossible", "protected; say protection: false first"),
        Refusal({"vm_id": 503, "state": "absent"}, "NotPossible", "VM 503 is running; stop it first, or say force"),
        Refusal({"vm_id": 100, "state": "started"}, "NotPossible", "is a template"),
        Refusal({"name": "x", "source": {"image": "null:1"}}, "SettingsError", "needs storage"),
        Refusal({}, None, "one of the following is required: vm_id, name, identity"),
    ],
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("state")) as found:
        yield found


def test_machine_passes_the_twelve_steps(lab):
    outcome = run(lab, STEPS)
    assert outcome.problems() == []
    # A refusal leaves no VM behind.
    assert {vm["vmid"] for vm in lab.aid("GET", "guests")} == {100, 502, 503}
    assert "planted-password" not in outcome.run.output
    created, changed = outcome.result("create")["diff"]["after"], outcome.result("change")["diff"]
    assert created["smbios1"] == {"manufacturer": "somebody", "serial": "one"}
    assert created["net0"]["tag"] == "20"
    assert changed["before"]["net0"].keys() >= {"tag", "mac"}
    assert changed["after"]["net0"] == {
        "model": "virtio",
        "mac": "BC:24:11:00:05:01",
        "bridge": "vmbr0",
        "firewall": "1",
        "rate": "12.5",
    }
    assert (changed["after"]["status"], changed["after"]["disk_size"]) == ("paused", "3G")
    # One write for the whole configuration; a larger disk and the pause are calls of their own.
    assert [call.rpartition("/")[2] for call in outcome.writes("change")] == ["config", "resize", "suspend"]
    assert outcome.result("change")["machine"]["restart_required"] == ["cores", "nameserver", "smbios1"]
    # Whoever asks again is told again, at no price.
    assert outcome.result("heal_again")["machine"]["restart_required"] == ["cores", "smbios1"]
    assert len(outcome.made("create_again")) == 3


def test_a_relative_ca_path_is_beside_the_playbook(lab):
    assert lab.tasks_run(Task("machine_info", {"ca_path": "lab/ca.pem"}).play("listed")).rc == 0
