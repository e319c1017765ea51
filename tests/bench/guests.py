"""From the question for a machine to its agent's first word, and to its end, with real QEMU guests.

The seconds from the transaction that asks until the VM has been cloned, started and given its identity (the spawn
operation's end), until its agent has enrolled (which counts as its first heartbeat), until the hub has the result of a
command that does nothing, and until the machine has ended with its final checkpoint. Medians.

    make bench        or: python tests/bench/guests.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sites import Site, running_site  # noqa: E402

STAGES = ("spawned", "enrolled", "result", "ended")


def stages(site: Site) -> dict[str, float]:
    """Seconds after the question, by stage."""
    from autovibe import db
    from autovibe.models import Machine, Operation
    from autovibe.settings import load_settings
    from sqlalchemy import select

    done = site.json("machine", "spawn", "bench", "--command", "true")
    with db.session_scope(load_settings(state_dir=site.state)) as session:
        machine = session.get_one(Machine, UUID(done["uuid"]))
        mine = select(Operation).where(Operation.machine_uuid == machine.uuid)
        operations: dict[str, Any] = {one.kind: one for one in session.scalars(mine)}
        at = {
            "spawned": operations["spawn"].finished_at,
            "enrolled": machine.enrolled_at,
            "result": operations["terminate"].created_at,
            "ended": operations["terminate"].finished_at,
        }
        return {name: (at[name] - operations["spawn"].created_at).total_seconds() for name in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with running_site() as site:
        site.autovibe("template", "build")
        site.autovibe("project", "create", "bench", "--budget", "10")
        accelerator = json.loads((site.state / "lab" / "endpoint.json").read_text())["accel"]
        seen = [stages(site) for _ in range(rounds)]
    print(f"Machines with QEMU ({accelerator}), medians of {rounds}; seconds after the question")
    print("".join(f"{name:>10}" for name in STAGES))
    print("".join(f"{statistics.median(one[name] for one in seen):>10.1f}" for name in STAGES))


if __name__ == "__main__":
    main()
