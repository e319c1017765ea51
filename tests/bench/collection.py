"""The collection beside a bare proxmoxer script and a community.proxmox playbook: seconds and API calls, in one run.

Spawn (clone, configure, start) of one machine and of many at once, a checkpoint, a run that finds nothing to do, and an
inventory; with the lab answering at once, and as slow as a small real server (`autovibe lab up --latency pve84`). Each
contender is a process of its own, its start included.

    make bench        or: python tests/bench/collection.py --spawns 10 --converge 20 --guests 200 --latency off
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autovibe_lab import control
from autovibe_lab.testing import Aids
from proxmoxer import ProxmoxAPI

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
TEMPLATE = 100
CONTENDERS = ("bare", "community", "ours")


@dataclass
class Site:
    """A lab of its own, and the files of a round."""

    folder: Path
    guests: int = 0
    number: int = 1000
    endpoint: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.folder / "lab"

    def up(self) -> None:
        self.state.mkdir(mode=0o700)
        (self.state / control.MARK).write_text(json.dumps({"version": 1}))
        confs = self.state / "qemu-server"
        confs.mkdir()
        for vmid in range(100_000, 100_000 + self.guests):
            (confs / f"{vmid}.conf").write_text(f"name: guest-{vmid}\nmemory: 512\ntags: bench\ncores: 1\n")
        self.endpoint = control.up(self.state, port=0, image=False, site="full")
        self.aids = Aids.of(self.state)
        user, _, token = (self.state / "token-id").read_text().strip().partition("!")
        secret = (self.state / "token-secret").read_text().strip()
        self.connection = {"host": "127.0.0.1", "port": self.endpoint["port"], "node": "pve1", "user": user}
        self.connection |= {"token_name": token, "token_value": secret, "ca": str(self.state / "ca.pem")}
        self.file("connection.json", self.connection)
        if not self.guests:
            self._template()

    def _template(self) -> None:
        password = (self.state / "root-password").read_text().strip()
        api = ProxmoxAPI(
            "127.0.0.1",
            port=self.endpoint["port"],
            user="root@pam",
            password=password,
            verify_ssl=str(self.state / "ca.pem"),
        )
        node = api.nodes("pve1")
        node.qemu.post(vmid=TEMPLATE, name="base", memory=256, scsi0="null:1", net0="virtio,bridge=vmbr0", agent=1)
        while node.qemu(TEMPLATE).config.get().get("lock"):
            time.sleep(0.01)
        node.qemu(TEMPLATE).template.post()

    def down(self) -> None:
        control.down(self.state)

    def file(self, name: str, content: Any) -> Path:
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def machines(self, count: int) -> list[dict[str, Any]]:
        """So many new ones."""
        found = []
        for _ in range(count):
            self.number += 1
            mac = f"BC:24:11:00:{self.number >> 8 & 255:02X}:{self.number & 255:02X}"
            machine = {"vm_id": self.number, "name": f"bench-{self.number}", "template": TEMPLATE, "mac": mac}
            found.append(machine | {"net0": f"virtio={mac},bridge=vmbr1", "snapshot": f"s{self.number}"})
        return found


def playbook(site: Site, contender: str, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    user, name = site.connection["user"], site.connection["token_name"]
    options = {"api_host": "127.0.0.1", "api_port": site.connection["port"], "api_user": user, "api_token_id": name}
    options["api_token_secret"] = site.connection["token_value"]
    if contender == "ours":
        group = "group/autovibe.proxmox.all"
        options |= {"ca_path": site.connection["ca"], "node": "pve1"}
    else:
        group = "group/community.proxmox.proxmox"
        options |= {"validate_certs": False}
    play = {"hosts": "all", "gather_facts": False, "connection": "local", "strategy": "ansible.builtin.host_pinned"}
    return [play | {"module_defaults": {group: options}, "tasks": tasks}]


def ours(what: str) -> list[dict[str, Any]]:
    machine = {
        "state": "started",
        "vm_id": "{{ vm_id }}",
        "name": "{{ name }}",
        "source": {"vm_id": "{{ template }}"},
        "cores": 2,
        "memory": 512,
        "tags": ["bench"],
        "net": {"bridge": "vmbr1", "mac": "{{ mac }}"},
    }
    if what == "checkpoint":
        return [{"autovibe.proxmox.checkpoint": {"vm_id": "{{ vm_id }}", "name": "{{ snapshot }}"}}]
    return [{"autovibe.proxmox.machine": machine}]


def community(what: str) -> list[dict[str, Any]]:
    kvm, timeout = "community.proxmox.proxmox_kvm", 600
    if what == "checkpoint":
        snap = {"vmid": "{{ vm_id }}", "snapname": "{{ snapshot }}", "state": "present", "timeout": timeout}
        return [{"community.proxmox.proxmox_snap": snap}]
    clone = {"node": "pve1", "clone": "base", "vmid": "{{ template }}", "newid": "{{ vm_id }}", "name": "{{ name }}"}
    configure = {"node": "pve1", "vmid": "{{ vm_id }}", "update": True, "update_unsafe": True, "cores": 2}
    configure |= {"memory": 512, "tags": ["bench"], "net": {"net0": "virtio={{ mac }},bridge=vmbr1"}}
    start = {"node": "pve1", "vmid": "{{ vm_id }}", "state": "started", "timeout": timeout}
    linked = {"full": False, "format": "unspecified", "timeout": timeout}
    return [{kvm: clone | linked}, {kvm: configure}, {kvm: start}]


def command(site: Site, contender: str, what: str, machines: list[dict[str, Any]]) -> list[str]:
    """The process that does it."""
    if contender == "bare":
        script = str(Path(__file__).with_name("bare.py"))
        return [sys.executable, script, str(site.folder / "connection.json"), what, str(site.file("m.json", machines))]
    if what == "inventory":
        return [str(BINARIES / "ansible-inventory"), "--list", "-i", str(inventory_source(site, contender))]
    hosts = {machine["name"]: {key: machine[key] for key in machine if key != "name"} for machine in machines}
    for name, variables in hosts.items():
        variables |= {"name": name, "ansible_python_interpreter": sys.executable}
    inventory = site.file("hosts.json", {"all": {"hosts": hosts}})
    tasks = ours(what) if contender == "ours" else community(what)
    book = site.file("book.json", playbook(site, contender, tasks))
    return [str(BINARIES / "ansible-playbook"), "-i", str(inventory), str(book)]


def inventory_source(site: Site, contender: str) -> Path:
    if contender == "ours":
        source = {"plugin": "autovibe.proxmox.machines", "api_host": "127.0.0.1", "ca_path": site.connection["ca"]}
        source |= {"api_port": site.connection["port"], "api_user": site.connection["user"]}
        source |= {"api_token_id": site.connection["token_name"], "api_token_secret": site.connection["token_value"]}
        return site.file("bench.autovibe.yml", source)
    source = {"plugin": "community.proxmox.proxmox", "url": f"https://127.0.0.1:{site.connection['port']}"}
    source |= {"user": site.connection["user"], "token_id": site.connection["token_name"], "validate_certs": False}
    source |= {"token_secret": site.connection["token_value"], "want_facts": False}
    return site.file("bench.proxmox.yml", source)


def measured(site: Site, contender: str, what: str, machines: list[dict[str, Any]]) -> tuple[float, int]:
    """Seconds and calls. Ends the benchmark when it fails."""
    argv = command(site, contender, what, machines)
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_LOCALHOST_WARNING": "false"}
    environment |= {
        "ANSIBLE_DEPRECATION_WARNINGS": "false",
        "ANSIBLE_INVENTORY_ENABLED": PLUGINS,
        "PYTHONWARNINGS": "ignore",
    }
    environment["REQUESTS_CA_BUNDLE"] = site.connection["ca"]  # where it is set, it goes before validate_certs: false
    last, begun = site.aids.last(), time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begun
    if done.returncode != 0 or (what == "inventory" and f"guest-{100_000}" not in done.stdout):
        sys.exit(f"{contender}, {what}: rc {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return seconds, len(site.aids.calls(last))


PLUGINS = "autovibe.proxmox.machines,community.proxmox.proxmox,ansible.builtin.yaml,ansible.builtin.ini"
HEADER = ("latency", "what", "bare s", "ours s", "community s", "ours/bare", "community/ours")
FORM = "{:8} {:24} {:>8} {:>8} {:>12} {:>10} {:>15}   {}"


def show(latency: str, what: str, found: dict[str, tuple[float, int]]) -> None:
    def seconds(contender: str) -> str:
        return f"{found[contender][0]:.2f}" if contender in found else "-"

    def ratio(above: str, below: str) -> str:
        return f"{found[above][0] / found[below][0]:.2f}" if above in found and below in found else "-"

    calls = " / ".join(str(found[name][1]) if name in found else "-" for name in ("bare", "ours", "community"))
    ratios = (ratio("ours", "bare"), ratio("community", "ours"))
    print(FORM.format(latency, what, *map(seconds, ("bare", "ours", "community")), *ratios, calls), flush=True)


def bench(site: Site, latency: str, options: argparse.Namespace) -> None:
    site.aids.latency(profile=latency)

    def compare(what: str, label: str, machines: dict[str, list[dict[str, Any]]]) -> None:
        found = {name: measured(site, name, what, machines[name]) for name in options.contenders}
        show(latency, label, found)

    one = {name: site.machines(1) for name in options.contenders}
    compare("spawn", "spawn of 1", one)
    compare("checkpoint", "checkpoint of 1", one)
    many = {name: site.machines(options.spawns) for name in options.contenders}
    compare("spawn", f"spawn of {options.spawns}", many)
    site.aids.latency(profile="off")
    same = site.machines(options.converge)
    measured(site, "bare", "spawn", same)
    site.aids.latency(profile=latency)
    compare("converge", f"nothing to do, {options.converge}", dict.fromkeys(options.contenders, same))


def bench_inventory(site: Site, latency: str, options: argparse.Namespace) -> None:
    site.aids.latency(profile=latency)
    found = {name: measured(site, name, "inventory", []) for name in options.contenders}
    show(latency, f"inventory of {options.guests}", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spawns", type=int, default=50, help="how many at once")
    parser.add_argument("--converge", type=int, default=200, help="machines of the run that finds nothing to do")
    parser.add_argument("--guests", type=int, default=1000, help="guests of the inventory")
    parser.add_argument("--latency", default="off,pve84")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), type=lambda text: text.split(","))
    options = parser.parse_args()
    print(FORM.format(*HEADER, "calls: bare / ours / community"))
    for kind, guests, work in (("machines", 0, bench), ("inventory", options.guests, bench_inventory)):
        site = Site(Path(tempfile.mkdtemp(prefix=f"autovibe-bench-{kind}-")), guests)
        try:
            site.up()
            for latency in options.latency.split(","):
                work(site, latency, options)
        finally:
            site.down()
            shutil.rmtree(site.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
