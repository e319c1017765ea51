"""The worker: runs what waits, records what Ansible says, and lets no secret into a run."""

import json
import os
import threading
import time
from uuid import UUID, uuid4

import pytest
from autovibe import db, hubs, machines, operations, processes, runner, worker
from autovibe.models import Machine, Operation, Project, Run, TaskResult
from autovibe.recorder import Recorder, censored, failure
from autovibe.tests import world
from sqlalchemy import text

INVENTORY = "all:\n  hosts:\n    localhost:\n      ansible_connection: local\n"
PLAY = """
- hosts: machines
  gather_facts: false
  connection: local
  strategy: ansible.builtin.host_pinned
  tasks:
    - name: Do it
      ansible.builtin.{task}
"""


def wait_for(condition, what, seconds=180):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


@pytest.fixture
def site(settings, tmp_path):
    """Settings whose project is a folder with one playbook, which `playbook(text)` writes."""
    settings.project_root, settings.state_dir = tmp_path / "project", tmp_path / "state"
    settings.inventory = settings.project_root / "inventory.yml"
    (settings.project_root / "playbooks").mkdir(parents=True)
    (settings.project_root / "ansible.cfg").write_text("[defaults]\nretry_files_enabled = False\n")
    settings.inventory.write_text(INVENTORY)
    return settings


def playbook(site, text, name="spawn"):
    (site.project_root / "playbooks" / f"{name}.yml").write_text(text)


@pytest.fixture
def machine(site):
    with db.session_scope(site) as session:
        world.template(session)
        return machines.spawn(session, site, project=world.project(session), prompt="x")


@pytest.fixture
def working(site):
    """A worker in a thread of this process."""
    one = worker.Worker(site)
    thread = threading.Thread(target=one.run)
    thread.start()
    yield one
    one.stop()
    thread.join(180)
    assert not thread.is_alive()


def ended(site, machine, kind="spawn"):
    with db.session_scope(site) as session:
        found = session.query(Operation).filter_by(machine_uuid=machine.uuid, kind=kind).one()
        return found if found.status in ("succeeded", "failed") else None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- hosts: [", "Ansible ended with 4"),
        (PLAY.format(task="fail: {msg: no disk space}"), "no disk space"),
        (PLAY.format(task="debug: {msg: fine}"), "ended without a result `machine`"),
    ],
)
def test_a_run_that_fails_ends_its_operations_with_a_reason(site, machine, working, text, says):
    playbook(site, text)
    done = wait_for(lambda: ended(site, machine), "the end")
    assert done.status == "failed"
    assert says in done.error
    assert "\n" not in done.error
    with db.session_scope(site) as session:
        assert session.get_one(Machine, machine.uuid).outcome == "failed"

    def run_has_ended():
        with db.session_scope(site) as session:
            return session.get_one(Run, done.run_uuid).status != "running"

    wait_for(run_has_ended, "the run's end")


def test_a_playbook_or_an_inventory_that_is_missing_is_said(site, machine, working):
    done = wait_for(lambda: ended(site, machine), "the end")
    assert "There is no playbook" in done.error


def test_a_run_sees_no_secret(site, tmp_path, monkeypatch):
    planted = f"planted-{uuid4().hex}"
    for name in (
        "ANTHROPIC_API_KEY",
        "AUTOVIBE_DATABASE_URL",
        "PROXMOX_PASSWORD",
        "ANSIBLE_VAULT_PASSWORD",
        "SOMETHING",
    ):
        monkeypatch.setenv(name, planted)
    playbook(site, PLAY.format(task="debug: {msg: fine}"))
    run = runner.Run(site, uuid4(), "spawn")
    run.prepare()
    secret = run.secret_path(uuid4())
    secret.write_text("one-time token")
    run.write_inventory([runner.Host(uuid4(), {"machine_name": "a"})])
    seen = []
    assert run.execute(seen.append).rc == 0
    run.clean()
    assert [event for event in seen if event["event"] == "runner_on_ok"]
    assert run.folder.stat().st_mode & 0o777 == 0o700
    assert not secret.exists()
    texts = {path: path.read_text(errors="replace") for path in run.folder.rglob("*") if path.is_file()}
    assert any(path.name == "command" for path in texts)
    assert [path for path, text in texts.items() if planted in text] == []
    assert processes.of_run(run.uuid) == []


def test_what_a_guest_says_is_no_template_of_ansibles(site, tmp_path):
    proof = tmp_path / "proof"
    words = [f"/workspace/{{{{ lookup('pipe', 'touch {proof}') }}}}", "{% raw %}", "plain"]
    playbook(site, PLAY.format(task='debug: {msg: "{{ machine_files + [machine_source.name] }}"}'))
    run = runner.Run(site, uuid4(), "spawn")
    run.prepare()
    run.write_inventory([runner.Host(uuid4(), {"machine_files": words, "machine_source": {"name": words[0]}})])
    seen = []
    assert run.execute(seen.append).rc == 0
    run.clean()
    (said,) = [event["event_data"]["res"]["msg"] for event in seen if event["event"] == "runner_on_ok"]
    assert said == [*words, words[0]]
    assert not proof.exists()


