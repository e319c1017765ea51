"""Checkpoints through the hub beside the bare snapshot call, and the manifest of a workspace of 20,000 files.

From the transaction that asks for a checkpoint until it is verified, and the seconds of a plain proxmoxer script for
the same snapshot, in turn on one null guest: with a lab that answers at once, and one as slow as a real server. The
manifest is taken for the first time, then again (nothing, and one file in a hundred, has changed), packed and compared.

    make bench        or: python tests/bench/checkpoints.py --rounds 10
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sites import Site, running_site  # noqa: E402
from spawn import connect, wait  # noqa: E402

FILES = 20_000


def bare(site: Site, vm_id: int, name: str) -> float:
    node = connect(site).nodes("pve1")
    begun = time.monotonic()
    wait(node, node.qemu(vm_id).snapshot.post(snapname=name, description="bench"))
    return time.monotonic() - begun


def through_hub(settings: Any, machine_uuid: Any) -> float:
    """From the question to `verified`."""
    from autovibe import db, machines
    from autovibe.models import Checkpoint

    begun = time.monotonic()
    with db.session_scope(settings) as session:
        made, _ = machines.checkpoint(session, settings, machines.find(session, machine_uuid))
    while True:
        with db.session_scope(settings) as session:
            status = session.get_one(Checkpoint, made.uuid).verification_status
        if status == "verified":
            return time.monotonic() - begun
        assert status == "pending", status
        time.sleep(0.01)


def snapshots(latency: str, rounds: int) -> None:
    """Print one row with this latency of the lab."""
    from autovibe.settings import load_settings

    with running_site("--no-image", "--latency", latency) as site:
        site.autovibe("template", "build", "--null")
        site.autovibe("project", "create", "bench", "--budget", "100")
        asked = ("bench", "--command", "true", "--template", "autovibe-null", "--no-wait")
        machine = site.json("machine", "spawn", *asked)
        settings = load_settings(state_dir=site.state, hub_port=site.hub_port)
        through_hub(settings, machine["uuid"])  # after the spawn; and the first one imports and connects
        ours, theirs = [], []
        for number in range(rounds):
            theirs.append(bare(site, machine["vm_id"], f"bare-{number}"))
            ours.append(through_hub(settings, machine["uuid"]))
        low, high = statistics.median(theirs), statistics.median(ours)
        print(f"{latency:>8} {low:>8.2f} {high:>9.2f} {high - low:>7.2f}", flush=True)


def timed(what: str, do: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    done = do()
    print(f"{what:<28} {time.perf_counter() - begun:>7.3f} s", flush=True)
    return done


def manifest() -> None:
    """Print how long a manifest takes: in the guest to take it, on the hub to pack, read and compare it."""
    from autovibe import manifests
    from autovibe_agent.manifest import Manifest

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"package{n % 20}" / f"module{n % 400}" / f"file{n}.py" for n in range(FILES)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(2000))
            os.utime(path, (1_700_000_000, 1_700_000_000))
        time.sleep(2.1)  # younger files are read each time
        taker = Manifest(Path(folder))
        first = timed("first", taker.take)
        assert len(first["files"]) == FILES
        timed("again, nothing changed", taker.take)
        for path in paths[::100]:
            path.write_bytes(os.urandom(2000))
        second = timed("again, 1 of 100 changed", taker.take)
    packed = timed("packed for the database", lambda: manifests.pack(second))
    timed("unpacked", lambda: manifests.unpack(packed))
    found = timed("compared", lambda: manifests.diff(first, second))
    assert len(found.changed) == FILES // 100
    print(f"{len(packed) / 1e6:.2f} MB in the database")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=("snapshots", "manifest"))
    given = parser.parse_args()
    if given.only != "manifest":
        print(f"Checkpoints of a null guest, medians of {given.rounds}; seconds")
        print(f"{'latency':>8} {'bare':>8} {'autovibe':>9} {'over':>7}")
        for latency in ("off", "pve84"):
            snapshots(latency, given.rounds)
    if given.only != "snapshots":
        print(f"Manifest of {FILES} files")
        manifest()


if __name__ == "__main__":
    main()
