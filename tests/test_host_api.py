"""Role proxmox_host on the API of a bare lab: what it makes, that a machine's life works with it, and its undo."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import yaml
from autovibe_lab import site as lab_site
from autovibe_lab.testing import LabInThread

ROOT = Path(__file__).parents[1]
TOKEN = "autovibe@pve!made"
POOL = "autovibe"
ZFS = {"name": "machines", "type": "zfspool", "content": ["images"], "options": {"pool": "tank/m", "sparse": 1}}
#: A site with little in it: its runs are quicker.
SMALL = {"proxmox_host_storages": [], "proxmox_host_pbs": {}, "proxmox_host_machine_storages": []}


@dataclass
class Play:
    """An ansible-playbook that has ended. `said` is what differs, line by line; `changed` from the recap."""

    returncode: int
    output: str

    @property
    def changed(self) -> int:
        return int(re.search(r"changed=(\d+)", self.output)[1])

    @property
    def said(self) -> list[str]:
        one_line = re.sub(r"\n {8}", " ", self.output)
        return [
            line
            for line in re.findall(r"^    msg: '?(.*?)'?$", one_line, re.M)
            if re.match(r"(role|token|ACL|storage|backup|verify)", line)
        ]


class BackupServer:
    """What a Proxmox Backup Server has of verify jobs, with the lab's certificate."""

    def __init__(self, state: Path) -> None:
        self.jobs: list[dict[str, str]] = []
        self.seen: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, data: object) -> None:
                outer.seen.add(self.headers["Authorization"])
                body = json.dumps({"data": data}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.answer(outer.jobs if self.path == "/api2/json/config/verify" else None)

            def do_POST(self) -> None:
                outer.jobs.append(dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode())))
                self.answer(None)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(state / "ca.pem", state / "key.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Site:
    """A bare lab, and a folder for its admin's and its token's secrets."""

    def __init__(self, folder: Path, version: int) -> None:
        self.lab = LabInThread(folder / "lab", site="bare", pve_version=version, null_guests=True)
        self.backups = BackupServer(self.lab.state)
        self.secret_file = folder / "secrets" / "token"
        (folder / "pbs-password").write_text("planted-pbs-password")
        self.variables = {
            "proxmox_api_host": "127.0.0.1",
            "proxmox_api_port": self.lab.lab.port,
            "proxmox_ca_path": str(self.lab.state / "ca.pem"),
            "proxmox_api_user": "autovibe@pve",
            "proxmox_api_token_id": TOKEN,
            "proxmox_api_token_secret_file": str(self.secret_file),
            "proxmox_host_admin_password_file": str(self.lab.state / "root-password"),
            "proxmox_node": "pve1",
            "proxmox_pool": POOL,
            "proxmox_storage": "local",
            "proxmox_host_machine_storages": ["local"],
            "proxmox_host_bridges": ["vmbr1"],
            "proxmox_host_storages": [
                ZFS,
            ],
            "proxmox_host_pbs": {
                "name": "pbs",
                "server": "127.0.0.1",
                "port": self.backups.port,
                "ca_path": str(self.lab.state / "ca.pem"),
                "verify_schedule": "sat 03:00",
                "datastore": "autovibe",
                "username": "autovibe@pbs!pve",
                "password_file": str(folder / "pbs-password"),
                "encryption_key_file": str(folder / "pbs-key.json"),
                "keep": {"keep-last": 3, "keep-daily": 7},
            },
            "proxmox_host_backup_schedule": "02:30",
        }  # fmt: skip
        self.key_file = folder / "pbs-key.json"

    def play(
        self, *books: str, options: tuple[str, ...] = (), check: bool = True, callback: str = "default", **extra: Any
    ) -> Play:
        paths = [f"playbooks/{book}.yml" for book in books or ("host",)]
        tool = str(Path(sys.executable).with_name("ansible-playbook"))
        argv = [tool, *paths, "-e", json.dumps(self.variables | extra), *options]
        quiet = {"ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_STDOUT_CALLBACK": callback}
        done = subprocess.run(
            argv,
            cwd=ROOT,
            env=os.environ | quiet,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert not check or done.returncode == 0, done.stdout[-6000:]
        return Play(done.returncode, done.stdout)

    @property
    def access(self) -> Any:
        return self.lab.lab.node.access

    def writes(self) -> list[str]:
        return [call for call in self.lab.aids.writes() if call != "POST /access/ticket"]

    def refused(self, **extra: Any) -> str:
        """The message of a run that refuses to go on."""
        play = self.play(check=False, **extra)
        assert play.returncode != 0
        return re.sub(r"\s+", " ", play.output)


def open_site(folder: Path, version: int) -> Iterator[Site]:
    site = Site(folder, version)
    try:
        yield site
    finally:
        site.lab.close()
        site.backups.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from open_site(tmp_path_factory.mktemp("site"), 8)


@pytest.fixture
def nine(tmp_path: Path) -> Iterator[Site]:
    yield from open_site(tmp_path, 9)


@pytest.fixture(scope="module")
def made(site: Site) -> dict[str, Play]:
    """Check mode on the bare lab, then for real with all that Ansible can say, then both again."""
    told = site.play(options=("--check", "--diff"))
    nothing = site.writes()
    real = site.play(options=("--diff", "-vvv"))
    again = site.play()
    checked = site.play(options=("--check",))
    return {"told": told, "real": real, "again": again, "checked": checked, "nothing": Play(0, "\n".join(nothing))}


def test_check_mode_on_a_bare_host_says_what_is_then_done(made):
    assert made["nothing"].output == ""
    assert len(made["told"].said) == 25
    finished = f"token {TOKEN}: its secret is kept"
    assert [line for line in spoken(made["real"]) if line != finished] == made["told"].said


def spoken(verbose: Play) -> list[str]:
    """`said` of a run with -vvv."""
    return verbose.said


def test_a_second_run_changes_nothing(made):
    assert made["again"].changed == 0, made["again"].output
    assert made["checked"].changed == 0, made["checked"].output


def test_the_secrets_are_in_their_files_and_nowhere_else(site, made):
    secret = site.secret_file.read_text()
    assert site.secret_file.stat().st_mode & 0o777 == 0o600
    assert site.key_file.stat().st_mode & 0o777 == 0o600
    key = json.loads(site.key_file.read_text())["data"]
    planted = [secret, key, "planted-pbs-password", site.lab.lab.secrets.root_password, "PVEAuthCookie=PVE:"]
    for play in made.values():
        for value in planted:
            assert value not in play.output


def test_secrets_are_in_no_result_either(site, made):
    """As AWX keeps them: a callback that shows everything that a task returns."""
    password = {"server": "cifs.example.net", "share": "vms", "username": "pve", "password": "planted-cifs-password"}
    again = {**site.variables["proxmox_host_pbs"], "name": "pbs2", "verify_schedule": ""}
    wanted = {
        "proxmox_host_storages": [{"name": "cifs", "type": "cifs", "content": ["images"], "options": password}],
        "proxmox_host_pbs": {**again, "encryption_key_file": f"{site.key_file}2"},
        "proxmox_host_backup_schedule": "",
    }
    told = site.play(options=("--check", "-vvv"), callback="ansible.posix.json", **wanted)
    real = site.play(options=("-vvv",), callback="ansible.posix.json", **wanted)
    assert "storage cifs: added" in real.output
    assert "storage pbs2: added" in real.output
    key = json.loads(Path(f"{site.key_file}2").read_text())["data"]
    for value in ("planted-cifs-password", "planted-pbs-password", key, site.secret_file.read_text()):
        assert value not in told.output + real.output
    assert site.play(**wanted).changed == 0
    for name in ("cifs", "pbs2"):
        site.lab.lab.node.storages.config.remove(name)


def test_the_token_has_grants_on_pool_storages_and_bridge_only(site, made):
    user = TOKEN.partition("!")[0]
    paths = {f"/pool/{POOL}", "/storage/local", "/sdn/zones/localnetwork/vmbr1", "/nodes/pve1"}
    for subject in (user, TOKEN):
        assert {path for path, who, _, _ in site.access.config.entries() if who == subject} == paths
    assert site.access.config.users[user].tokens["made"].privsep


def test_a_storage_a_backup_server_and_its_job_are_configured(site, made):
    storages = site.lab.lab.node.storages.config.all
    assert (
        storages["machines"].options | {"content": "images", "pool": "tank/m", "sparse": "1"}
        == storages["machines"].options
    )
    assert storages["pbs"].options["prune-backups"] == "keep-last=3,keep-daily=7"
    job = site.lab.lab.node.cluster.jobs.all[f"autovibe-{POOL}"].shown()
    assert (job["pool"], job["storage"], job["schedule"]) == (POOL, "pbs", "02:30")
    assert [(job["store"], job["schedule"]) for job in site.backups.jobs] == [("autovibe", "sat 03:00")]
    assert site.backups.seen == {"PBSAPIToken=autovibe@pbs!pve:planted-pbs-password"}


def test_a_machine_lives_with_the_token(site, made):
    life = {
        "template_name": "null",
        "template_disk_source": "local:1",
        "machine_name": "first",
        "machine_source": {"name": "null"},
        "machine_cores": 2,
        "machine_memory": 512,
        "machine_ip": "192.168.100.17/24",
        "machine_checkpoint": {"name": "before"},
        "machine_final": {"kind": "auto", "name": "final"},
    }
    play = site.play("templates", "spawn", "checkpoint", "restore", "promote", "terminate", **life)
    assert "failed=0" in play.output
    assert not [call for call in site.lab.aids.calls() if call["status"] == 403]


def test_what_somebody_changed_is_set_right(site, made):
    config, user = site.access.config, TOKEN.partition("!")[0]
    config.roles["AutovibeMachines"] = config.roles["AutovibeMachines"] - {"VM.Clone"} | {"VM.Console"}
    config.set_acl("/", user, "Administrator", True)
    config.unset_acl("/storage/local", TOKEN, "AutovibeStorage")
    config.save()
    site.lab.lab.node.storages.config.change("machines", {"content": "rootdir"}, [])
    assert site.play().said == [
        "storage machines: content rootdir → images",
        "role AutovibeMachines: +VM.Clone -VM.Console",
        f"ACL /: -Administrator for {user}",
        f"ACL /storage/local: +AutovibeStorage for {TOKEN}",
    ]


def test_a_run_that_ended_before_the_secret_was_kept_is_gone_on_with(site, made):
    old = site.secret_file.read_text()
    site.secret_file.unlink()
    site.access.config.users["autovibe@pve"].tokens["made"].comment = "autovibe: the secret was not kept yet"
    site.access.config.save()
    site.play()
    assert site.secret_file.read_text() != old


def test_it_refuses_what_would_break_something(site, made):
    kept = site.secret_file.read_text()
    site.secret_file.unlink()
    assert "set proxmox_host_token_renew: true" in site.refused()
    site.secret_file.write_text("wrong")
    assert "does not hold the secret" in site.refused()
    site.secret_file.write_text(kept)
    other = [{"name": "machines", "type": "dir", "content": ["images"], "options": {"path": "/srv"}}]
    assert "exists with type 'zfspool', not 'dir'" in site.refused(proxmox_host_storages=other)
    away = str(site.secret_file.with_name("away"))
    assert f"{away} is not there: put the password of root@pam" in site.refused(proxmox_host_admin_password_file=away)
    wrong = site.secret_file.with_name("wrong")
    wrong.write_text("not the password")
    assert "root@pam is refused" in site.refused(proxmox_host_admin_password_file=str(wrong))


def test_a_user_of_somebody_else_is_left_alone(site, made):
    users = site.access.config.users
    users["alice@pve"] = type(users["root@pam"])(comment="Alice")
    site.access.config.set_acl("/", "alice@pve", "Administrator", True)
    site.access.config.save()
    before = site.writes()
    for state in ("present", "absent"):
        said = site.refused(proxmox_host_token_id="alice@pve!autovibe", proxmox_host_state=state)
        assert "alice@pve exists and is not this role's" in said
    assert site.writes() == before
    del users["alice@pve"]
    site.access.config.unset_acl("/", "alice@pve", "Administrator")
    site.access.config.save()


def test_a_backup_server_that_does_not_answer_is_named(site, made):
    away = {**site.variables["proxmox_host_pbs"], "port": 1}
    assert "https://127.0.0.1:1/api2/json/config/verify: " in site.refused(proxmox_host_pbs=away)


def test_the_secret_can_be_kept_encrypted(site, made, tmp_path):
    password = tmp_path / "vault-password"
    password.write_text("planted-vault-password")
    vault = {"proxmox_host_token_vault_password_file": str(password), "proxmox_host_token_id": "autovibe@pve!vault"}
    vault["proxmox_host_token_secret_file"] = str(tmp_path / "token.vault")
    site.play(options=("--vault-password-file", str(password)), **vault, **SMALL)
    assert (tmp_path / "token.vault").read_text().startswith("$ANSIBLE_VAULT;")


def test_the_undo_leaves_nothing_but_what_has_content(site, made):
    config = site.access.config
    # Another installation's
    config.users["other@pve"] = type(config.users["root@pam"])(comment="")
    config.set_acl("/storage/local", "other@pve", "AutovibeStorage", True)
    config.save()
    told = site.play(options=("--check",), proxmox_host_state="absent")
    assert site.play(proxmox_host_state="absent").changed == told.changed > 0
    assert site.play(proxmox_host_state="absent").changed == 0
    assert set(config.users) == {"root@pam", "other@pve"}
    assert [role for role in config.roles if role.startswith("Autovibe")] == ["AutovibeStorage"]
    assert not site.secret_file.exists()
    assert POOL in site.lab.lab.node.pools.all, "it has members"
    assert "machines" in site.lab.lab.node.storages.config.all


def test_proxmox_9_has_other_privileges(nine):
    said = " ".join(nine.play(options=("--check",), **SMALL).said)
    assert "+VM.GuestAgent.Unrestricted" in said
    assert "VM.Monitor" not in said


@pytest.mark.parametrize("version", [8, 9])
def test_the_roles_are_those_that_are_proven_to_be_needed(version):
    """By test_least_privilege.py, which takes each away."""
    listed = yaml.safe_load((ROOT / "roles/proxmox_host/vars/main.yml").read_text())["__proxmox_host_roles"]
    inside = "VM.Monitor" if version < 9 else "VM.GuestAgent.Unrestricted"
    roles = {role: frozenset(inside if "{{" in name else name for name in names) for role, names in listed.items()}
    assert roles.pop("AutovibeTemplate") == {"VM.Audit", "VM.Clone"}
    assert roles.pop("AutovibeHub") == {"VM.Audit", "VM.Config.Options", "VM.Snapshot"}
    assert roles == lab_site.roles(version)


def test_the_doctor_asks_for_the_same_privileges():
    (play,) = yaml.safe_load((ROOT / "playbooks/doctor.yml").read_text())
    listed = yaml.safe_load((ROOT / "roles/proxmox_host/vars/main.yml").read_text())["__proxmox_host_roles"]
    inside = [name for name in listed["AutovibeMachines"] if "{{" in name]
    assert sorted(play["vars"]["site_machines"] + inside) == sorted(listed["AutovibeMachines"])
