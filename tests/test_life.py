"""A machine's whole life with a real QEMU guest and the real Claude Code, and no secret where it should not be."""

from __future__ import annotations

import base64
import contextlib
import json
import mmap
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from sites import BINARIES, ROOT, Site, running_site

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

PROVIDER_KEY = "sk-ant-planted-provider-key-5b1f0e"
USERS_KEY = "planted-users-api-key-77c2d9"
COUNTED = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site whose provider's key and user's key are known, so that they can be looked for everywhere."""
    planted = {"ANTHROPIC_API_KEY": PROVIDER_KEY, "OPENAI_API_KEY": USERS_KEY, "AUTOVIBE_DEFAULT_MEMORY": "1024"}
    with running_site(environment=planted, hub=False) as site:
        # The lab's demo model plays the provider: it is to accept this key and no other.
        site.autovibe("lab", "down", "--keep")
        (site.state / "lab" / "model-key").write_text(PROVIDER_KEY)
        site.lab_up()
        port = (site.state / "lab" / "model-port").read_text().strip()
        site.environment["AUTOVIBE_UPSTREAM_URL"] = f"http://127.0.0.1:{port}"
        site.autovibe("up", "--detach")
        site.autovibe("template", "build")
        site.autovibe("project", "create", "life", "--budget", "5")
        yield site


@pytest.fixture(scope="module")
def first(site: Site) -> dict[str, Any]:
    """What a machine has left that was to write a small program with a test."""
    return site.json("machine", "spawn", "life", "--name", "first", "--prompt", "Write a small program with a test.")


def names(machine: dict[str, Any]) -> set[str]:
    return {file["path"] for file in machine["files"]}


def said(site: Site, machine: str) -> str:
    return "\n".join(line["text"] for line in site.json("machine", "logs", machine))


def bill(site: Site) -> list[dict[str, Any]]:
    """The provider's own bill."""
    request = urllib.request.Request(f"{site.environment['AUTOVIBE_UPSTREAM_URL']}/bill")
    request.add_header("x-api-key", PROVIDER_KEY)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["lines"]


def test_claude_code_writes_a_program_in_its_vm(first: dict[str, Any]) -> None:
    assert (first["outcome"], first["status"]) == ("succeeded", "terminated")
    assert {"wordcount.py", "test_wordcount.py"} <= names(first)
    assert {one["status"] for one in first["operations"]} == {"succeeded"}


def test_a_second_machine_starts_from_what_the_first_one_left(site: Site, first: dict[str, Any]) -> None:
    prompt = "Extend the program that is here with a command-line option, and extend its test."
    checkpoint = first["last_checkpoint"]
    second = site.json("machine", "spawn", "life", "--name", "second", "--prompt", prompt, "--from", checkpoint)
    assert second["outcome"] == "succeeded"
    assert second["parent_checkpoint"] == checkpoint
    before = {file["path"]: file["sha256"] for file in first["files"]}
    after = {file["path"]: file["sha256"] for file in second["files"]}
    assert before["wordcount.py"] != after["wordcount.py"]
    assert before["test_wordcount.py"] != after["test_wordcount.py"]


def test_the_program_and_its_test_run_in_a_guest(site: Site, first: dict[str, Any]) -> None:
    command = "sh -c 'python3 -m unittest 2>&1 && printf \"a b a\" | python3 wordcount.py'"
    ended = site.json(
        "machine", "spawn", "life", "--name", "checker", "--prompt", "run it", "--command", command,
        "--from", first["last_checkpoint"],
    )  # fmt: skip
    assert ended["outcome"] == "succeeded"
    output = said(site, "checker")
    assert re.search(r"Ran [1-9]\d* tests", output)
    assert "OK" in output


