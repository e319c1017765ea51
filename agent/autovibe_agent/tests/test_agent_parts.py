"""Progress, checkpoints, processes, clock and state, against a hub that a test plays."""

import json
import os
import pwd
import signal
import threading
import time
from pathlib import Path

import pytest
from autovibe_agent import progress as progress_module
from autovibe_agent.base import Message
from autovibe_agent.bootstrap import IdentityFile
from autovibe_agent.checkpoints import Checkpoints
from autovibe_agent.enrol import Identity, _nonce
from autovibe_agent.hub import HubRefused, HubUnreachable
from autovibe_agent.paths import Paths, User, write_private
from autovibe_agent.process import CliProcess, WorkState, end_leftover, start_time
from autovibe_agent.progress import Progress
from autovibe_agent.workspace import Manifest


class FarHub:
    """Answers from a list; then with the last one. An exception is raised."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []
        self.changed = threading.Condition()

    def call(self, method, path, body=None, **_):
        with self.changed:
            self.calls.append((method, path, body))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.changed.notify_all()
        if isinstance(answer, Exception):
            raise answer
        return answer

    persist = call

    def wait(self, condition, seconds=10):
        with self.changed:
            assert self.changed.wait_for(condition, seconds)


@pytest.fixture
def user(tmp_path):
    entry = pwd.getpwuid(os.geteuid())
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, tmp_path)


def texts(hub):
    return [message["text"] for _, _, body in hub.calls for message in body["messages"]]


def test_messages_are_sent_in_order_and_cut():
    hub = FarHub({})
    progress = Progress(hub, flush_seconds=0.01)
    progress.start()
    for number in range(250):
        progress.add(Message("text", f"line {number}"))
    progress.add(Message("text", "x" * 10_000))
    progress.close(5)
    assert texts(hub)[:250] == [f"line {number}" for number in range(250)]
    assert texts(hub)[250].endswith("… (6000 more characters)")
    assert max(len(body["messages"]) for _, _, body in hub.calls) <= progress_module.BATCH
    assert len(progress.latest) == 200


def test_a_batch_that_the_hub_did_not_hear_is_sent_again_once():
    hub = FarHub(HubUnreachable("away"), HubUnreachable("away"), {})
    progress = Progress(hub, flush_seconds=0.01)
    progress.start()
    progress.add(Message("text", "once"))
    hub.wait(lambda: len(hub.calls) >= 3)
    progress.close(5)
    assert texts(hub) == ["once"] * 3


def test_a_batch_that_the_hub_refuses_is_given_up():
    hub = FarHub(HubRefused(422, "invalid", "no"), {})
    progress = Progress(hub, flush_seconds=0.01)
    progress.start()
    progress.add(Message("text", "bad"))
    hub.wait(lambda: hub.calls)
    progress.add(Message("text", "good"))
    progress.close(5)
    assert texts(hub) == ["bad", "good"]


def test_a_flood_is_bounded_and_said(monkeypatch):
    monkeypatch.setattr(progress_module, "QUEUED", 10)
    hub = FarHub({})
    progress = Progress(hub, flush_seconds=60)
    for number in range(30):
        progress.add(Message("text", str(number)))
    progress.start()
    progress.close(5)
    assert texts(hub) == ["20 messages were dropped: the hub could not keep up", *map(str, range(20, 30))]


def test_closing_does_not_wait_for_a_hub_that_is_away():
    hub = FarHub(HubUnreachable("away"))
    others = set(threading.enumerate())
    progress = Progress(hub, flush_seconds=60)
    progress.start()
    progress.add(Message("text", "x"))
    began = time.monotonic()
    progress.close(0.3)
    assert time.monotonic() - began < 2
    # Nor does it go on asking when nobody waits for it any more.
    for thread in set(threading.enumerate()) - others:
        thread.join(5)
        assert not thread.is_alive()
    assert 1 <= len(hub.calls) <= 5


@pytest.fixture
def checkpoints(tmp_path):
    def make(hub, seconds=1000.0, calls=5, floor=0.0):
        return Checkpoints(hub, Manifest(tmp_path), seconds, calls, dict, floor_seconds=floor, poll_seconds=0.01)

    return make


def test_a_checkpoint_is_due_after_five_calls(checkpoints):
    hub = FarHub({"checkpoint": "c"}, {"status": "pending"}, {"checkpoint": "c", "status": "verified"})
    policy = checkpoints(hub)
    assert [policy.consider(calls) for calls in (0, 4, 5)] == [False, False, True]
    policy._under_way.join(5)
    assert [path for _, path, _ in hub.calls] == ["/agent/v1/checkpoints", *["/agent/v1/checkpoints/c"] * 2]
    assert hub.calls[0][2]["description"] == "after 5 model calls"
    assert [policy.consider(calls) for calls in (9, 10)] == [False, True]


def test_a_checkpoint_is_due_after_its_time(checkpoints):
    hub = FarHub({"checkpoint": "c"}, {"checkpoint": "c", "status": "verified"})
    policy = checkpoints(hub, seconds=0.05)
    assert not policy.consider(0)
    threading.Event().wait(0.06)
    assert policy.consider(0)


def test_never_two_at_once(checkpoints):
    hub = FarHub({"checkpoint": "c"}, {"status": "pending"})
    policy = checkpoints(hub)
    assert policy.consider(5)
    assert not policy.consider(50)
    hub.answers[:] = [{"checkpoint": "c", "status": "verified"}]
    policy._under_way.join(5)
    assert policy.consider(50)


def test_not_more_often_than_the_floor(checkpoints):
    policy = checkpoints(FarHub({}), floor=60)
    assert not policy.consider(500)


@pytest.mark.parametrize("answer", [HubUnreachable("away"), HubRefused(409, "stopping", "no")])
def test_a_checkpoint_that_cannot_be_had_is_let_go(checkpoints, answer):
    policy = checkpoints(FarHub(answer))
    assert policy.consider(5)
    policy._under_way.join(5)
    assert not policy._under_way.is_alive()


def run(user, tmp_path, script, stdin=b""):
    lines, errors = [], []
    process = CliProcess(["/bin/sh", "-c", script], {"PATH": os.environ["PATH"]}, tmp_path, user)
    process.start(stdin, lines.append, errors.append)
    return process, lines, errors


def test_a_process_is_fed_and_read(user, tmp_path):
    process, lines, errors = run(user, tmp_path, "cat; echo e >&2; printf last; exit 7", b"in\n" * 3)
    assert process.ended.wait(10)
    assert (process.exit_code, lines, errors) == (7, ["in\n", "in\n", "in\n", "last"], ["e\n"])


def test_input_that_nobody_reads_holds_nothing_up(user, tmp_path):
    process, _, _ = run(user, tmp_path, "exit 0", b"x" * (1 << 20))
    assert process.ended.wait(10)


def test_what_it_leaves_in_the_background_does_not_keep_it(user, tmp_path):
    process, lines, _ = run(user, tmp_path, "sleep 600 & echo done")
    assert process.ended.wait(10)
    assert lines == ["done\n"]


def test_stopping_ends_the_whole_group(user, tmp_path):
    process, lines, _ = run(user, tmp_path, "sleep 600 & echo $!; wait")
    while not lines:
        threading.Event().wait(0.01)
    process.stop()
    assert process.exit_code == -signal.SIGTERM


def test_no_environment_but_the_given_one(user, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_MINE", "x")
    process, lines, _ = run(user, tmp_path, "env")
    assert process.ended.wait(10)
    assert not [line for line in lines if "SECRET" in line]


def test_a_leftover_cli_is_killed_and_nobody_else(user, tmp_path):
    process, _, _ = run(user, tmp_path, "sleep 600")
    end_leftover({"pid": process.pid, "pid_start": "12345"})
    assert not process.ended.wait(0.1)
    end_leftover({"pid": process.pid, "pid_start": start_time(process.pid)})
    assert process.ended.wait(10)
    end_leftover({})


def test_state_belongs_to_one_identity(tmp_path):
    path = tmp_path / "state.json"
    WorkState(path, "m", 1).write("started", pid=5)
    assert WorkState(path, "m", 1).read()["pid"] == 5
    assert WorkState(path, "m", 2).read() is None
    assert WorkState(path, "n", 1).read() is None
    path.write_text("{")
    assert WorkState(path, "m", 1).read() is None


def test_the_nonce_stays_for_one_identity_and_is_private(tmp_path):
    paths = Paths(tmp_path)
    paths.run.mkdir(parents=True)
    first = _nonce(Identity("m", 1, "", ""), paths)
    assert _nonce(Identity("m", 1, "", ""), paths) == first
    assert _nonce(Identity("m", 2, "", ""), paths) != first
    assert paths.nonce.stat().st_mode & 0o777 == 0o600


def test_a_private_file_is_replaced_whole(tmp_path):
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["token"]


GOOD = {"machine": "m", "generation": 1, "hub_url": "https://h", "ca_sha256": "0", "token": "t"}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", json.dumps({**GOOD, "generation": "1"}), '"x"'])
def test_only_a_whole_identity_is_one(tmp_path, content):
    path: Path = tmp_path / "identity.json"
    file = IdentityFile(path)
    assert file.read() is None
    path.write_text(content)
    assert file.read() is None
    path.write_text(json.dumps(GOOD))
    assert file.read() == GOOD
    assert file.wait(other_than=GOOD, seconds=0) is None


def test_another_identity_takes_the_place_of_the_one_before(tmp_path):
    path = tmp_path / "identity.json"
    path.write_text(json.dumps(GOOD))
    file = IdentityFile(path)
    assert file.read() == GOOD
    path.write_text("{")
    assert file.read() == GOOD
    path.write_text(json.dumps({**GOOD, "generation": 2}))
    assert file.wait(other_than=GOOD, seconds=0) == {**GOOD, "generation": 2}
