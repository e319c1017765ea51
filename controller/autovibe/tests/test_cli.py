"""The command line: every error is one line, every command has help, nothing slow is loaded for `--help`."""

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import click
import pytest
from autovibe import db, machines, postgres
from autovibe.cli import COMMANDS, cli, common, watch
from autovibe.cli.common import run
from autovibe.settings import load_settings
from autovibe.tests import world

AUTOVIBE = Path(sys.executable).parent / "autovibe"


@pytest.fixture
def command(settings, monkeypatch, capfd):
    """Runs `autovibe …` in this process on the test's database: (exit code, output, error)."""
    monkeypatch.setenv("AUTOVIBE_STATE_DIR", str(settings.state_dir))
    monkeypatch.setenv("AUTOVIBE_DATABASE_URL", settings.database_url.get_secret_value())
    capfd.readouterr()

    def call(*arguments):
        code = run(cli, arguments)
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def project(settings):
    with db.session_scope(settings) as session:
        world.template(session)
        return world.project(session)


def every_command():
    def below(path, found):
        yield path, found
        for name, child in getattr(found, "commands", {}).items():
            yield from below(f"{path} {name}", child)

    context = click.Context(cli)
    for name in cli.list_commands(context):
        yield from below(name, cli.get_command(context, name))


def test_every_command_and_option_has_help():
    for path, found in every_command():
        assert found.help, f"autovibe {path} has no help"
        for option in found.params:
            if isinstance(option, click.Option):
                assert option.help, f"autovibe {path} {option.opts[0]} has no help"


def test_every_command_but_the_demonstration_takes_json():
    without = {
        path for path, found in every_command()
        if not hasattr(found, "commands") and "--json" not in {name for one in found.params for name in one.opts}
    }  # fmt: skip
    assert without == {"vibe"}


def test_the_list_of_commands_says_what_each_says_of_itself():
    context = click.Context(cli)
    said = {name: cli.get_command(context, name).get_short_help_str(limit=200) for name in COMMANDS}
    assert {name: text for name, (_, text) in COMMANDS.items()} == said


def test_help_loads_neither_the_database_nor_ansible():
    code = (
        "import sys; from autovibe.cli import cli; from autovibe.cli.common import run; run(cli, ['--help']);"
        "print([m for m in ('sqlalchemy', 'ansible_runner', 'fastapi', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["machine", "spawn", "demo"], 2, "The prompt is empty"),
        (["machine", "spawn", "demo", "--prompt", "  "], 2, "The prompt is empty"),
        (["machine", "spawn", "nope", "--prompt", "x"], 1, "There is no project nope"),
        (["machine", "spawn", "demo", "--prompt", "x", "--from", "deadbeef"], 1, "There is no checkpoint deadbeef"),
        (["machine", "spawn", "demo", "--prompt", "x", "--template", "nope"], 1, "There is no template nope"),
        (["machine", "spawn", "demo", "--prompt", "x", "--type", "hal"], 2, "no machine type 'hal'"),
        (["machine", "spawn", "demo", "--prompt", "x", "--file", "/no/such"], 2, "there is no file /no/such"),
        (["machine", "show", "nobody"], 1, "There is no machine nobody"),
        (["checkpoint", "show", "nothing"], 1, "There is no checkpoint nothing"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["machine", "list", "--nonsense"], 2, "No such option"),
    ],
)
def test_bad_input_is_one_clear_line(command, project, arguments, code, says):
    exit_code, out, error = command(*arguments)
    assert exit_code == code
    assert out == ""
    assert says in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("group", [(), ("budget",), ("price",)])
def test_a_group_without_a_command_shows_what_there_is(command, group):
    code, said, error = command(*group)
    assert (code, said) == (2, "")
    assert len(error.splitlines()) > 5
    assert "Usage: autovibe" in error.splitlines()[0]


def test_a_budget_that_is_too_small_is_one_clear_line(command, settings, project):
    with db.session_scope(settings) as session:
        world.project(session, "poor", "0.001")
    code, _, error = command("machine", "spawn", "poor", "--prompt", "x")
    assert (code, len(error.splitlines())) == (1, 1)
    assert "CAD 0.001 left" in error


