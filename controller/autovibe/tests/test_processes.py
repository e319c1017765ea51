"""A run's processes are found by their mark and ended, whatever they do to escape."""

import os
import subprocess
import sys
import uuid

import pytest
from autovibe import processes

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
# A child in a session of its own whose parent ends at once: what Ansible's workers are after a kill.
ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"


@pytest.fixture
def run():
    run_uuid = uuid.uuid4()
    yield run_uuid
    assert processes.end_run(run_uuid, grace=0)


def start(run_uuid, code):
    environment = {**os.environ, processes.MARKER: str(run_uuid)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"up\n"
    return child


def test_finds_only_the_processes_of_the_run(run):
    child = start(run, SLEEP)
    other = uuid.uuid4()
    stranger = start(other, SLEEP)
    try:
        assert processes.of_run(run) == [child.pid]
        assert processes.end_run(run)
        assert stranger.poll() is None
    finally:
        assert processes.end_run(other)
        stranger.wait()
        child.wait()


def test_ends_a_process_that_has_left_its_parent_and_session(run):
    child = start(run, ORPHAN)
    child.wait()
    (orphan,) = processes.of_run(run)
    assert orphan != child.pid
    assert processes.end_run(run)
    assert processes.of_run(run) == []


def test_kills_what_does_not_listen(run):
    child = start(run, STUBBORN)
    assert processes.end_run(run, grace=0.1)
    assert child.wait() == -9


def test_a_zombie_is_gone(run):
    child = start(run, SLEEP)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.of_run(run) == []
    assert not processes.is_alive(child.pid)
    assert processes.end_run(run)
    child.wait()


def test_ending_a_run_without_processes_is_quick():
    assert processes.end_run(uuid.uuid4())


def test_a_pid_used_again_is_another_process():
    start_time = processes.start_time(os.getpid())
    assert processes.is_alive(os.getpid(), start_time)
    assert not processes.is_alive(os.getpid(), start_time - 5)