def test_only_what_a_run_needs_passes():
    given = {"PATH": "p", "LC_ALL": "C", "AUTOVIBE_RUN": "r", "AUTOVIBE_STATE_DIR": "s", "ANSIBLE_CONFIG": "c"}
    secret = {"ANSIBLE_BECOME_PASSWORD": "x", "MY_TOKEN": "x", "AUTOVIBE_DATABASE_URL": "x", "EDITOR": "vi"}
    assert runner.allowed(given | secret) == given


def test_results_are_kept_without_secrets():
    given = {
        "msg": "fine",
        "api_token_secret": "x",
        "invocation": {"module_args": {"password": "x"}},
        "_ansible_no_log": False,
        "nested": [{"password": "x", "path": "/a\0b", "token_file": "/t"}],
        "long": "y" * 10_000,
    }
    kept = censored(given)
    assert kept["api_token_secret"] == "(hidden)"
    assert kept["nested"] == [{"password": "(hidden)", "path": "/ab", "token_file": "/t"}]
    assert set(kept) == {"msg", "api_token_secret", "nested", "long"}
    assert len(kept["long"]) < 5000
    assert "x" not in json.dumps([kept["api_token_secret"], kept["nested"]]).replace("hidden", "")


def test_a_failure_keeps_the_task_logs_tail_and_its_class():
    result = {"msg": "Clone failed.", "error_class": "TaskFailed", "task_log": ["a", "b"]}
    said = failure("runner_on_failed", {"task": "Clone", "res": result})
    assert said == {
        "error": "Clone failed.",
        "error_class": "TaskFailed",
        "result": {"task": "Clone", "task_log": ["a", "b"]},
    }


def test_an_operation_ends_with_its_host_not_with_the_run(site, machine):
    """The fast machine of a run is recorded while the slow one still works."""
    with db.session_scope(site) as session:
        slow = machines.spawn(session, site, project=session.query(Project).one(), prompt="y")
        fast_operation, slow_operation = world.claim(session)
    run_uuid = fast_operation.run_uuid
    recorder = Recorder(site, lambda _: None)
    recorder.begin(run_uuid, {str(one.uuid): ("machine", "machine") for one in (fast_operation, slow_operation)})
    recorder.start()
    result = {"changed": True, "machine": {"vm_id": machine.vm_id, "node": "pve1"}}
    data = {"host": str(fast_operation.uuid), "task": "Clone", "resolved_action": "autovibe.proxmox.machine"}
    recorder.event(run_uuid, {"event": "runner_on_ok", "event_data": {**data, "res": result}})
    assert wait_for(lambda: ended(site, machine), "the fast one").status == "succeeded"
    assert ended(site, slow) is None
    recorder.ended(run_uuid, runner.Outcome("canceled", 254))
    wait_for(lambda: run_uuid not in recorder.runs, "the run's end")
    recorder.close()
    with db.session_scope(site) as session:
        again = session.get_one(Operation, slow_operation.uuid)
        assert (again.status, again.attempts) == ("queued", 1)
        assert session.query(TaskResult).filter_by(run_uuid=run_uuid).count() == 1


def test_the_end_of_a_run_is_recorded_whatever_came_of_the_one_before(site, machine):
    """Who is told of an end may fail: the recorder goes on."""
    with db.session_scope(site) as session:
        (operation,) = world.claim(session)
    told = []

    def on_end(run_uuid):
        told.append(run_uuid)
        raise OSError("no such folder")

    recorder = Recorder(site, on_end)
    recorder.start()
    before = uuid4()
    recorder.ended(before, runner.Outcome("successful", 0))
    wait_for(lambda: told == [before], "the end of the run before")
    recorder.begin(operation.run_uuid, {str(operation.uuid): ("machine", "machine")})
    recorder.ended(operation.run_uuid, runner.Outcome("failed", 2))
    assert wait_for(lambda: ended(site, machine), "the end").status == "failed"
    recorder.close()
    assert told == [before, operation.run_uuid]


def test_old_run_folders_are_removed_beside_those_that_are_being_removed(site):
    """The scheduler takes the folder of its reading away at any moment: here it is gone as soon as it is looked at."""
    folders = [runner.folder_of(site, uuid4()) for _ in range(4)]
    for age, folder in enumerate(folders):
        folder.mkdir(parents=True)
        os.utime(folder, (1000 - age, 1000 - age))
    (site.runs_dir / str(uuid4())).symlink_to(site.runs_dir / "gone")
    assert runner.prune(site, 1, [UUID(folders[-1].name)]) == 2
    assert [folder.exists() for folder in folders] == [True, False, False, True]