def test_a_command_that_fails_is_a_machine_that_failed(site: Site) -> None:
    done = site.run(
        "machine", "spawn", "life", "--name", "failing", "--prompt", "fail", "--command", "sh -c 'exit 3'", "--json"
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["outcome"] == "failed"


def test_a_prompt_that_the_script_does_not_know_ends_cleanly(site: Site) -> None:
    ended = site.json("machine", "spawn", "life", "--name", "unknown", "--prompt", "Paint me a mountain lake.")
    assert ended["outcome"] == "succeeded"
    assert "demo model" in ended["result"]["summary"]


def test_the_ledger_is_the_providers_bill_to_the_last_token(site: Site, first: dict[str, Any]) -> None:
    used = site.json("usage", "life", "--last", "1000")
    paid = [line for line in used["lines"] if line["type"] == "money"]
    billed = bill(site)
    assert len(paid) == len(billed) > 0
    by_model = used["models"]
    assert sum(row["output"] for row in by_model) == sum(line["usage"]["output_tokens"] for line in billed)
    assert sum(row["input"] for row in by_model) == sum(line["usage"]["input_tokens"] for line in billed)
    budget = used["projects"][0]["budget"]
    own = [line for line in used["lines"] if line["type"] in ("time", "cpu", "memory", "storage")]
    assert {line["machine"] for line in own} >= {"first"}, "the machine itself costs, too"
    assert sum(Decimal(line["cost_cad"]) for line in own) > 0
    assert Decimal(budget["used"]) == sum(Decimal(line["cost_cad"] or 0) for line in used["lines"])
    assert Decimal(budget["reserved"]) < Decimal("0.01"), "of no call, only of its stored checkpoint"
    assert Decimal(budget["used"]) <= Decimal(budget["allocated"])


def test_no_secret_is_where_it_should_not_be(site: Site, first: dict[str, Any], tmp_path: Path) -> None:
    by_hand = run_playbooks(site)
    site.autovibe("db", "backup", str(tmp_path / "backup.dump"))
    plain = tmp_path / "dump.sql"
    restore = subprocess.run(
        [pg_restore(), "--file", str(plain), str(tmp_path / "backup.dump")], capture_output=True, text=True
    )
    assert restore.returncode == 0, restore.stderr
    secrets = planted(site)
    assert all(len(secret) >= 16 for secret in secrets.values())

    places = {}
    for path in texts(site):
        # The hub still runs: what it has taken away meanwhile holds nothing.
        with contextlib.suppress(FileNotFoundError):
            places[path] = path.read_bytes()
    places |= {plain: plain.read_bytes(), Path("ansible-playbook -vvv --diff"): by_hand.encode()}
    for process in psutil.process_iter():
        try:
            places[Path(f"/proc/{process.pid}/cmdline")] = "\0".join(process.cmdline()).encode()
        except psutil.Error:
            continue
    for path, content in places.items():
        for name, secret in secrets.items():
            assert secret.encode() not in content, f"{name} stands in {path}"
    image = (site.state / "lab" / "import" / "autovibe-guest.qcow2").resolve()
    for disk in disks(site):
        assert disk.resolve() != image
        for name, secret in secrets.items():
            assert not stands_in(disk, secret.encode()), f"{name} stands in {disk}"


def disks(site: Site) -> list[Path]:
    return list((site.state / "lab" / "images").rglob("*.qcow2"))


def stands_in(disk: Path, secret: bytes) -> bool:
    """Whether the disk holds these bytes. Its clusters are not compressed, and a file begins with a block, so that a
    small one lies in one piece."""
    if disk.stat().st_size == 0:
        return False
    with disk.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(secret) >= 0


def run_playbooks(site: Site) -> str:
    """What the playbooks print when they are run by hand, as loud as they can, with and without success."""
    output = ""
    for extra in ({"machine_source": {"name": "autovibe-guest"}}, {"machine_source": {"name": "no-such-template"}}):
        values = {"machine_name": "loud", "machine_vm_id": 900, "machine_start": False, **extra}
        done = subprocess.run(
            [str(BINARIES / "ansible-playbook"), "playbooks/spawn.yml", "-vvv", "--diff", "-e", json.dumps(values)],
            cwd=ROOT, env=site.environment, capture_output=True, text=True,
        )  # fmt: skip
        output += done.stdout + done.stderr
    return output


def planted(site: Site) -> dict[str, str]:
    """The secrets of this site, by what they are."""
    password = re.search(r":([^:@/]+)@", json.dumps(database_url(site)))
    return {
        "the provider's key": PROVIDER_KEY,
        "the user's key": USERS_KEY,
        "the Proxmox token": (site.state / "lab" / "token-secret").read_text().strip(),
        "the database's password": password.group(1),
        "another machine's one-time token": enrol_token(site),
        # Whichever machine's: all of them begin with this header.
        "a machine's token": base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=") + ".",
    }


def python(site: Site, code: str) -> str:
    return subprocess.run(
        [str(BINARIES / "python"), "-c", code], env=site.environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def database_url(site: Site) -> str:
    return python(site, "from autovibe import db, settings; print(db.url(settings.load_settings()))")


def enrol_token(site: Site) -> str:
    """The one-time token that was pushed into the first machine: from its checkpoint the second one was forked."""
    return python(
        site,
        "from autovibe import db, identity, machines, settings\n"
        "s = settings.load_settings()\n"
        "with db.session_scope(s) as session: first = machines.find(session, 'first')\n"
        "print(identity.enrol_token(s, first.uuid, first.generation))",
    )


def pg_restore() -> str:
    return python_path("from autovibe import postgres, settings; print(postgres.find_programs(settings.Settings()))")


def python_path(code: str) -> str:
    done = subprocess.run([str(BINARIES / "python"), "-c", code], capture_output=True, text=True, check=True)
    return str(Path(done.stdout.strip()) / "pg_restore")


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def files_below(folder: Path) -> list[Path]:
    """Also while the hub removes folders."""
    return [Path(root, name) for root, _, names in os.walk(folder) for name in names]


def texts(site: Site) -> list[Path]:
    """Every file of the state folder but disks and those whose purpose is to hold one secret (mode 0600)."""
    keepers = {"token-secret", "model-key", "password", "pgpass", "root-password", "auth-key", "lab-token"}
    found = []
    for path in [*files_below(site.state), *files_below(ROOT / "inventory")]:
        if not path.is_file() or path.is_symlink() or path.suffix == ".qcow2" or size(path) > 2**26:
            continue
        if path.name in keepers:
            assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"
            continue
        if "data" in path.parts and "pg" in path.parts:
            continue  # the database's own files; its dump is searched
        found.append(path)
    return found


def test_nothing_is_left_after_down(site: Site) -> None:
    site.autovibe("down")
    site.autovibe("lab", "down")
    left = []
    for process in psutil.process_iter():
        try:
            if str(site.state) in " ".join(process.cmdline()) and process.pid != os.getpid():
                left.append(process.cmdline())
        except psutil.Error:
            continue
    assert not left
    assert not (site.state / "lab").exists()
    assert not [path for path in site.state.rglob("*") if path.is_socket()]
