"""`autovibe checkpoint` on a database of its own."""

import hashlib
import io
import json
import tarfile
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from autovibe import checkpoints, db, machine_files, machines, projects
from autovibe.cli import cli
from autovibe.cli.common import run
from autovibe.models import Checkpoint, Usage
from autovibe.tests import world


@pytest.fixture
def command(settings, monkeypatch, capfd):
    """Runs `autovibe checkpoint …`: (exit code, output, error)."""
    monkeypatch.setenv("AUTOVIBE_STATE_DIR", str(settings.state_dir))
    monkeypatch.setenv("AUTOVIBE_DATABASE_URL", settings.database_url.get_secret_value())

    def call(*arguments):
        capfd.readouterr()
        code = run(cli, ["checkpoint", *arguments])
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def project(settings):
    with db.session_scope(settings) as session:
        return projects.create(session, "demo", budget_cad=5)


def test_a_policy_is_shown_and_changed(command, project):
    assert "after 5 model calls" in command("policy", "demo")[1]
    shown = json.loads(command("policy", "demo", "--calls", "0", "--weekly", "3", "--parents", "--json")[1])
    assert (shown["made"]["calls"], shown["made"]["seconds"]) == (0, 300)
    assert shown["kept"] == {"days": 7, "daily": 30, "weekly": 3, "parents": True}
    assert "model calls," not in command("policy", "demo")[1]


def test_a_policy_that_makes_no_sense_is_one_line(command, project):
    code, _, error = command("policy", "demo", "--budget-percent", "101")
    assert (code, len(error.splitlines()), "not in the range 0<=x<=100" in error) == (2, 1, True)
    assert command("policy", "nobody")[0] == 1


def file(path, digest="a", size=1, mode="0644"):
    return {"path": path, "size": size, "sha256": digest * 64, "mode": mode}


@pytest.fixture
def line(settings, project):
    """Uuids of a genesis, of three checkpoints of one machine, and of one of a branch of the second."""
    with db.session_scope(settings) as session:
        world.template(session)
        owner = projects.get(session, "demo")
        first = working(session, settings, owner)
        manifests = ([file("a"), file("gone")], [file("a", "b", 5), file("new"), file("é", mode="0755")], [file("a")])
        made = [session.get_one(Checkpoint, first.parent_checkpoint_uuid)]
        for number, files in enumerate(manifests):
            made.append(checkpointed(session, settings, first, files))
            made[-1].created_at = datetime.now(UTC) - timedelta(days=300, hours=3 - number)
            spend(session, first, Decimal(number + 1) / 4, made[-1].created_at - timedelta(minutes=1))
        made[0].created_at = made[1].created_at - timedelta(days=1)
        branch = working(session, settings, owner, checkpoint=made[2])
        spend(session, branch, Decimal("0.125"), datetime.now(UTC) - timedelta(minutes=1))
        made.append(checkpointed(session, settings, branch, [file("a")]))
        return [str(row.uuid) for row in made]


def working(session, settings, project, **asked):
    machine = machines.spawn(session, settings, project=project, prompt="work", **asked)
    while world.do(session, settings):
        pass
    machine.status, machine.enrolled_at = "working", machine.spawned_at
    return machine


def checkpointed(session, settings, machine, files):
    made, _ = machines.checkpoint(session, settings, machine, manifest={"files": files, "truncated": False})
    world.do(session, settings, kind="checkpoint")
    return made


def spend(session, machine, cad, at):
    session.add(
        Usage(
            project_uuid=machine.project_uuid, machine_uuid=machine.uuid, resource_type="money", amount=cad, unit="CAD",
            cost_cad=cad, recorded_at=at, billing_period_start=at, billing_period_end=at + timedelta(days=1),
        )
    )  # fmt: skip
    session.flush()


