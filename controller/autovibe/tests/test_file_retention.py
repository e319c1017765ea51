"""What machines leave behind goes when the last of their checkpoints has gone, and not before."""

import hashlib
import io
import tarfile

import pytest
from autovibe import db, file_retention, machine_files, pruning
from autovibe.models import Checkpoint, MachineFile
from autovibe.tests import world
from autovibe.tests.test_pruning import end, of, worked
from sqlalchemy import select


@pytest.fixture
def session(settings):
    with db.session_scope(settings) as open_session:
        world.template(session=open_session)
        yield open_session


def leave_files(session, settings, machine, text="work"):
    """What the agent does at its end."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("work.txt")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    content = packed.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    machine_files.receive(settings, machine, sha256, 0, content)
    machine_files.keep(session, settings, machine, kind="workspace", name=machine_files.WORKSPACE, sha256=sha256)
    return machine_files.workspace(session, settings, machine)


def prune(session, settings, rows):
    """Remove them whatever their age."""
    pruning.remove(session, rows)
    while world.do(session, settings):
        pass


@pytest.fixture
def left(session, settings):
    """An ended machine with two checkpoints and its final one: (machine, its archive)."""
    machine = worked(session, settings, world.project(session), 2)
    archive = leave_files(session, settings, machine)
    end(session, settings, machine)
    return machine, archive


def test_they_stay_as_long_as_one_of_its_checkpoints_and_go_with_the_last(session, settings, left):
    machine, archive = left
    rows = of(session, machine)
    prune(session, settings, rows[1:])
    assert file_retention.collect(session, settings) == 0
    assert archive.exists()
    assert file_retention.kept(session) == file_retention.Kept(1, archive.stat().st_size)
    prune(session, settings, rows[:1])
    assert file_retention.collect(session, settings) == 1
    assert not archive.parent.exists()
    assert file_retention.kept(session) == file_retention.Kept(0, 0)
    with pytest.raises(machine_files.NoFiles):
        machine_files.workspace(session, settings, machine)
    assert file_retention.collect(session, settings) == 0


def test_another_machines_are_not_touched(session, settings, left):
    machine, _ = left
    other = worked(session, settings, world.project(session, "other"), 1)
    archive = leave_files(session, settings, other)
    end(session, settings, other)
    prune(session, settings, of(session, machine))
    assert file_retention.collect(session, settings) == 1
    assert archive.exists()


def test_what_has_left_no_checkpoint_at_all_keeps_its_files(session, settings, left):
    machine, archive = left
    for row in session.scalars(select(Checkpoint).where(Checkpoint.creating_machine_uuid == machine.uuid)):
        row.verification_status = "failed"
    session.flush()
    assert file_retention.collect(session, settings) == 0
    assert archive.exists()


def test_a_machine_that_lives_keeps_what_it_has_sent_and_what_it_sends(session, settings):
    machine = worked(session, settings, world.project(session), 1)
    archive = leave_files(session, settings, machine)
    machine_files.receive(settings, machine, "0" * 64, 0, b"a part")
    prune(session, settings, of(session, machine))
    assert file_retention.collect(session, settings) == 0
    assert archive.exists()
    assert machine.uuid in machine_files.incoming(settings)


def test_what_an_ended_machine_did_not_send_whole_goes(session, settings, left):
    machine, archive = left
    machine_files.receive(settings, machine, "0" * 64, 0, b"a part")
    assert machine.uuid in machine_files.incoming(settings)
    file_retention.collect(session, settings)
    assert machine.uuid not in machine_files.incoming(settings)
    assert archive.exists()


def test_a_round_that_was_killed_in_the_middle_is_finished_by_the_next(session, settings, left):
    machine, archive = left
    prune(session, settings, of(session, machine))
    archive.unlink()  # the files went, the transaction did not
    assert file_retention.collect(session, settings) == 1
    assert session.get(MachineFile, (machine.uuid, "workspace", machine_files.WORKSPACE)) is None
