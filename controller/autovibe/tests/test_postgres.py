"""The embedded server: one, private, found again after a kill, gone after a stop."""

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg2
import pytest
from autovibe import postgres
from autovibe.settings import Settings


@pytest.fixture(params=[0o711, 0o700], ids=["open-parent", "closed-parent"])
def state(request):
    """Settings with a state folder that the server's user can get to, and with one that it cannot."""
    parent = Path(tempfile.mkdtemp(prefix="autovibe-test-"))
    parent.chmod(request.param)
    settings = Settings(state_dir=parent / "state")
    yield settings
    postgres.remove(settings)
    assert parent.stat().st_mode & 0o777 == request.param, "a parent folder was opened"
    shutil.rmtree(parent)


def connect(url):
    psycopg2.connect(url).close()


def test_it_starts_again_and_stops_without_a_trace(state):
    url = postgres.ensure_running(state)
    assert postgres.ensure_running(state) == url
    connect(url)
    server = postgres.server(state)
    assert postgres.stop(state)
    assert not postgres.stop(state)
    assert not server.socket.exists()
    assert server.postmaster() is None
    with pytest.raises(psycopg2.OperationalError):
        connect(url)
    assert postgres.ensure_running(state) == url, "the data and the password stay"


def test_an_empty_one_does_not_take_the_place_of_data_that_are_gone(state):
    server = postgres.server(state)
    with pytest.raises(postgres.PostgresFailed, match="are gone"):
        server.start(make=False)
    assert not server.data.exists()
    assert server.postmaster() is None


def test_it_is_private(state):
    url = postgres.ensure_running(state)
    server = postgres.server(state)
    for path, mode in ((server.socket, 0o700), (server.data, 0o700), (server.base / "password", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    process = server.postmaster()
    assert process.uids().real != 0
    assert all(connection.family == socket.AF_UNIX for connection in process.net_connections("all"))
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        connect(url.replace("@/", "x@/"))


def test_it_inherits_no_secret(state, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-planted")
    url = postgres.ensure_running(state)
    password = url.split(":")[2].split("@")[0]
    server = postgres.server(state).postmaster()
    said = [what_it_knows(server)]
    for process in server.children():
        # One that served a connection ends with it: it is gone, or has no memory that could be read.
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            said.append(what_it_knows(process))
    assert len(said) > 3
    assert not [text for text in said if "sk-planted" in text or password in text]


def what_it_knows(process):
    return str(process.environ()) + str(process.cmdline())


def test_many_at_once_start_one(state):
    with ThreadPoolExecutor(6) as pool:
        urls = set(pool.map(lambda _: postgres.ensure_running(state), range(6)))
    assert len(urls) == 1
    connect(urls.pop())


def test_after_a_kill_it_comes_back_with_its_data(state):
    connection = psycopg2.connect(postgres.ensure_running(state))
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept AS SELECT 1 AS one")
    postgres.server(state).postmaster().kill()
    connection = psycopg2.connect(postgres.ensure_running(state))
    with connection.cursor() as cursor:
        cursor.execute("SELECT one FROM kept")
        assert cursor.fetchone() == (1,)
    connection.close()


def test_a_pid_file_that_names_another_process_does_not_stop_it(state):
    postgres.ensure_running(state)
    server = postgres.server(state)
    postgres.stop(state)
    account = {"user": server.account.pw_uid} if server.account else {}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd="/", **account) as other:
        pidfile = server.data / "postmaster.pid"
        pidfile.write_text(f"{other.pid}\n{server.data}\n")
        assert server.postmaster() is None
        connect(postgres.ensure_running(state))
        assert psutil.pid_exists(other.pid)
        other.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives the server to another user")
def test_a_state_folder_that_was_deleted_begins_anew(state):
    first = postgres.ensure_running(state)
    postgres.stop(state)
    moved = postgres.server(state).base != state.pg_dir
    shutil.rmtree(state.state_dir)
    assert postgres.ensure_running(state) != first
    if moved:
        for old in postgres.server(state).base.parent.glob(f"{postgres.server(state).base.name}.old-*"):
            shutil.rmtree(old)


def test_a_long_path_still_has_a_socket():
    parent = Path(tempfile.mkdtemp(prefix="autovibe-test-"))
    parent.chmod(0o711)
    folder = parent
    while len(str(folder)) < 120:
        folder = folder / "deep-and-deeper"
        folder.mkdir(mode=0o711)
    settings = Settings(state_dir=folder)
    try:
        connect(postgres.ensure_running(settings))
        outside = postgres.server(settings).socket
        assert outside.parent == Path("/tmp")
        assert stat.S_IMODE(outside.stat().st_mode) == 0o700
        postgres.stop(settings)
        assert not outside.exists()
    finally:
        postgres.remove(settings)
        shutil.rmtree(parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives the server to another user")
def test_programs_that_the_user_cannot_get_to_are_copied(state, tmp_path):
    """As with a virtual environment under /root."""
    package = postgres.find_programs(state).parent.parent
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("include"))
    hidden = tmp_path / package.name / "pginstall18" / "bin"
    tmp_path.chmod(0o700)
    settings = Settings(state_dir=state.state_dir, postgres_bin=hidden)
    connect(postgres.ensure_running(settings))
    assert postgres.server(settings).bin.is_relative_to(postgres.SYSTEM_FOLDER)
    assert postgres.stop(settings)


def test_programs_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(postgres.PostgresMissing, match="AUTOVIBE_POSTGRES_BIN names"):
        postgres.ensure_running(Settings(state_dir=tmp_path / "s", postgres_bin=tmp_path))


def test_data_of_another_version_are_refused_in_one_line(state):
    postgres.ensure_running(state)
    server = postgres.server(state)
    postgres.stop(state)
    (server.data / "PG_VERSION").write_text("9\n")
    with pytest.raises(postgres.PostgresFailed, match="are of PostgreSQL 9"):
        postgres.ensure_running(state)