def test_the_tree_says_what_each_cost(command, line):
    (root,) = json.loads(command("tree", "demo", "--json")[1])
    assert root["uuid"] == line[0]
    (one,) = root["children"]
    (two,) = one["children"]
    costs = [[Decimal(node[name]) * 8 for name in ("own_cad", "cad_to_reach")] for node in (one, two, *two["children"])]
    assert costs == [[2, 2], [4, 6], [6, 12], [1, 7]]
    assert Decimal(json.loads(command("show", line[4], "--json")[1])["cad_to_reach"]) == Decimal("0.875")
    assert "CAD 0.125, 0.875 to reach" in command("tree")[1]


def test_the_tree_is_drawn(command, line, settings):
    with db.session_scope(settings) as session:
        checkpoints.find(session, line[2]).description = 'a <b> & "c"'
    drawn = ElementTree.fromstring(command("tree", "demo", "--svg")[1])
    boxes = [(box.get("x"), box.get("y")) for box in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert len(boxes) == len(set(boxes)) == 5
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}path"))) == 4
    dot = command("tree", "demo", "--dot")[1]
    assert dot.count(" -> ") == 4
    assert f'"{line[2]}" -> "{line[4]}"' in dot


@pytest.mark.parametrize("form", [[], ["--json"], ["--svg"], ["--dot"]])
def test_a_long_line_is_shown(command, line, settings, form):
    with db.session_scope(settings) as session:
        parent = checkpoints.find(session, line[3])
        rows = [
            Checkpoint(uuid=uuid4(), project_uuid=parent.project_uuid, checkpoint_type="manual") for _ in range(1200)
        ]
        for row in rows:
            row.parent_checkpoint_uuid, parent = parent.uuid, row
        session.add_all(rows)
    code, said, error = command("tree", "demo", *form)
    assert (code, error) == (0, "")
    assert str(rows[-1].uuid)[:8] in said


def test_a_diff_is_told_by_file_and_in_short(command, line):
    code, said, _ = command("diff", line[1], line[2])
    assert code == 0
    assert [text.split() for text in said.splitlines()] == [
        ["M", "+4", "a"], ["D", "-1", "gone"], ["A", "+1", "new"], ["A", "+1", "é"],
        ["2", "added,", "1", "removed,", "1", "changed;", "+5", "bytes"],
    ]  # fmt: skip
    assert command("diff", line[1], line[1])[1] == "No difference.\n"
    assert command("diff", line[2], line[4], "--stat")[1] == "2 removed, 1 changed; -6 bytes\n"
    assert json.loads(command("diff", line[0], line[1], "--stat", "--json")[1])["stat"]["added"] == 2
    assert command("diff", line[0], "ffffffff")[0] == 1


