"""Configuration files in Proxmox's form, what is pending, and what a change makes of its values."""

from __future__ import annotations

import re

from autovibe_lab.config import Config, format_size, parse_size
from hypothesis import given
from hypothesis import strategies as st

FILE = """\
#two%C3%B6
#lines
cores: 2
name: one
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
scsi0: local:100/vm-100-disk-0.qcow2,size=2G

[PENDING]
memory: 512

[av-1]
#kept
cores: 1
snaptime: 1795356683
"""


def test_a_file_is_read_and_written_as_it_was():
    config = Config.parse(FILE)
    assert config.current["description"] == "twoö\nlines"
    assert config.pending == {"memory": "512"}
    assert config.snapshots["av-1"] == {"description": "kept", "cores": "1", "snaptime": "1795356683"}
    assert config.text() == FILE


line = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=40)


@given(st.lists(line, min_size=1, max_size=5))
def test_any_description_comes_back(lines):
    text = "\n".join(lines).rstrip("\n")
    found = Config.parse(Config({"description": text, "name": "a"}).text())
    assert found.current.get("description", "") == text
    assert found.current["name"] == "a"


@given(st.integers(0, 1 << 50))
def test_sizes_are_exact(size):
    assert parse_size(format_size(size)) == size


def test_a_running_machine_takes_some_changes_later(client):
    machine = client.create()
    client.ok(machine.status.start.post())
    machine.config.put(cores=4, tags="B;a", description="new", delete="ostype")
    assert machine.config.get()["cores"] == 4
    assert machine.config.get(current=1)["cores"] == 1
    assert machine.config.get(current=1)["tags"] == "a;b"
    pending = {entry["key"]: entry for entry in machine.pending.get()}
    assert pending["cores"] == {"key": "cores", "value": 1, "pending": 4}
    assert "pending" not in pending["description"]
    client.ok(machine.status.stop.post())
    client.ok(machine.status.start.post())
    assert machine.config.get(current=1)["cores"] == 4
    assert all("pending" not in entry for entry in machine.pending.get())


def test_a_pending_change_can_be_reverted(client):
    machine = client.create()
    client.ok(machine.status.start.post())
    machine.config.put(cores=4)
    machine.config.put(revert="cores")
    assert machine.config.get()["cores"] == 1


def test_a_wrong_digest_changes_nothing(client):
    machine = client.create()
    error = client.refused(machine.config.put, name="x", digest="0" * 40)
    assert error.content == "checksum mismatch (file change by other user?)"
    machine.config.put(name="x", digest=machine.config.get()["digest"])
    assert machine.config.get()["name"] == "x"


def test_nothing_to_change_and_unknown_options(client):
    machine = client.create()
    assert client.refused(machine.config.put).content == "no options specified"
    assert client.refused(machine.config.put, delete="nosuch").errors == {"delete": "unknown option 'nosuch'"}


def test_a_change_by_post_is_a_task(client):
    machine = client.create()
    upid = machine.config.post(cores=2)
    client.ok(upid)
    assert client.node.tasks(upid).log.get()[0]["t"] == "update VM 100: -cores 2"


def test_a_detached_disk_is_kept_until_it_is_destroyed(client):
    machine = client.create(scsi1="null:2")
    machine.config.put(delete="scsi1")
    assert machine.config.get()["unused0"] == "null:100/vm-100-disk-1.qcow2"
    machine.config.put(delete="unused0")
    volumes = [entry["volid"] for entry in client.node.storage("null").content.get()]
    assert volumes == ["null:100/vm-100-cloudinit.qcow2", "null:100/vm-100-disk-0.qcow2"]


def test_the_state_folder_is_what_a_person_expects(client, lab):
    client.template()
    client.clone(100, 101, name="one", description="a: b\nc")
    text = (lab.state / "qemu-server" / "101.conf").read_text()
    assert text.startswith("#a%3A b\n#c\nagent: enabled=1\n")
    assert re.search(r"^net0: virtio=BC:24:11(:[0-9A-F]{2}){3},bridge=vmbr1$", text, re.M)
    assert (lab.state / "null/images/100/base-100-disk-0.qcow2").read_text() == str(1 << 30)  # its size


def test_snapshots_form_a_tree(client):
    machine = client.create()
    for name in ("a1", "b2", "c3"):
        client.ok(machine.snapshot.post(snapname=name, description=f"about {name}"))
    client.ok(machine.snapshot("b2").delete())
    found = {entry["name"]: entry for entry in machine.snapshot.get()}
    assert found["c3"]["parent"] == "a1"
    assert found["current"]["parent"] == "c3"
    assert found["a1"]["description"] == "about a1"
    assert "b2" not in found


def test_a_rollback_brings_back_everything_but_the_description(client):
    machine = client.create(name="then", description="first")
    client.ok(machine.snapshot.post(snapname="a1", description="here"))
    machine.config.put(name="now", cores=3, tags="x", description="second")
    client.ok(machine.snapshot("a1").rollback.post())
    config = machine.config.get()
    assert (config["name"], config["cores"], config["description"]) == ("then", 1, "second")
    assert "tags" not in config
    assert config["parent"] == "a1"


def test_a_snapshot_with_ram_runs_again_after_its_rollback(client):
    machine = client.create()
    client.ok(machine.status.start.post())
    client.ok(machine.snapshot.post(snapname="ram", vmstate=1))
    client.ok(machine.snapshot.post(snapname="cold"))
    client.ok(machine.status.stop.post())
    client.ok(machine.snapshot("ram").rollback.post())
    assert machine.status.current.get()["status"] == "running"
    client.ok(machine.snapshot("cold").rollback.post())
    assert machine.status.current.get()["status"] == "stopped"
