"""The collection needs the privileges of the lab's own token, all of them, and no others.

One machine's whole life per privilege, each by a token that lacks just that one, all in one run of ansible-playbook.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import autovibe_lab.api  # noqa: F401  (registers the calls)
import pytest
import requests
from autovibe_lab import site
from autovibe_lab.api.routes import ROUTES
from labs import ROOT, Lab, running_lab

USER = "autovibe@pve"
#: Whether the lab makes backups.
BACKUPS = any(route.template == "/nodes/{node}/vzdump" for route in ROUTES)
#: Where each role is given: the pool, every storage that is used, every bridge.
PATHS = {
    "AutovibeMachines": ["/pool/autovibe"],
    "AutovibeStorage": ["/storage/local", "/storage/null"],
    "AutovibeNetwork": ["/sdn/zones/localnetwork/vmbr0", "/sdn/zones/localnetwork/vmbr1"],
    "AutovibeBuild": ["/pool/autovibe"],
    "AutovibeImages": ["/storage/local"],
    "AutovibeDownload": ["/nodes/pve1"],
}


@dataclass
class Admin:
    """root@pam, who gives tokens what they may do."""

    lab: Lab

    def __post_init__(self) -> None:
        password = (self.lab.folder / "root-password").read_text()
        ticket = self.call("POST", "access/ticket", username="root@pam", password=password)
        self.headers = {"CSRFPreventionToken": ticket["CSRFPreventionToken"]}
        self.headers["Cookie"] = f"PVEAuthCookie={ticket['ticket']}"

    def call(self, method: str, path: str, /, **params: Any) -> Any:
        url, certificate = f"{self.lab.url}/api2/json/{path}", str(self.lab.folder / "ca.pem")
        headers = getattr(self, "headers", {})
        answer = requests.request(method, url, data=params, headers=headers, verify=certificate, timeout=30)
        assert answer.ok, answer.reason
        return answer.json()["data"]

    def token_without(self, privilege: str, name: str) -> str:
        """A token that may do all that the lab's own may, but for one privilege; returns its secret."""
        for role, its in self.roles().items():
            kept = [one for one in its if one != privilege]
            mine = f"{name}-{role}"
            self.call("POST", "access/roles", roleid=mine, privs=",".join(kept))
        secret = self.call("POST", f"access/users/{USER}/token/{name}", privsep=1)["value"]
        for role, paths in PATHS.items():
            for path in paths:
                self.call("PUT", "access/acl", path=path, roles=f"{name}-{role}", tokens=f"{USER}!{name}")
        return secret

    def roles(self) -> dict[str, list[str]]:
        return {role: sorted(self.call("GET", f"access/roles/{role}")) for role in PATHS}


def life() -> list[dict[str, Any]]:
    """A machine's life, as tasks of a play: the host's number makes its names and ids."""
    me = {"vm_id": "{{ base | int + 1 }}"}
    point = {**me, "name": "before-upgrade"}
    tasks: list[tuple[str, str, dict[str, Any]]] = [
        (
            "template",
            "template",
            {"name": "base-{{ base }}", "vm_id": "{{ base }}", "disk_source": "null:1", "storage": "null"},
        ),
        ("spawn", "machine", {**SPAWN, **me, "name": "web-{{ base }}", "source": {"vm_id": "{{ base }}"}}),
        ("change", "machine", {**me, "name": "www-{{ base }}", "cores": 4}),
        ("identity", "guest_file", {**me, "path": "/etc/identity", "content": "me\n"}),
        ("program", "guest_exec", {**me, "argv": ["true"]}),
        ("isolate", "isolation", {**me, "options": {"enable": True}, "rules": [{"action": "ACCEPT", "macro": "SSH"}]}),
        ("checkpoint", "checkpoint", point),
        ("restore", "checkpoint", {**point, "state": "restored", "start": True}),
        ("branch", "checkpoint", {**point, "state": "promoted"}),
        ("look", "machine_info", {**me}),
        ("back up", "backup", {**me, "storage": "local", "max_age": 0}),
        ("stop", "machine", {**me, "name": "www-{{ base }}", "state": "stopped"}),
        ("remove", "machine", {**me, "name": "www-{{ base }}", "state": "absent"}),
        (
            "uploaded",
            "template",
            {"storage": "local", "name": "up-{{ base }}", "image_file": "{{ images }}/{{ base }}.raw"},
        ),
        (
            "downloaded",
            "template",
            {
                "storage": "local",
                "name": "down-{{ base }}",
                "image_url": "{{ server }}/{{ other }}.raw",
                "checksum": "{{ sum }}",
            },
        ),
    ]
    tasks += [("built", "template", {**BUILT, "name": "built-{{ base }}"})]
    pooled = ("template", "spawn", "change", "branch", "uploaded", "downloaded", "built")
    tasks = [task for task in tasks if BACKUPS or task[1] != "backup"]
    return [
        {"name": name, f"autovibe.proxmox.{module}": {**its, **({"pool": "autovibe"} if name in pooled else {})}}
        for name, module, its in tasks
    ]


