"""Progress, checkpoints, processes, clock and state, against a hub that a test plays."""

import json
import os
import pwd
import signal
import threading
import time
from pathlib import Path

import pytest
from autovibe_agent import spool as spool_module
from autovibe_agent.base import Message
from autovibe_agent.bootstrap import IdentityFile
from autovibe_agent.checkpoints import Checkpoints
from autovibe_agent.enrol import Identity, _nonce
from autovibe_agent.hub import HubRefused, HubUnreachable
from autovibe_agent.manifest import Manifest
from autovibe_agent.paths import Paths, User, write_private
from autovibe_agent.process import CliProcess, end_leftovers
from autovibe_agent.progress import Progress
from autovibe_agent.spool import Spool
from autovibe_agent.state import ENDED, NEW, STARTED, WorkStore


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

    def wait(self, condition, seconds=60):
        with self.changed:
            assert self.changed.wait_for(condition, seconds)


@pytest.fixture
def user(tmp_path):
    entry = pwd.getpwuid(os.geteuid())
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, tmp_path)


def texts(hub):
    return [message["text"] for _, _, body in hub.calls for message in body["messages"]]


@pytest.fixture
def progress_to(tmp_path):
    def make(hub, flush_seconds=0.01):
        return Progress(hub, Spool(tmp_path / "spool", "m"), flush_seconds)

    return make


def test_messages_are_sent_in_order_and_cut(progress_to):
    hub = FarHub({})
    progress = progress_to(hub)
    progress.start()
    for number in range(250):
        progress.add(Message("text", f"line {number}"))
    progress.add(Message("text", "x" * 10_000))
    progress.close(60)
    assert texts(hub)[:250] == [f"line {number}" for number in range(250)]
    assert texts(hub)[250].endswith("… (6000 more characters)")
    assert max(len(body["messages"]) for _, _, body in hub.calls) <= spool_module.BATCH
    assert len(progress.latest) == 200


def test_a_batch_that_the_hub_did_not_hear_is_sent_again(progress_to):
    hub = FarHub(HubUnreachable("away"), HubUnreachable("away"), {})
    progress = progress_to(hub)
    progress.start()
    progress.add(Message("text", "once"))
    hub.wait(lambda: len(hub.calls) >= 3)
    progress.close(60)
    assert texts(hub) == ["once"] * 3


def test_a_batch_that_the_hub_refuses_is_given_up(progress_to):
    hub = FarHub(HubRefused(422, "invalid", "no"), {})
    progress = progress_to(hub)
    progress.start()
    progress.add(Message("text", "bad"))
    hub.wait(lambda: hub.calls)
    progress.add(Message("text", "good"))
    progress.close(60)
    assert texts(hub) == ["bad", "good"]


def test_closing_does_not_wait_longer_than_it_is_told(progress_to):
    hub = FarHub(HubUnreachable("away"))
    others = set(threading.enumerate())
    progress = progress_to(hub, flush_seconds=60)
    progress.start()
    progress.add(Message("text", "x"))
    began = time.monotonic()
    progress.close(0.3)
    assert time.monotonic() - began < 20
    # Nor does it go on asking when nobody waits for it any more.
    for thread in set(threading.enumerate()) - others:
        thread.join(60)
        assert not thread.is_alive()
    assert 1 <= len(hub.calls) <= 5


def test_what_an_agent_could_not_say_the_next_one_says_first(progress_to):
    away, back = FarHub(HubUnreachable("away")), FarHub({})
    first = progress_to(away)
    first.start()
    first.add(Message("text", "before"))
    away.wait(lambda: away.calls)
    first.close(0)
    second = progress_to(back)
    second.add(Message("text", "after"))
    second.start()
    second.close(None)
    assert texts(back) == ["before", "after"]
    # The hub can tell that these are the same that it did not answer to.
    assert [(body["spool"], body["messages"][0]["seq"]) for _, _, body in back.calls[:1]] == [
        (body["spool"], body["messages"][0]["seq"]) for _, _, body in away.calls[:1]
    ]


def test_messages_of_an_identity_that_is_over_wait_for_the_next(progress_to):
    over, back = FarHub(HubRefused(401, "bad_token", "no")), FarHub({})
    first = progress_to(over)
    first.start()
    first.add(Message("text", "kept"))
    first.close(None)
    second = progress_to(back)
    second.start()
    second.close(None)
    assert texts(back) == ["kept"]


def said(spool):
    found = []
    while (batch := spool.take()) is not None:
        found += [(batch.name, message["seq"], message["text"]) for message in batch.messages]
        spool.done(batch)
    return found


def test_a_spool_forgets_what_was_sent_and_nothing_else(tmp_path):
    spool = Spool(tmp_path, "m")
    for number in range(250):
        spool.add({"text": str(number)})
    first = spool.take()
    assert spool.take() == first
    spool.done(first)
    again = Spool(tmp_path, "m")
    again.add({"text": "new"})
    rest = said(again)
    assert [text for _, _, text in rest] == [*map(str, range(spool_module.BATCH, 250)), "new"]
    assert [seq for _, seq, _ in rest] == [*range(spool_module.BATCH, 250), 0]
    assert len({name for name, _, _ in rest}) == 2
    assert len([path for path in (tmp_path / "m").iterdir() if "." not in path.name]) == 1