def test_an_unreachable_database_is_one_clear_line(tmp_path):
    environment = {**os.environ, "AUTOVIBE_STATE_DIR": str(tmp_path)}
    environment["AUTOVIBE_DATABASE_URL"] = "postgresql://nobody:hunter2@127.0.0.1:1/none"
    done = subprocess.run([AUTOVIBE, "machine", "list"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "cannot be reached" in done.stderr
    assert "hunter2" not in done.stderr


def test_where_there_never_was_a_hub_nothing_is_made_of_one(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("AUTOVIBE_DATABASE_URL", raising=False)
    monkeypatch.setenv("AUTOVIBE_STATE_DIR", str(tmp_path / "state"))
    code = run(cli, ["machine", "list"])
    said = capfd.readouterr()
    assert (code, said.out, len(said.err.splitlines())) == (1, "", 1)
    assert "autovibe up" in said.err
    assert not postgres.exists(load_settings())
    assert not (tmp_path / "state" / "pg").exists()


def test_a_database_that_is_not_migrated_is_one_clear_line(empty_database, monkeypatch, capfd):
    monkeypatch.setenv("AUTOVIBE_DATABASE_URL", empty_database.database_url.get_secret_value())
    monkeypatch.setenv("AUTOVIBE_STATE_DIR", str(empty_database.state_dir))
    capfd.readouterr()
    assert run(cli, ["machine", "list"]) == 1
    error = capfd.readouterr().err
    assert "autovibe db upgrade" in error
    assert len(error.splitlines()) == 1


def test_an_internal_error_is_one_line_and_a_log(command, settings, project, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(machines, "terminate", broken)
    with db.session_scope(settings) as session:
        name = machines.spawn(session, settings, project=project, prompt="x").name
    code, _, error = command("machine", "terminate", name, "--no-wait")
    assert (code, len(error.splitlines())) == (1, 1)
    assert "Something went wrong" in error
    assert "ZeroDivisionError: oops" in (settings.state_dir / "log" / "errors.log").read_text()


@pytest.mark.parametrize("place", ["/proc/nothing", "/dev/null", "/dev/null/x"])
def test_a_state_folder_that_cannot_be_is_one_clear_line(monkeypatch, capfd, place):
    monkeypatch.setenv("AUTOVIBE_STATE_DIR", place)
    monkeypatch.delenv("AUTOVIBE_DATABASE_URL", raising=False)
    capfd.readouterr()
    assert run(cli, ["machine", "list"]) == 1
    error = capfd.readouterr().err
    assert (f"The state folder {place} cannot be used" in error, len(error.splitlines())) == (True, 1)


def test_nothing_that_a_machine_says_commands_the_terminal(capsys):
    said = "a\tb\r\nc \x1b]52;c;ZXZpbA==\x07\x1b[2J\r\x9b2J\x7f\u202e [red]d[/red]"
    watch.printer()({"kind": "text", "at": datetime.now(UTC), "text": said})
    common.output({"error": said}, False)
    common.output(said, False, str)
    common.output([said], False, lambda rows: common.table(["text"], [rows]))
    common._say(said)
    common.output({"error": said}, True)
    shown = capsys.readouterr()
    assert {one for one in shown.out + shown.err if not one.isprintable()} == {"\t", "\n"}
    assert shown.out.count("[red]d[/red]") == 5
    assert "a\tb\nc ␛]52" in shown.out
    assert json.loads(shown.out[shown.out.index("{") :]) == {"error": said}


@pytest.mark.parametrize("width", [200, 60, 20])
def test_a_table_is_as_rich_prints_it(width):
    from rich.console import Console

    rows = [["one", None, Decimal("1.50")], ["日本", "[red]x[/red]", 12], ["a\tb", "c\nd", True]]
    for lines in (rows, rows[:2], rows[:1], []):
        shown, folded = Console(file=io.StringIO(), width=width), Console(file=io.StringIO(), width=width)
        made = common.table(["name", "[b]", "a longer title"], lines)
        shown.print(made)
        folded.print(made._folded())
        printed = [[line.rstrip() for line in one.file.getvalue().splitlines()] for one in (shown, folded)]
        assert printed[0] == printed[1]


def test_a_spawn_without_waiting(command, project, settings, tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    code, out, _ = command(
        "machine", "spawn", "demo", "--prompt", "x", "--name", "one", "--file", f"{tmp_path}/a.txt:in/a.txt",
        "--memory", "512", "--no-wait", "--json",
    )  # fmt: skip
    made = json.loads(out)
    assert code == 0
    assert (made["name"], made["status"], made["project"]) == ("one", "spawning", "demo")
    with db.session_scope(settings) as session:
        machine = machines.find(session, "one")
        assert machine.resource_constraints["memory"] == 512
        assert machine.assignment["files"][0]["path"] == "in/a.txt"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prompt-file", "{binary}"), "no text"),
        (("--prompt-file", "{folder}"), "is a directory"),
        (("--command", "a 'b"), "not quoted"),
        (("--prompt", "x", "--wall-seconds", "nan"), "--wall-seconds"),
        (("--prompt", "x", "--wall-seconds", "inf"), "--wall-seconds"),
        (("--prompt", "x", "--key", "é"), "--key"),
        (("--prompt", "x", "--key", "a b"), "--key"),
        (("--prompt", "x", "--key", ""), "--key"),
        (("--prompt", "x", "--model", "a\nb"), "not a model's name"),
        (("--prompt", "x", "--file", "{binary}:../x"), "does not stay in the workspace"),
        (("--prompt", "x", "--file", "{large}"), "larger than 8 MiB"),
        (("--prompt", "x", "--files-from", "{binary}"), "cannot be read as a tar"),
        (("--prompt", "x", "--file", "{binary}:a", "--file", "{binary}:a/b/c"), "and the folder of 'a/b/c'"),
    ],
)
def test_what_a_machine_cannot_be_given_is_said_in_one_line(command, project, settings, tmp_path, words, said):
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(100 << 30)
    places = {"binary": tmp_path / "binary", "large": tmp_path / "large", "folder": tmp_path}
    code, out, error = command("machine", "spawn", "demo", "--no-wait", *(word.format(**places) for word in words))
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert said in error
    with db.session_scope(settings) as session:
        assert machines.listed(session) == []


@pytest.mark.parametrize("name", ["", " ", "..", ".", "a/b", "../../etc", "one/logs", "a\nb", "%2F", "n" * 10_000, "é"])
def test_a_name_that_nobody_has_is_said_to_be_none(command, project, name):
    for noun in ("machine", "project", "checkpoint"):
        code, out, error = command(noun, "show", name)
        assert (code, out, len(error.splitlines())) == (1, "", 1), error
        assert noun in error
        assert len(error) < 300


def test_what_there_is_can_be_seen(command, settings, project):
    with db.session_scope(settings) as session:
        machine = machines.spawn(session, settings, project=project, prompt="build it", name="one")
        world.do(session, settings)
        machine.status, machine.enrolled_at = "working", machine.spawned_at
    with db.session_scope(settings) as session:
        machines.checkpoint(session, settings, machines.find(session, "one"), description="half way")
        world.do(session, settings)
    assert "working" in command("machine", "list")[1]
    assert "build it" in command("machine", "show", "one")[1]
    assert "waiting for its agent" in command("machine", "logs", "one")[1]
    assert "half way" in command("checkpoint", "tree")[1]
    tree = json.loads(command("checkpoint", "tree", "demo", "--json")[1])
    assert [child["type"] for child in tree[0]["children"]] == ["manual"]
    rows = json.loads(command("checkpoint", "list", "--json")[1])
    assert [row["type"] for row in rows] == ["genesis", "manual"]
    assert "manual" in command("checkpoint", "show", rows[1]["uuid"][:8])[1]
    assert "autovibe-guest" in command("template", "list")[1]


def test_following_a_machine_that_fails_fails(command, settings, project):
    ask = ("machine", "spawn", "demo", "--prompt", "x", "--key", "k")
    assert command(*ask, "--no-wait")[0] == 0
    with db.session_scope(settings) as session:
        world.do(session, settings, error="no disk space")
    code, out, _ = command(*ask)
    assert code == 1
    assert "no disk space" in out
    code, out, _ = command(
        "machine", "logs", "-f", "--json", json.loads(command("machine", "list", "--all", "--json")[1])[0]["uuid"]
    )
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert any("no disk space" in line["text"] for line in lines)
    assert {"id", "at", "kind", "text"} == lines[0].keys()
