"""What machines leave with the hub, and what a guest that lies can make of it."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from autovibe import archives, machine_files, workspaces
from autovibe.errors import Conflict, Invalid
from autovibe.models import Checkpoint, MachineEvent
from sqlalchemy import select


def tar(*members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def leave(hub):
    """Leaves an archive with the hub, as an agent does; returns the last answer."""

    def send(machine, content, part=1000, sha256=None, upload=None):
        token = hub.token(machine)
        sha256 = sha256 or hashlib.sha256(content).hexdigest()
        for offset in range(0, len(content), part):
            path = f"/agent/v1/files/{upload or sha256}/parts?offset={offset}"
            answer = hub.call("POST", path, content[offset : offset + part], token=token)
            assert answer.status == 200, answer.content
            assert answer.json["size"] >= min(offset + part, len(content))
        body = {"kind": "workspace", "name": "workspace.tar.gz", "sha256": sha256, "upload": upload}
        return hub.call("POST", "/agent/v1/files", body, token=token)

    return send


def test_a_file_comes_in_parts_and_is_kept(hub, machine, leave):
    content = tar(("./a.txt", b"hello"), ("./artifacts/report", b"fine"))
    assert leave(machine, content, part=50).status == 204
    assert leave(machine, content).status == 204
    with hub.session() as session:
        archive = machine_files.workspace(session, hub.settings, machine)
    assert archive.read_bytes() == content
    assert [file["path"] for file in workspaces.listed(archive)] == ["a.txt", "artifacts/report"]
    assert [file["path"] for file in workspaces.listed(archive, "artifacts")] == ["artifacts/report"]
    assert workspaces.content(archive, "a.txt") == b"hello"
    assert not (hub.settings.state_dir / "files" / "incoming" / str(machine.uuid)).exists()


def test_a_file_that_was_sent_while_it_was_made_is_kept_by_its_hash(hub, machine, leave):
    content, name = tar(("a.txt", b"hello")), "0" * 64
    assert leave(machine, content, upload=name).status == 204
    with hub.session() as session:
        archive = machine_files.workspace(session, hub.settings, machine)
    assert (archive.name, archive.read_bytes()) == (hashlib.sha256(content).hexdigest(), content)
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    assert leave(machine, b"another one", sha256="f" * 64, upload=name).status == 422


def test_a_file_that_is_not_what_its_hash_says_is_not_kept(hub, machine, leave):
    answer = leave(machine, b"something else", sha256="0" * 64)
    assert answer.status in (400, 422)
    with hub.session() as session, pytest.raises(machine_files.NoFiles):
        machine_files.workspace(session, hub.settings, machine)


def test_a_machine_that_knows_the_hash_of_anothers_file_does_not_get_it(hub, machine, leave):
    content = tar(("a.txt", b"secret"))
    leave(machine, content)
    other, sha256 = hub.machine(), hashlib.sha256(content).hexdigest()
    body = {"kind": "workspace", "name": "workspace.tar.gz", "sha256": sha256}
    assert hub.call("POST", "/agent/v1/files", body, token=hub.token(other)).status in (400, 422)
    path = f"/agent/v1/files/{sha256}/parts?offset=0"
    assert hub.call("POST", path, b"x", token=hub.token(other)).json == {"size": 1}
    with hub.session() as session, pytest.raises(machine_files.NoFiles):
        machine_files.workspace(session, hub.settings, other)


def test_a_machine_that_leaves_file_after_file_fills_no_disk(hub, machine, leave):
    for number in range(5):
        content = tar(("a.txt", str(number).encode()))
        assert leave(machine, content).status == 204
    kept = list((hub.settings.state_dir / "files" / str(machine.uuid)).iterdir())
    assert len(kept) == 2
    with hub.session() as session:
        assert machine_files.workspace(session, hub.settings, machine).read_bytes() == content


def test_parts_are_asked_for_in_order_and_said_again_without_harm(hub, machine):
    token, sha256 = hub.token(machine), hashlib.sha256(b"abcdef").hexdigest()

    def part(offset, content, name=sha256):
        return hub.call("POST", f"/agent/v1/files/{name}/parts?offset={offset}", content, token=token)

    assert part(0, b"abc").json == {"size": 3}
    assert part(0, b"abc").json == {"size": 3}
    assert part(5, b"f").status == 409
    assert part(3, b"def").json == {"size": 6}
    assert part(-1, b"x").status == 404
    assert part(0, b"x", "../../etc").status == 404
    assert part(2**62, b"x").status in (400, 409, 422)
    assert hub.call("POST", f"/agent/v1/files/{sha256}/parts?offset=0", b"x").status == 401


def test_a_guests_archive_writes_nothing_outside(hub, machine, leave, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        for name in ("out/x", "../y"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    leave(machine, packed.getvalue())
    with hub.session() as session:
        kept = machine_files.workspace(session, hub.settings, machine)
    with pytest.raises(Invalid, match="not to be trusted"):
        workspaces.extract(kept, tmp_path / "copy")
    assert not (tmp_path / "y").exists()
    assert not (tmp_path / "x").exists()


def test_what_is_no_archive_or_grows_without_end_is_refused(hub, machine, leave, monkeypatch):
    leave(machine, b"no archive")
    with hub.session() as session, pytest.raises(Invalid, match="cannot be read"):
        workspaces.listed(machine_files.workspace(session, hub.settings, machine))
    monkeypatch.setattr(workspaces, "UNPACKED_BYTES", 10)
    other = hub.machine()
    leave(other, tar(("zeros", b"0" * 100)))
    with hub.session() as session, pytest.raises(Invalid, match="more in it"):
        workspaces.listed(machine_files.workspace(session, hub.settings, other))


def test_a_patch_takes_the_parents_files_to_the_childs(hub, machine, leave, tmp_path):
    before = {"same": b"1\n", "changed": b"old\n", "gone": b"x\n", "binary": bytes(range(256))}
    after = {"same": b"1\n", "changed": b"new\n", "more/made": b"y\n", "binary": bytes(range(255, -1, -1))}
    leave(machine, tar(*before.items()))
    child = hub.machine()
    leave(child, tar(*after.items()))
    with hub.session() as session:
        first = machine_files.patch(session, hub.settings, machine)
        parent = Checkpoint(
            uuid=uuid4(),
            project_uuid=machine.project_uuid,
            creating_machine_uuid=machine.uuid,
            checkpoint_type="final",
        )
        session.add(parent)
        session.flush()
        child.parent_checkpoint_uuid = parent.uuid
        second = machine_files.patch(session, hub.settings, child)
        parent.checkpoint_type = "automatic"
        session.flush()
        with pytest.raises(Conflict, match="in the middle"):
            machine_files.patch(session, hub.settings, child)
        session.rollback()
    for name, patch in (("empty", first), ("parent", second)):
        folder = tmp_path / name
        folder.mkdir()
        for path, content in (before if name == "parent" else {}).items():
            (folder / path).write_bytes(content)
        subprocess.run(["git", "apply", "-"], input=patch, cwd=folder, check=True)
        found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        assert found == (after if name == "parent" else before)


def test_a_patch_is_no_larger_than_can_be_shown(hub, machine, leave, monkeypatch):
    leave(machine, tar(("a.txt", b"a line\n" * 100)))
    monkeypatch.setattr(workspaces, "SHOWN_BYTES", 2**9)
    with hub.session() as session, pytest.raises(Conflict, match="larger"):
        machine_files.patch(session, hub.settings, machine)


def test_patches_take_neither_the_hubs_disk_nor_all_its_threads(hub, machine, leave, monkeypatch):
    leave(machine, tar(("a.txt", b"\0" * 2000)))
    monkeypatch.setattr(machine_files, "PATCH_BYTES", 1999)
    monkeypatch.setattr(machine_files, "_patches", threading.BoundedSemaphore(1))
    with hub.session() as session:
        for _ in range(2):
            with pytest.raises(archives.TooMuchInIt):
                machine_files.patch(session, hub.settings, machine)
        with machine_files._patches, pytest.raises(machine_files.TooManyPatches):
            machine_files.patch(session, hub.settings, machine)
        monkeypatch.setattr(machine_files, "PATCH_BYTES", 2000)
        assert b"a.txt" in machine_files.patch(session, hub.settings, machine)


def test_a_machines_workspace_is_with_the_hub_at_its_end(hub, guest, until):
    script = (
        "mkdir artifacts; echo good > artifacts/report; cat given > copy; mkdir node_modules; echo x > node_modules/y"
    )
    files = [{"path": "given", "content_base64": "aGVsbG8="}]
    machine = hub.machine(command=["/bin/sh", "-c", script], files=files)
    guest.start().push(machine)
    until(lambda: hub.get(machine).result)
    with hub.session() as session:
        archive = machine_files.workspace(session, hub.settings, machine)
    names = {file["path"] for file in workspaces.listed(archive)}
    assert {"artifacts/report", "copy", "given"} <= names
    assert not list((guest.root / "var/lib/autovibe").glob("workspace*"))


@pytest.fixture
def packing_by(guest, monkeypatch):
    """Gives the guest another `gzip`, a shell script."""

    def use(script):
        folder = guest.root / "bin"
        folder.mkdir(mode=0o755)
        (folder / "gzip").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "gzip").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return use


def test_a_machine_that_takes_long_to_leave_its_files_is_not_silent(hub, guest, until, packing_by):
    gate = guest.root / "gate"
    os.mkfifo(gate)
    packing_by(f'read _ < {gate}; exec {shutil.which("gzip")} "$@"')
    machine = hub.machine(command=["/bin/sh", "-c", "echo good > report"])
    guest.start().push(machine)
    with until(lambda: opened(gate), 60) as waiting:
        for _ in range(2):
            seen = hub.get(machine).last_heartbeat_at
            until(lambda seen=seen: hub.get(machine).last_heartbeat_at > seen)
        assert not hub.get(machine).result
        waiting.write(b"\n")
    until(lambda: hub.get(machine).result)
    with hub.session() as session:
        assert workspaces.content(machine_files.workspace(session, hub.settings, machine), "report") == b"good\n"


def opened(fifo):
    """The pipe's other end, once somebody reads from it."""
    try:
        return open(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "wb")
    except OSError:
        return None