def test_a_spool_is_bounded_and_says_what_it_gave_up(tmp_path):
    spool = Spool(tmp_path, "m", file_bytes=1000, limit_bytes=5000)
    for number in range(1000):
        spool.add({"at": "t", "kind": "text", "text": f"{number:04d}"})
        assert sum(path.stat().st_size for path in (tmp_path / "m").iterdir()) < 7000
    texts = [text for _, _, text in said(spool)]
    notes = [text for text in texts if "dropped" in text]
    kept = [text for text in texts if "dropped" not in text]
    assert kept == [f"{number:04d}" for number in range(1000 - len(kept), 1000)]
    assert sum(int(note.split()[0]) for note in notes) <= 1000 - len(kept)
    assert notes


def test_half_a_line_and_nonsense_do_no_harm(tmp_path):
    spool = Spool(tmp_path, "m")
    spool.add({"text": "whole"})
    (file,) = (tmp_path / "m").iterdir()
    with file.open("ab") as end:
        end.write(b'\0\0\n[1]\n{"text": "ha')
    assert [text for _, _, text in said(Spool(tmp_path, "m"))] == ["whole"]


def test_a_branch_does_not_say_what_its_parent_said(tmp_path):
    Spool(tmp_path, "parent").add({"text": "x"})
    assert said(Spool(tmp_path, "branch")) == []
    assert os.listdir(tmp_path) == ["branch"]


@pytest.fixture
def checkpoints(tmp_path):
    return lambda hub: Checkpoints(hub, Manifest(tmp_path), dict, poll_seconds=0.01)


def test_a_checkpoint_is_asked_for_when_the_hub_says_why(checkpoints):
    hub = FarHub({"checkpoint": "c"}, {"status": "pending"}, {"checkpoint": "c", "status": "verified"})
    policy = checkpoints(hub)
    assert [policy.consider(why) for why in (None, "", "after 5 model calls")] == [False, False, True]
    policy._under_way.join(60)
    assert [path for _, path, _ in hub.calls] == ["/agent/v1/checkpoints", *["/agent/v1/checkpoints/c"] * 2]
    assert hub.calls[0][2]["description"] == "after 5 model calls"
    assert hub.calls[0][2]["manifest"] == {"files": [], "truncated": False}


def test_never_two_at_once(checkpoints):
    hub = FarHub({"checkpoint": "c"}, {"status": "pending"})
    policy = checkpoints(hub)
    assert policy.consider("why")
    assert not policy.consider("why")
    hub.answers[:] = [{"checkpoint": "c", "status": "verified"}]
    policy._under_way.join(60)
    assert policy.consider("why")


@pytest.mark.parametrize("answer", [HubUnreachable("away"), HubRefused(409, "stopping", "no")])
def test_a_checkpoint_that_cannot_be_had_is_let_go(checkpoints, answer):
    policy = checkpoints(FarHub(answer))
    assert policy.consider("why")
    policy._under_way.join(60)
    assert not policy._under_way.is_alive()


def has_ended(pid):
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come"
        threading.Event().wait(0.01)


def run(user, tmp_path, script, stdin=b""):
    lines, errors = [], []
    process = CliProcess(["/bin/sh", "-c", script], {"PATH": os.environ["PATH"]}, tmp_path, user)
    process.start(stdin, lines.append, errors.append)
    return process, lines, errors


def test_a_process_is_fed_and_read(user, tmp_path):
    process, lines, errors = run(user, tmp_path, "cat; echo e >&2; printf last; exit 7", b"in\n" * 3)
    assert process.ended.wait(60)
    assert (process.exit_code, lines, errors) == (7, ["in\n", "in\n", "in\n", "last"], ["e\n"])


def test_input_that_nobody_reads_holds_nothing_up(user, tmp_path):
    process, _, _ = run(user, tmp_path, "exit 0", b"x" * (1 << 20))
    assert process.ended.wait(60)


def test_what_it_leaves_in_the_background_does_not_keep_it(user, tmp_path):
    process, lines, _ = run(user, tmp_path, "sleep 600 & echo done")
    assert process.ended.wait(60)
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
    assert process.ended.wait(60)
    assert not [line for line in lines if "SECRET" in line]


def test_all_that_a_dead_agent_left_is_killed_and_nothing_else(user, tmp_path):
    def left(mark):
        lines = []
        script = "setsid sleep 600 & echo $!; wait"
        process = CliProcess(["/bin/sh", "-c", script], {"PATH": os.environ["PATH"], "MARK": mark}, tmp_path, user)
        process.start(b"", lines.append, lines.append)
        return process, lines

    ours, other = (left(mark) for mark in ("a", "ab"))
    wait_for(lambda: ours[1] and other[1])
    end_leftovers("MARK=a")
    assert ours[0].ended.wait(60)
    wait_for(lambda: has_ended(int(ours[1][0])))
    assert not has_ended(int(other[1][0]))
    assert not other[0].ended.is_set()
    end_leftovers("MARK=ab")
    assert other[0].ended.wait(60)


def test_work_is_kept_for_one_machine(tmp_path):
    path = tmp_path / "lib/state.json"
    work = WorkStore(path, "m").read()
    assert (work.phase, work.generation) == (NEW, 0)
    work.phase, work.generation, work.session = STARTED, 1, {"session_id": "s"}
    WorkStore(path, "m").write(work)
    assert WorkStore(path, "m").read() == work
    # A branch of this disk is another machine.
    assert WorkStore(path, "n").read().phase == NEW
    work.phase, work.result = ENDED, {"outcome": "failed", "summary": "x"}
    WorkStore(path, "m").write(work)
    assert WorkStore(path, "m").read().result["outcome"] == "failed"
    assert os.listdir(path.parent) == ["state.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"machine": "m", "unknown": 1}', '{"generation": 1}'])
def test_a_state_that_cannot_be_read_is_new_work(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    assert WorkStore(tmp_path / "state.json", "m").read().phase == NEW


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
