"""What a machine's end costs that leaves its workspace with the hub: from its command's end until the result is told.

The real agent beside a null guest (`null_agents`), with workspaces of some sizes; before the result the agent takes the
manifest and hands the files over. Of these, the manifest and the packing are measured again by themselves.

    make bench        or: python tests/bench/ends.py
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from null_agents import NullAgents  # noqa: E402
from sites import Site, running_site  # noqa: E402

#: (files, bytes of each)
WORKSPACES = ((3, 2_000), (2_000, 8_000), (20_000, 2_000), (10, 20_000_000))
#: Text that packs to about a third, as sources do.
FILL = """
import pathlib, random, sys
count, size = map(int, sys.argv[1:])
words = [bytes(random.choices(b"abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(4000)]
block = b" ".join(random.choices(words, k=200_000))
for n in range(count):
    path = pathlib.Path(f"folder{n % 200}") / f"file{n}.txt"
    path.parent.mkdir(exist_ok=True)
    begin = random.randrange(max(1, len(block) - size))
    path.write_bytes((block[begin:] * (size // (len(block) - begin) + 1))[:size])
"""


def timed(do: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    done = do()
    return time.perf_counter() - begun, done


def end(site: Site, agents: NullAgents, count: int, size: int) -> None:
    """Print one row."""
    from uuid import UUID

    from autovibe import client
    from autovibe.settings import load_settings
    from autovibe_agent.hand_over import pack
    from autovibe_agent.manifest import Manifest
    from autovibe_agent.paths import Paths, User

    asked = {"project": "bench", "type": "command", "template": "autovibe-null"}
    with client.connect(load_settings(state_dir=site.state)) as hub:
        command = ["python3", "-c", FILL, str(count), str(size)]
        made = hub.post("/machines", None, asked | {"command": command})["machine"]
    guest = agents.add(UUID(made["uuid"]))
    while site.json("machine", "show", made["uuid"])["status"] != "terminated":
        time.sleep(0.2)
    (told,) = re.findall(r"result succeeded reported after ([\d.]+) s", guest.log.read_text())
    manifest_seconds, manifest = timed(Manifest(guest.workspace).take)
    user = User.named(guest.user, Paths(guest.root))
    names = [file["path"] for file in manifest["files"]]
    with tempfile.TemporaryDirectory() as folder:
        pack_seconds, (_, packed) = timed(lambda: pack(guest.workspace, names, user, Path(folder) / "workspace.tar.gz"))
    total = sum(file["size"] for file in manifest["files"])
    print(
        f"{len(names):>7} {total / 1e6:>8.1f} {packed / 1e6:>8.1f} {manifest_seconds:>9.2f} {pack_seconds:>8.2f} "
        f"{float(told):>7.1f}",
        flush=True,
    )


def main() -> None:
    with running_site("--no-image", hub=False) as site, NullAgents(site) as agents:
        site.environment["AUTOVIBE_HUB_URL_FOR_GUESTS"] = f"https://127.0.0.1:{site.hub_port}"
        site.autovibe("up", "--detach")
        site.autovibe("template", "build", "--null")
        site.autovibe("project", "create", "bench", "--budget", "100")
        print("A machine's end with its workspace; MB, seconds")
        print(f"{'files':>7} {'MB':>8} {'packed':>8} {'manifest':>9} {'packing':>8} {'result':>7}")
        for count, size in WORKSPACES:
            end(site, agents, count, size)


if __name__ == "__main__":
    main()