def test_a_workspace_that_cannot_come_is_said_to_be_missing(hub, guest, until, packing_by):
    packing_by("exit 1")
    machine = hub.machine(command=["/bin/sh", "-c", "echo good > report"])
    guest.start().push(machine)
    until(lambda: hub.get(machine).result)
    with hub.session() as session:
        said = [row.text for row in session.scalars(select(MachineEvent).filter_by(machine_uuid=machine.uuid))]
        with pytest.raises(machine_files.NoFiles):
            machine_files.workspace(session, hub.settings, machine)
    assert [text for text in said if text.startswith("the hub has none of the workspace's files")], said


def test_a_workspace_of_many_parts_comes_whole_though_the_hub_is_killed(hub, guest, until):
    """It is sent while it is packed; what cannot be packed smaller has more than one part."""
    machine = hub.machine(command=["/bin/sh", "-c", "for n in 1 2 3 4; do head -c 8000000 /dev/urandom > $n; done"])
    guest.start().push(machine)
    incoming = machine_files.incoming_folder_of(hub.settings, machine.uuid)
    until(lambda: any(path.stat().st_size for path in incoming.glob("*")) or hub.get(machine).result)
    hub.kill()
    until(lambda: hub.get(machine).result)
    with hub.session() as session:
        archive = machine_files.workspace(session, hub.settings, machine)
    for name in "1234":
        assert workspaces.content(archive, name) == (guest.workspace / name).read_bytes()
    assert not incoming.exists()
    assert not list((guest.root / "var/lib/autovibe").glob("workspace*"))


