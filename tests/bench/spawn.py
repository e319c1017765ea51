"""Spawns through the controller beside the bare API calls that they need, on null guests, in one run.

For 1 machine and for 20: the seconds from asking until every machine's spawn operation has succeeded, and the seconds
that a plain proxmoxer script takes for the same calls (clone, configure, start, each waited for). Both run on the same
lab, in turn, several times; the medians and their ratio are printed: with a lab that answers at once, where all that is
left is our own time, and with one that takes the time of a small real server (`--latency pve84`).

    make bench        or: python tests/bench/spawn.py --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proxmoxer import ProxmoxAPI  # noqa: E402
from sites import Site, running_site  # noqa: E402

#: A small node does about this many things at once; the collection keeps to it too.
AT_ONCE = 4


def connect(site: Site) -> ProxmoxAPI:
    lab = site.state / "lab"
    user, _, token = (lab / "token-id").read_text().strip().partition("!")
    return ProxmoxAPI(
        f"127.0.0.1:{site.lab_port}",
        user=user,
        token_name=token,
        token_value=(lab / "token-secret").read_text().strip(),
        verify_ssl=str(lab / "ca.pem"),
    )


def wait(node: object, upid: str) -> None:
    pause = 0.02
    while True:
        status = node.tasks(upid).status.get()
        if status["status"] == "stopped":
            assert status["exitstatus"] == "OK", status
            return
        time.sleep(pause)
        pause = min(0.2, pause * 1.5)


def bare_spawn(site: Site, template: int, vm_id: int) -> None:
    node = connect(site).nodes("pve1")
    wait(node, node.qemu(template).clone.post(newid=vm_id, name=f"bare-{vm_id}", description="bench", pool="autovibe"))
    node.qemu(vm_id).config.put(
        cores=1, memory=1024, net0=f"virtio=BC:24:11:00:{vm_id >> 8 & 255:02X}:{vm_id & 255:02X},bridge=vmbr1",
        ipconfig0="ip=192.168.100.250/24", tags="autovibe",
    )  # fmt: skip
    wait(node, node.qemu(vm_id).status.start.post())


def bare(site: Site, template: int, count: int, first: int) -> float:
    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda number: bare_spawn(site, template, first + number), range(count)))
    return time.monotonic() - begun


def through_controller(site: Site, count: int) -> float:
    """From the transaction that asks for the machines to the last operation's success."""
    from autovibe import db, machines, operations, projects
    from autovibe.models import Operation
    from autovibe.settings import load_settings
    from sqlalchemy import select

    settings = load_settings(state_dir=site.state, hub_port=site.hub_port)
    begun = time.monotonic()
    with db.session_scope(settings) as session:
        project = projects.get(session, "bench")
        made = [
            machines.spawn(session, settings, project=project, prompt="bench", template="null") for _ in range(count)
        ]
        asked = [operations.pending(session, machine.uuid, "spawn")[0].uuid for machine in made]
    ended: list[str] = []
    while len(ended) < count:
        time.sleep(0.01)
        with db.session_scope(settings) as session:
            ended = session.scalars(
                select(Operation.status).where(Operation.uuid.in_(asked), Operation.finished_at.is_not(None))
            ).all()
        assert "failed" not in ended, ended
    taken = time.monotonic() - begun
    clear(site, settings, [machine.uuid for machine in made])
    return taken


def clear(site: Site, settings: object, made: list) -> None:
    """End the machines, so that every round begins with the same node."""
    from autovibe import db, machines

    with db.session_scope(settings) as session:
        for uuid in made:
            machines.terminate(session, settings, machines.find(session, uuid))
    while True:
        with db.session_scope(settings) as session:
            if all(machines.find(session, uuid).status == "terminated" for uuid in made):
                return
        time.sleep(0.1)


def compare(latency: str, rounds: int) -> None:
    """Print one row for 1 machine and one for 20, with this latency of the lab."""
    with running_site("--no-image", "--latency", latency) as site:
        template = site.json("template", "build", "null", "--null")["vm_id"]
        site.autovibe("project", "create", "bench", "--budget", "100")
        through_controller(site, 1)  # the first one imports and connects
        vm_id = 50_000
        for count in (1, 20):
            ours, theirs = [], []
            for _ in range(rounds):
                theirs.append(bare(site, template, count, vm_id))
                vm_id += count
                ours.append(through_controller(site, count))
            low, high = statistics.median(theirs), statistics.median(ours)
            print(f"{latency:>8} {count:>8} {low:>8.2f} {high:>9.2f} {high - low:>7.2f} {high / low:>6.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"Spawns through the hub, null guests, medians of {rounds} rounds; seconds")
    print(f"{'latency':>8} {'machines':>8} {'bare':>8} {'autovibe':>9} {'over':>7} {'ratio':>6}")
    for latency in ("off", "pve84"):
        compare(latency, rounds)


if __name__ == "__main__":
    main()