SPAWN = {
    "cores": 2,
    "memory": 512,
    "ip": "192.168.100.11/24",
    "tags": ["web"],
    "net": {"bridge": "vmbr1"},
    "state": "started",
}


#: A template that boots once, with a CD for cloud-init.
BUILT = {
    "disk_source": "null:1",
    "storage": "null",
    "customize": [{"argv": ["true"]}],
    "seed": {"user_data": "#cloud-config\n# {{ base }}\n"},
}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a server of the folder's files."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def image(folder: Path, number: int) -> str:
    """A disk image that no other test has brought to the node yet; returns its checksum."""
    content = str(number).encode().ljust(1 << 20, b"\0")
    (folder / f"{number}.raw").write_bytes(content)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def lives(lab: Lab, tokens: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Live once with each token, by name; what failed of each, if anything."""
    hosts = {}
    images = lab.state / "images"
    images.mkdir()
    for number, (name, (token, secret)) in enumerate(tokens.items()):
        file, base = lab.state / f"secret-{name}", 3000 + 10 * number
        file.write_text(secret)
        image(images, base)
        hosts[name] = {"base": base, "token": token, "secret_file": str(file)}
        hosts[name] |= {"images": str(images), "other": base + 1, "sum": image(images, base + 1)}
    inventory = lab.state / "lives.json"
    inventory.write_text(json.dumps({"all": {"hosts": {**hosts}, "vars": {"ansible_connection": "local"}}}))
    connection = {**lab.connection(), "api_token_id": "{{ token }}", "api_token_secret_file": "{{ secret_file }}"}
    book = {
        "hosts": "all",
        "gather_facts": False,
        "strategy": "ansible.builtin.host_pinned",
        "module_defaults": {"group/autovibe.proxmox.all": connection},
        "tasks": life(),
    }
    playbook = lab.state / "lives-play.json"
    playbook.write_text(json.dumps([book]))
    with served(images) as server:
        argv = lab.argv(str(playbook), {"server": server}, ("-i", str(inventory), "--forks", "4"))
        done = subprocess.run(
            argv, cwd=ROOT, env=lab.environment(), capture_output=True, text=True, timeout=300, check=False
        )
    assert "{\n" in done.stdout, done.stdout + done.stderr
    document = json.loads(done.stdout[done.stdout.index("{\n") :])
    results = [task["hosts"] for play in document["plays"] for task in play["tasks"]]
    return {name: its["msg"] for hosts in results for name, its in hosts.items() if its.get("failed")}


@pytest.fixture(scope="module", params=[8, 9])
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    state = tmp_path_factory.mktemp(f"state{request.param}")
    with running_lab(state, "--pve-version", str(request.param), site="least") as found:
        found.version = request.param
        yield found


def test_each_privilege_is_needed_and_named(lab: Lab) -> None:
    admin = Admin(lab)
    assert {role: sorted(its) for role, its in site.roles(lab.version).items()} == admin.roles()
    secret = (lab.folder / "token-secret").read_text().strip()
    tokens = {"nothing": ("autovibe", secret)}
    privileges = sorted({privilege for its in admin.roles().values() for privilege in its})
    if not BACKUPS:
        privileges.remove("VM.Backup")
    if lab.version == 9:  # all but this one are as in 8
        privileges = ["VM.GuestAgent.Unrestricted"]
    for privilege in privileges:
        name = "no-" + privilege.replace(".", "-")
        tokens[privilege] = (name, admin.token_without(privilege, name))
    failed = lives(lab, tokens)
    assert "nothing" not in failed, failed["nothing"]
    print(json.dumps(failed, indent=1))
    silent = [privilege for privilege in privileges if privilege not in failed]
    assert silent == [], failed
    unnamed = {privilege: message for privilege, message in failed.items() if privilege not in message}
    assert unnamed == {}