def test_the_command_line_lists_prints_and_copies_them(hub, machine, leave, tmp_path):
    content = tar(("a.txt", b"hello\n"), ("artifacts/report", b"fine"))
    leave(machine, content)

    def autovibe(*words):
        environment = {**os.environ, "AUTOVIBE_STATE_DIR": str(hub.settings.state_dir)}
        command = [Path(sys.executable).with_name("autovibe"), "machine", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = autovibe("files", machine.name)
    assert (code, [line.split()[-1] for line in out.splitlines()]) == (0, ["a.txt", "artifacts/report"])
    assert autovibe("files", machine.name, "a.txt")[1] == "hello\n"
    code, out, error = autovibe("files", machine.name, "b.txt")
    assert (code, out, "There is no b.txt in the workspace" in error) == (1, "", True)
    assert autovibe("artifacts", machine.name, "-o", str(tmp_path / "copy"))[0] == 0
    assert not (tmp_path / "copy/a.txt").exists()
    packed = tmp_path / "all.tar.gz"
    assert autovibe("files", machine.name, "--tar", str(packed))[0] == 0
    assert packed.read_bytes() == content
    for words in (("--tar", str(packed)), ("-o", str(packed / "below")), ("--tar", str(tmp_path / "none/x"))):
        code, _, error = autovibe("files", machine.name, *words)
        assert (code in (1, 2), len(error.splitlines())) == (True, 1), error
        assert "cannot be made" in error
    assert (tmp_path / "copy/artifacts/report").read_text() == "fine"
    assert "+hello" in autovibe("patch", machine.name)[1]
    code, out, error = autovibe("files", hub.machine().name)
    assert (code, out) == (1, "")
    assert "has no files" in error
    assert "Traceback" not in error