def test_an_event_that_cannot_be_recorded_spoils_no_other(site, machine):
    """Events that came together are recorded together, but for the one that Postgres refuses."""
    with db.session_scope(site) as session:
        (operation,) = world.claim(session)
    recorder = Recorder(site, lambda _: None)
    recorder.begin(operation.run_uuid, {str(operation.uuid): ("machine", "machine")})
    data = {"host": str(operation.uuid), "resolved_action": "autovibe.proxmox.machine"}
    refused = {**data, "task": "Refused", "duration": "no number"}
    made = {**data, "task": "Made", "res": {"machine": {"vm_id": machine.vm_id, "node": "pve1"}}}
    for one in ({**data, "task": "First"}, refused, made):
        recorder.event(operation.run_uuid, {"event": "runner_on_ok", "event_data": one})
    recorder.start()
    recorder.close()
    assert ended(site, machine).status == "succeeded"
    with db.session_scope(site) as session:
        assert {row.task for row in session.query(TaskResult)} == {"First", "Made"}


def told(site, operation, *results):
    """A recorder that has heard these results of the operation, and the end of its run."""
    recorder = Recorder(site, lambda _: None)
    recorder.begin(operation.run_uuid, {str(operation.uuid): ("machine", "machine")})
    data = {"host": str(operation.uuid), "resolved_action": "autovibe.proxmox.machine"}
    for result in results:
        recorder.event(operation.run_uuid, {"event": "runner_on_ok", "event_data": {**data, "res": result}})
    recorder.ended(operation.run_uuid, runner.Outcome("successful", 0))
    recorder.start()
    recorder.close()
    with db.session_scope(site) as session:
        assert session.get_one(Run, operation.run_uuid).status == "succeeded"
        return session.get_one(Operation, operation.uuid)


def test_what_cannot_be_recorded_ends_its_operation_with_the_reason(site, machine):
    """An adopted VM that a machine has got meanwhile."""
    site.hub_smbios_uuid = uuid4()
    with db.session_scope(site) as session:
        hubs.adopt(session, site, 120)
        (adoption,) = world.claim(session, kinds=("adopt",))
        made = world.made(adoption)
        session.get_one(Machine, machine.uuid).vm_id = 120
    done = told(site, adoption, {"machines": made["machines"]}, {"machine": made["machine"]})
    assert (done.status, done.error_class) == ("failed", "RecordError")
    assert done.error.startswith("What it has done could not be recorded: duplicate key value")
    assert "\n" not in done.error
    with db.session_scope(site) as session:
        assert hubs.find(session) is None
        assert session.query(TaskResult).filter_by(operation_uuid=adoption.uuid).count() == 2


def test_an_operation_ends_even_if_nothing_that_follows_can_be_recorded(site, machine):
    """Both a start and a failed start say so as an event of the machine, which the database does not take."""
    with db.session_scope(site) as session:
        (operation,) = world.claim(session)
        session.execute(text("ALTER TABLE machine_events ADD CONSTRAINT none CHECK (false) NOT VALID"))
    try:
        done = told(site, operation, {"machine": {"vm_id": machine.vm_id, "node": "pve1"}})
    finally:
        with db.session_scope(site) as session:
            session.execute(text("ALTER TABLE machine_events DROP CONSTRAINT none"))
    assert (done.status, done.error_class) == ("failed", "RecordError")


def test_a_dead_workers_operations_are_taken_over(site, machine):
    dead = f"{processes.host_id()}/{os.getpid()}/1.0"  # this pid, but another process
    with db.session_scope(site) as session:
        run = operations.claim(
            session, dead, processes.host_id().split("/")[0], kinds=operations.KINDS, limit=1, lease=world.LEASE
        )
    one = worker.Worker(site)
    one._recover()
    with db.session_scope(site) as session:
        (operation,) = operations.pending(session, machine.uuid)
        assert (operation.status, operation.attempts) == ("queued", 1)
        assert session.get_one(Run, run.uuid).status == "lost"


def test_a_living_workers_operations_and_another_hosts_are_left_alone(site, machine):
    for owner in (worker.worker_id(), "elsewhere/boot/1/1.0", "nonsense"):
        assert not worker.is_dead(owner)
    with db.session_scope(site) as session:
        operations.claim(
            session, worker.worker_id(), processes.host_id().split("/")[0],
            kinds=operations.KINDS, limit=1, lease=world.LEASE,
        )  # fmt: skip
    worker.Worker(site)._recover()
    with db.session_scope(site) as session:
        assert operations.pending(session, machine.uuid)[0].status == "running"
