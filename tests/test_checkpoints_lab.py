"""Checkpoints end to end on null guests: verified, lost behind our back, pruned, branched from; a killed worker."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from autovibe import db
from autovibe.models import Checkpoint
from autovibe.settings import Settings, load_settings
from null_agents import node_of
from test_worker_kills import Aids, kill_worker_while_held, operation, wait_for


@pytest.fixture(scope="module")
def site(null_site: Any) -> Any:
    null_site.autovibe("template", "build", "--null")
    null_site.autovibe("project", "create", "tree", "--budget", "5")
    return null_site


@pytest.fixture(scope="module")
def aids(site: Any) -> Aids:
    return Aids(site)


@pytest.fixture(scope="module")
def settings(site: Any) -> Settings:
    return load_settings(state_dir=site.state, hub_port=site.hub_port)


@pytest.fixture(scope="module")
def node(site: Any) -> Any:
    """The node as its owner finds it, beside the hub."""
    return node_of(site)


@pytest.fixture
def machine(site: Any) -> dict[str, Any]:
    """A machine with three checkpoints."""
    made = spawned(site)
    made["checkpoints"] = [site.json("machine", "checkpoint", made["uuid"])["uuid"] for _ in range(3)]
    return made


def spawned(site: Any, *arguments: str) -> dict[str, Any]:
    asked = ("tree", "--command", "true", "--no-wait", *(arguments or ("--template", "autovibe-null")))
    made = site.json("machine", "spawn", *asked)
    done = operation(site, made["uuid"], "spawn")
    assert done["status"] == "succeeded", done
    return made


def status(site: Any, uuid: str) -> str:
    return site.json("checkpoint", "show", uuid)["status"]


def statuses(site: Any, machine: dict[str, Any]) -> list[str]:
    return [status(site, uuid) for uuid in machine["checkpoints"]]


def name(uuid: str) -> str:
    return f"av-{uuid.replace('-', '')}"


def remove_by_hand(node: Any, vm_id: int, snapshot: str) -> None:
    upid = node.qemu(vm_id).snapshot(snapshot).delete()
    wait_for(lambda: node.tasks(upid).status.get()["status"] == "stopped", "the snapshot's removal")


def to_remove(site: Any, *arguments: str) -> set[str]:
    return {row["uuid"] for row in site.json("checkpoint", "prune", "tree", *arguments)["remove"]}


def let_age(settings: Settings, *uuids: str) -> None:
    with db.session_scope(settings) as session:
        for uuid in uuids:
            session.get_one(Checkpoint, uuid).created_at -= timedelta(days=400)


def test_what_was_deleted_behind_our_back_is_missing_after_one_look(site: Any, node: Any, machine: Any) -> None:
    assert site.json("checkpoint", "verify")["missing"] == []
    lost = machine["checkpoints"][1]
    remove_by_hand(node, machine["vm_id"], name(lost))
    looked = site.run("checkpoint", "verify", "--json")
    assert looked.returncode == 1
    assert json.loads(looked.stdout)["missing"] == [lost]
    assert statuses(site, machine) == ["verified", "missing", "verified"]
    refused = site.run("machine", "spawn", "tree", "--command", "true", "--from", lost, "--no-wait")
    assert (refused.returncode, "is missing" in refused.stderr) == (1, True)
    # One that is gone is let go, too.
    assert site.json("checkpoint", "delete", lost)["status"] == "pruned"


def test_a_look_goes_on_after_the_worker_was_killed(site: Any, aids: Aids, machine: Any) -> None:
    asked = kill_worker_while_held(
        site, aids, rf"/nodes/pve1/qemu/{machine['vm_id']}/snapshot",
        lambda: site.json("checkpoint", "verify", machine["checkpoints"][0], "--no-wait")["operation"],
    )  # fmt: skip
    began = datetime.now(UTC)
    assert site.json("checkpoint", "verify")["missing"] == []
    assert statuses(site, machine) == ["verified"] * 3
    assert asked
    seen = site.json("checkpoint", "show", machine["checkpoints"][0])["verified_at"]
    assert datetime.fromisoformat(seen) > began - timedelta(minutes=1)


def test_a_checkpoint_is_tried_on_a_machine_that_is_removed_again(
    site: Any, aids: Aids, settings: Settings, node: Any, machine: Any
) -> None:
    guest = node.qemu(machine["vm_id"]).agent
    guest.exec.post(command=["mkdir", "-p", "/workspace"])
    for name_ in ("same", "changed"):
        guest("file-write").post(file=f"/workspace/{name_}", content=name_)
    made = site.json("machine", "checkpoint", machine["uuid"])["uuid"]
    right = {"size": 4, "sha256": hashlib.sha256(b"same").hexdigest(), "mode": "0644"}
    with db.session_scope(settings) as session:
        files = [{"path": path, **right} for path in ("changed", "same")]
        session.get_one(Checkpoint, made).file_manifest = {"files": files, "truncated": False}
    kill_worker_while_held(
        site, aids, r"/nodes/pve1/qemu/\d+/status/start",
        lambda: site.json("checkpoint", "verify", made, "--restore", "--no-wait"),
    )  # fmt: skip
    tried = wait_for(lambda: _tried(settings, made), "the end of the trial", 180)
    assert (tried["compared"], tried["different"]) == (2, 1)
    wait_for(lambda: not aids.vms(made), "the end of the machine that was tried")
    again = site.run("checkpoint", "verify", made, "--restore", "--json")
    assert (again.returncode, json.loads(again.stdout)) == (1, {"compared": 2, "different": ["changed"]})
    assert aids.vms(made) == []


def _tried(settings: Settings, uuid: str) -> dict[str, Any] | None:
    with db.session_scope(settings) as session:
        return session.get_one(Checkpoint, uuid).metadata_.get("tried")


def test_pruning_goes_on_after_the_worker_was_killed(site: Any, aids: Aids, settings: Settings, machine: Any) -> None:
    first, second, third = machine["checkpoints"]
    let_age(settings, first, second)
    assert to_remove(site) == {first, second}
    assert set(aids.snapshots(machine["vm_id"])) == {name(uuid) for uuid in machine["checkpoints"]}
    kill_worker_while_held(
        site, aids, rf"/nodes/pve1/qemu/{machine['vm_id']}/snapshot/{name(second)}",
        lambda: site.json("checkpoint", "prune", "tree", "--yes"),
    )  # fmt: skip
    done = operation(site, machine["uuid"], "prune")
    assert (done["status"], done["attempts"]) == ("succeeded", 2), done
    assert aids.snapshots(machine["vm_id"]) == [name(third)]
    assert aids.tasks(machine["vm_id"])["qmdelsnapshot"] == 2, "a snapshot was removed twice"
    assert statuses(site, machine) == ["pruned", "pruned", "verified"]
    assert site.json("checkpoint", "verify")["missing"] == []


def test_what_a_branch_stands_on_outlives_everything_but_the_branch(
    site: Any, settings: Settings, aids: Aids, machine: Any
) -> None:
    first, *others = machine["checkpoints"]
    branch = spawned(site, "--from", first)
    promoted = site.json("checkpoint", "show", first)["template_vm_id"]
    refused = site.run("checkpoint", "delete", first)
    assert (refused.returncode, "branched from" in refused.stderr) == (1, True)
    site.autovibe("machine", "terminate", machine["uuid"])
    final = site.json("machine", "show", machine["uuid"])["last_checkpoint"]
    # The stopped machine stays as the carrier of its checkpoints; its end becomes a template by itself.
    assert operation(site, machine["uuid"], "promote")["status"] == "succeeded"
    assert site.json("checkpoint", "show", final)["carrier"] == "snapshot"
    let_age(settings, first, *others, final)
    mine = {first, *others, final}
    assert mine & to_remove(site) == set(others)
    # The branch never enrolled: nothing is left of it, and nothing stands on the first checkpoint any more.
    site.autovibe("machine", "terminate", branch["uuid"])
    other = spawned(site)
    site.autovibe("machine", "checkpoint", other["uuid"])
    site.autovibe("machine", "terminate", other["uuid"])
    assert mine & to_remove(site, "--yes") == mine
    wait_for(lambda: not aids.vms(machine["uuid"]), "the end of the machine's VM and of its templates", 180)
    assert {status(site, uuid) for uuid in mine} == {"pruned"}
    assert promoted not in [int(path.stem) for path in (aids.folder / "qemu-server").glob("*.conf")]
    assert site.json("checkpoint", "verify")["missing"] == []
