"""The command line and a distant hub: login, and what a laptop can do from there."""

import http.server
import json
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from autovibe import apikeys, ca, client, db, logging_in, machines, users
from autovibe.api.v1.tests.conftest import PASSWORD, populate, running
from autovibe.cli import cli, watch
from autovibe.cli.common import run
from autovibe.models import Machine
from autovibe.settings import Settings, load_settings
from autovibe.tests import world
from autovibe.tests.conftest import embedded_server  # noqa: F401
from sqlalchemy import select


@pytest.fixture(scope="module")
def distant(embedded_server, tmp_path_factory):  # noqa: F811
    with running(embedded_server, tmp_path_factory.mktemp("distant")) as one:
        populate(one)
        yield one


@pytest.fixture
def laptop(tmp_path, monkeypatch, capfd):
    """Runs `autovibe …` on a computer that has no database: (exit code, output, error)."""
    monkeypatch.setenv("AUTOVIBE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("AUTOVIBE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")

    def call(*arguments):
        capfd.readouterr()
        code = run(cli, [str(one) for one in arguments])
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def key_file(distant, tmp_path):
    path = tmp_path / "key"
    path.write_text(distant.keys["admin"])
    return path


@pytest.fixture
def logged_in(distant, laptop, key_file):
    fingerprint = ca.ensure_for(distant.settings).ca_sha256
    code, out, error = laptop("login", distant.url, "--key-file", key_file, "--fingerprint", fingerprint)
    assert code == 0, error
    assert "as root (admin)" in out
    return laptop


def test_a_laptop_drives_a_distant_hub(logged_in, tmp_path):
    def run_json(*arguments):
        code, out, error = logged_in(*arguments, "--json")
        assert code == 0, error
        return json.loads(out)

    assert (tmp_path / "state" / "login.json").stat().st_mode & 0o777 == 0o600
    made = run_json("project", "create", "from afar/1", "--budget", "3")
    assert made["budget"]["allocated"] == "3.000000000"
    assert run_json("project", "show", "from afar/1")["uuid"] == made["uuid"]
    assert made["models"] is None
    assert run_json("project", "set", "from afar/1", "--model", "claude-haiku-*")["models"] == ["claude-haiku-*"]
    assert run_json("project", "set", "from afar/1", "--any-model")["models"] is None
    changed = run_json("project", "set", "from afar/1", "--status", "paused", "--greediness", "0.25")
    assert (changed["status"], changed["greediness"]) == ("paused", "0.25")
    assert run_json("project", "set", "from afar/1", "--status", "active")["status"] == "active"
    words = ("--prompt", "x", "--name", "afar", "--max-cost", "1.50", "--no-wait")
    machine = run_json("machine", "spawn", "from afar/1", *words)
    assert machine["status"] == "spawning"
    assert [row["name"] for row in run_json("machine", "list", "--project", "from afar/1")] == ["afar"]
    shown = run_json("machine", "show", "afar")
    assert (shown["prompt"], shown["max_cad"]) == ("x", "1.500000000")
    assert run_json("machine", "terminate", "afar", "--no-wait", "--reason", "enough")["uuid"] == machine["uuid"]
    taken = {row["description"]: row["uuid"] for row in run_json("checkpoint", "list", "theirs")}
    restored = run_json("machine", "restore", "machine-theirs", taken["half way"], "--no-wait")
    assert restored["status"] == "spawning"
    assert "autovibe-guest" in {row["name"] for row in run_json("template", "list")}
    assert "terminate" in {row["action"] for row in run_json("audit")}
    assert run_json("hub")["where"].startswith("https://127.0.0.1:")


def test_users_and_keys_are_made_from_the_command_line(logged_in, distant, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("a good long password\n")
    assert logged_in("user", "create", "ann", "--role", "operator", "--password-file", secret)[0] == 0
    assert logged_in("user", "grant", "ann", "ours", "--role", "operator")[0] == 0
    code, out, error = logged_in("key", "create", "laptop", "--user", "ann", "--scope", "read")
    assert (code, out.strip().startswith("avk_")) == (0, True)
    assert "this once" in error
    prefix = out.strip()[:12]
    assert prefix in logged_in("key", "list")[1]
    assert "ours" in logged_in("user", "list")[1]
    with db.session_scope(distant.settings) as session:
        assert apikeys.authenticate(session, out.strip())[1].name == "ann"
    assert logged_in("key", "revoke", prefix)[0] == 0
    assert logged_in("user", "withdraw", "ann", "ours")[0] == 0
    assert logged_in("user", "change", "ann", "--disable")[0] == 0
    assert "good long" not in logged_in("audit", "--json")[1]


def test_a_login_by_password_makes_a_key_that_logout_ends(distant, laptop, tmp_path):
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    fingerprint = ca.ensure_for(distant.settings).ca_sha256
    enter = partial(laptop, "login", distant.url, "--name", "root", "--fingerprint", fingerprint)
    assert enter("--password-file", secret)[0] == 0
    key = json.loads((tmp_path / "state" / "login.json").read_text())["key"]
    with db.session_scope(distant.settings) as session:
        assert apikeys.authenticate(session, key)[1].name == "root"
    assert laptop("logout")[0] == 0
    with db.session_scope(distant.settings) as session:
        assert apikeys.authenticate(session, key) is None
    secret.write_text("not the password")
    code, _, error = enter("--password-file", secret)
    assert (code, len(error.splitlines())) == (1, 1)


def test_a_logout_says_when_the_key_is_still_good_there(logged_in, distant, tmp_path):
    path = tmp_path / "state" / "login.json"
    login = json.loads(path.read_text())
    path.write_text(json.dumps({**login, "url": "https://127.0.0.1:1"}))
    code, out, _ = logged_in("logout")
    assert (code, path.exists()) == (0, False)
    assert f"autovibe key revoke {login['key'][:12]}`" in out
    assert login["key"] not in out


@pytest.mark.parametrize(
    "content", ["", "x", "[]", '{"url": 5}', '{"url": "x", "key": "k"}', '{"url": "https://h", "key": 5}',
                '{"url": "https://h", "key": "k", "ca": "no certificate"}'],
)  # fmt: skip
def test_a_damaged_login_is_one_clear_line_and_can_be_forgotten(laptop, tmp_path, content):
    path = tmp_path / "state" / "login.json"
    path.parent.mkdir()
    path.write_text(content)
    code, _, error = laptop("machine", "list")
    assert (code, len(error.splitlines())) == (1, 1)
    assert "autovibe login" in error
    assert laptop("logout")[0] == 0
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", bytes(range(128, 255)), b"avk_\x00\n"])
def test_a_key_file_that_has_no_key_is_one_line_without_what_it_has(distant, laptop, tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    fingerprint = ca.ensure_for(distant.settings).ca_sha256
    for option in (("--key-file",), ("--name", "root", "--password-file")):
        words = ("login", distant.url, "--fingerprint", fingerprint, *option, tmp_path / "key")
        code, _, error = laptop(*words)
        assert (code, len(error.splitlines())) == (2, 1)
        assert "one\\ntwo" not in error


def test_who_only_asks_a_hub_loads_no_database(logged_in, distant, monkeypatch):
    """It is a third of what a command would take."""
    code = (
        "import sys; from autovibe.cli import cli; from autovibe.cli.common import run;"
        "run(cli, sys.argv[1:]); print([m for m in ('sqlalchemy', 'fastapi', 'ansible_runner') if m in sys.modules])"
    )
    for words in (
        "machine list", "machine show machine-ours", "machine artifacts machine-ours", "checkpoint tree ours", "hub",
        "usage ours", "budget show ours", "audit",
    ):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", words


def test_another_ca_is_not_trusted(distant, laptop, key_file):
    code, _, error = laptop("login", distant.url, "--key-file", key_file, "--fingerprint", "0" * 64)
    assert (code, "fingerprint" in error, len(error.splitlines())) == (1, True, 1)


def test_only_the_ca_of_the_fingerprint_is_trusted(distant, laptop, key_file, tmp_path, monkeypatch):
    real, other = ca.ensure_for(distant.settings), ca.ensure_for(Settings(state_dir=tmp_path / "other"))
    monkeypatch.setattr(logging_in, "_shown_ca", lambda url: (real.ca_pem + other.ca_pem).decode())
    code, _, error = laptop("login", distant.url, "--key-file", key_file, "--fingerprint", real.ca_sha256)
    assert code == 0, error
    kept = json.loads((tmp_path / "state" / "login.json").read_text())["ca"]
    assert kept.strip() == real.ca_pem.decode().strip()


def test_a_machine_breaks_no_stream_by_what_it_says(distant, logged_in):
    said = "one\u2028two\x85three\x1cfour\u2029 data: five"
    with db.session_scope(distant.settings) as session:
        machine = session.scalars(select(Machine)).first()
        machines.say(session, machine.uuid, said)
        machine.status = "terminated"
    with client.connect(load_settings()) as here:
        told = [data["text"] for kind, data in here.follow(f"/machines/{machine.uuid}/events") if kind == "log"]
    assert said in told


@pytest.mark.parametrize("what", ["operation", "machine"])
def test_who_waits_waits_for_a_hub_that_is_started_again(distant, logged_in, capfd, what):
    with distant.client("admin") as admin:
        asked = admin.post("/hub/verify").json()["operation"]["uuid"]
    machine = distant.machine("ours", f"followed-{what}")
    done, said = [], ""

    def wait():
        with client.connect(load_settings()) as here:
            if what == "operation":
                done.append(watch.operation(here, asked, "The look")["status"])
            else:
                done.append(watch.machine(here, machine.uuid)["status"])

    waiting = threading.Thread(target=wait)
    waiting.start()
    distant.process.kill()
    distant.process.wait()
    end = time.monotonic() + 30
    while "does not answer" not in said and waiting.is_alive() and time.monotonic() < end:
        said += capfd.readouterr().err
        time.sleep(0.05)
    distant.up()
    with db.session_scope(distant.settings) as session:
        world.do(session, distant.settings, kind="verify", vms=[{"vm_id": 1, "template": False}])
        session.get_one(Machine, machine.uuid).status = "terminated"
    waiting.join(60)
    assert done == ["succeeded" if what == "operation" else "terminated"]
    assert "does not answer" in said


@pytest.mark.parametrize("url", ["ftp://hub", "https://", "http://hub.example", "https://hub:port", "https://hub/path"])
def test_a_wrong_url_is_one_clear_line(laptop, key_file, url):
    code, _, error = laptop("login", url, "--key-file", key_file)
    assert (code, len(error.splitlines())) == (2, 1)


def test_a_hub_that_is_away_and_a_key_that_has_ended_are_one_clear_line(distant, logged_in, tmp_path):
    login = tmp_path / "state" / "login.json"
    kept = json.loads(login.read_text())
    with db.session_scope(distant.settings) as session:
        root = users.find(session, "root")
        key, secret = apikeys.create(session, root, "short", scope="read")
        apikeys.revoke(session, key)
    for change, says in (({"key": secret}, "Log in again"), ({"url": "https://127.0.0.1:1"}, "does not answer")):
        login.write_text(json.dumps(kept | change))
        code, _, error = logged_in("machine", "list")
        assert (code, len(error.splitlines())) == (1, 1)
        assert says in error
    login.write_text("{")
    assert "login" in logged_in("machine", "list")[2]


@pytest.fixture
def other_hub(laptop, tmp_path):
    """Serves what a hub of another version, or what is none, answers to everything: .content."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.send_header("Content-Type", self.server.kind)
            self.end_headers()
            self.wfile.write(self.server.content)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.kind = "application/json"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        path = tmp_path / "state" / "login.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"url": f"http://127.0.0.1:{server.server_port}", "key": "k"}))
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "content",
    [b"<html>Sign in</html>", b"", b"[]", b"5", b'"x"', b"{}", b'{"items": [{"uuid": 5}], "next_cursor": null}'],
)
def test_an_answer_of_another_form_is_one_clear_line(other_hub, laptop, content):
    other_hub.content = content
    spawn = ("machine", "spawn", "x", "--prompt", "x", "--no-wait")
    for words in (("hub",), ("machine", "list"), ("machine", "show", "x"), spawn):
        code, _, error = laptop(*words)
        assert (code, len(error.splitlines())) == (1, 1), words
        assert "bring it and this command to the same one" in error


@pytest.mark.parametrize("kind", ["log", "status", "end"])
@pytest.mark.parametrize("said", ["{", "[]", "5", '{"status": 5}'])
def test_a_stream_of_another_form_is_one_clear_line(other_hub, laptop, kind, said):
    other_hub.kind, other_hub.content = "text/event-stream", f"event: {kind}\ndata: {said}\n\n".encode()
    with client.connect(load_settings()) as here, pytest.raises(client.UnknownAnswer, match="GET /machines/x/events"):
        watch.machine(here, "x", show=watch.printer())


def test_what_is_no_stream_is_not_followed_for_ever(other_hub, laptop):
    other_hub.content = b"<html>Sign in</html>"
    with client.connect(load_settings()) as here, pytest.raises(client.UnknownAnswer, match="no stream"):
        watch.machine(here, "x")


def test_a_hub_that_does_not_know_of_its_own_vm_is_shown(other_hub, laptop, distant):
    with distant.client("admin") as admin:
        answer = admin.get("/hub").json()
    del answer["vm"]
    other_hub.content = json.dumps(answer).encode()
    code, out, error = laptop("hub")
    assert (code, answer["installation"] in out) == (0, True), error


def test_money_and_checkpoints_are_looked_after_from_afar(logged_in, distant):
    def run_json(*arguments):
        code, out, error = logged_in(*arguments, "--json")
        assert code == 0, error
        return json.loads(out)

    run_json("project", "create", "far/money", "--budget", "3")
    made = run_json("budget", "set", "far/money", "2", "--period", "daily", "--once")
    assert (made["allocated"], made["auto_reset"]) == ("2.000000000", False)
    assert run_json("budget", "top-up", "far/money", "1", "--period", "daily")["allocated"] == "3.000000000"
    assert [row["period"] for row in run_json("budget", "show", "far/money")] == ["total", "daily"]
    assert len(run_json("budget", "history", "far/money", "--last", "1")) == 1
    assert run_json("budget", "alerts", "far/money") == []
    assert run_json("budget", "remove", "far/money", "--period", "daily") == {"removed": True}
    assert run_json("usage", "far/money")["lines"] == []
    assert run_json("usage", "--by", "machine") == []
    assert run_json("pool", "set", "1000", "--period", "monthly")["amount"] == "1000.000000000"
    assert run_json("pool", "limit", "far/money", "--period", "monthly", "--floor", "1")["shares"]
    assert len(run_json("pool", "show")) == 1
    assert run_json("pool", "remove", "--period", "monthly") == {"removed": True}
    assert run_json("rate", "set", "1.5", "--from", "EUR")["rate"] == "1.500000000"
    assert run_json("price", "list", "opus-5-5")[0]["from"]
    uuid = next(row["uuid"] for row in run_json("checkpoint", "list", "ours") if row["machine"] == "machine-ours")
    assert run_json("checkpoint", "tag", uuid, "good")["tags"] == ["good"]
    (root,) = run_json("checkpoint", "tree", "ours")
    assert uuid in {node["uuid"] for node in root["children"]}
    assert run_json("checkpoint", "policy", "ours", "--calls", "7")["made"]["calls"] == 7
    assert run_json("checkpoint", "verify", uuid, "--no-wait")["operation"]
    assert run_json("checkpoint", "prune", "ours")["remove"] == []
    code, _, error = logged_in("reconcile", "--from", "2026-01-01", "--to", "2026-01-02")
    assert (code, "admin key" in error, len(error.splitlines())) == (2, True, 1)


def test_what_works_here_only_says_so(logged_in):
    code, _, error = logged_in("db", "status")
    assert (code, "on the hub itself only" in error, len(error.splitlines())) == (1, True, 1)