def leave_workspace(settings, machine_uuid, **files):
    """As an agent leaves its workspace with the hub at its end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed = buffer.getvalue()
    digest = hashlib.sha256(packed).hexdigest()
    with db.session_scope(settings) as session:
        machine = machines.find(session, machine_uuid)
        machine_files.receive(settings, machine, digest, 0, packed)
        machine_files.keep(session, settings, machine, kind="workspace", name=machine_files.WORKSPACE, sha256=digest)


def test_the_lines_of_text_files_are_compared_where_their_content_is_known(command, line, settings):
    was, now = b"one\ntwo\n", b"one\nthree\n"

    def listed(path, content):
        return {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "mode": "0644"}

    with db.session_scope(settings) as session:
        before, after = (checkpoints.find(session, uuid) for uuid in (line[2], line[4]))
        files = [listed("a", was), listed("lost", b"?"), listed("picture", b"\x89PNG")]
        before.file_manifest = {"files": files, "truncated": False}
        files = [listed("a", now), listed("lost", b"!"), listed("new", b"hello\n"), listed("empty", b"")]
        after.file_manifest = {"files": files, "truncated": False}
        machines_ = [before.creating_machine_uuid, after.creating_machine_uuid]
    leave_workspace(settings, machines_[0], a=was, lost=b"later", picture=b"\x89PNG")
    leave_workspace(settings, machines_[1], a=now, new=b"hello\n")
    code, said, error = command("diff", line[2], line[4], "--content")
    assert (code, error) == (0, "")
    assert said.split("\n\n", 1)[1].splitlines() == [
        "--- a/a", "+++ b/a", "@@ -1,2 +1,2 @@", " one", "-two", "+three",
        "empty: no line is different",
        "lost: its content is only on the checkpoint's disk, or there is too much of it",
        "--- /dev/null", "+++ b/new", "@@ -0,0 +1 @@", "+hello",
        "picture: not a text",
    ]  # fmt: skip


def test_a_diff_without_a_manifest_says_so(command, line, settings):
    with db.session_scope(settings) as session:
        checkpoints.find(session, line[1]).file_manifest = None
    code, _, error = command("diff", line[0], line[1])
    assert (code, "has no manifest" in error) == (1, True)


def test_tags_and_milestones(command, line):
    assert command("tag", line[1], "good", "v1.0")[1].endswith(": good v1.0.\n")
    assert command("tag", line[1], "--remove", "good")[1].endswith(": v1.0.\n")
    code, _, error = command("tag", line[1], "no good")
    assert (code, "is not a tag" in error) == (2, True)
    assert "kept for ever" in command("milestone", line[1])[1]
    assert "★" in command("tree", "demo")[1]
    assert command("delete", line[1], "--no-wait")[0] == 1
    assert "as long as others" in command("milestone", line[1], "--off")[1]


def test_pruning_is_shown_before_it_is_done(command, line, settings):
    shown = json.loads(command("prune", "demo", "--json")[1])
    assert [row["uuid"] for row in shown["remove"]] == [line[1]]
    assert {row["uuid"]: row["reason"] for row in shown["keep"]}[line[2]] == "branched from"
    assert "would be removed" in command("prune", "demo")[1]
    with db.session_scope(settings) as session:
        assert checkpoints.find(session, line[1]).verification_status == "verified"
    assert "are being removed" in command("prune", "demo", "--yes")[1]
    with db.session_scope(settings) as session:
        world.do(session, settings, kind="prune")
    assert command("prune", "demo")[1] == "Nothing to remove; 4 checkpoints are kept.\n"
    (root,) = json.loads(command("tree", "demo", "--json")[1])
    assert root["children"][0]["uuid"] == line[2]
    (root,) = json.loads(command("tree", "demo", "--all", "--json")[1])
    assert root["children"][0]["uuid"] == line[1]


def test_what_something_stands_on_is_not_deleted(command, line):
    for uuid, why in ((line[0], "genesis"), (line[2], "branched from"), (line[3], "living machine")):
        code, _, error = command("delete", uuid)
        assert (code, why in error) == (1, True), error


@pytest.mark.parametrize("which", ["all", "project", "one"])
def test_a_verification_can_be_asked_for(command, line, settings, which):
    arguments = {"all": [], "project": ["--project", "demo"], "one": [line[1]]}[which]
    assert "going to be asked" in command("verify", "--no-wait", *arguments)[1]
    with db.session_scope(settings) as session:
        (operation,) = world.claim(session)
        assert operation.kind == "verify"
        assert (operation.project_uuid is not None) == (which == "project")
    assert command("verify", line[1], "--project", "demo")[0] == 2


def test_only_a_projects_own_checkpoints_are_looked_for(command, line, settings):
    with db.session_scope(settings) as session:
        other = projects.create(session, "other", budget_cad=5)
        kept = checkpointed(session, settings, working(session, settings, other), [file("a")]).uuid
    assert command("verify", "--project", "demo", "--no-wait")[0] == 0
    with db.session_scope(settings) as session:
        template = {"vm_id": 9000, "name": "x", "template": True}
        (operation,) = world.do(session, settings, kind="verify", vms=[template])
    assert set(operation.result["missing"]) == set(line[1:])
    with db.session_scope(settings) as session:
        assert checkpoints.find(session, kept).verification_status == "verified"
        assert checkpoints.find(session, line[1]).verification_status == "missing"
