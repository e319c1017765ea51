"""`checkpoint_info`, `machine_info`, `usage_info` and the inventory plugin `machines`, against one small fleet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from labs import ROOT, running_lab
from steps import Task

OWNER = {"installation": "11111111-2222-3333-4444-555555555555", "machine": "aaaaaaaa-2222-3333-4444-555555555555"}
TAGS = ["autovibe", "project-shop", "type-claude_code"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A lab with shop1 (running, two snapshots), db (stopped), one snapshot promoted, and branch, a clone of that."""
    with running_lab(tmp_path_factory.mktemp("state")) as lab:
        source = {"source": {"name": "null"}, "cores": 2, "memory": 512}
        shop = {"vm_id": 601, "name": "shop1", "tags": [*TAGS, "id-aaaaaaaa222233334444555555555555"]}
        done = lab.tasks_run(
            Task("machine", {**shop, **source, "identity": OWNER, "state": "started", "pool": "autovibe"}).play("shop"),
            Task("machine", {"vm_id": 602, "name": "db", "tags": ["project-bank"], **source}).play("db"),
            Task("checkpoint", {"vm_id": 601, "name": "one", "description": "first"}).play("one"),
            Task("checkpoint", {"vm_id": 601, "name": "two", "ram": True}).play("two"),
            Task("checkpoint", {"vm_id": 601, "name": "two", "state": "promoted", "promote_vm_id": 603}).play(
                "promote"
            ),
            Task("machine", {"vm_id": 604, "name": "branch", "source": {"vm_id": 603}, "tags": []}).play("branch"),
            Task("checkpoint", {"vm_id": 601, "name": "one", "state": "restored"}).play("back"),
            Task("machine", {"vm_id": 601, "state": "started"}).play("on"),
        )
        assert done.rc == 0, done.output
        yield lab


def calls_of(lab, run, step):
    began, ended = run.spans[step]
    return [f"{call['method']} {call['path']}" for call in lab.aid("GET", "calls") if began <= call["at"] <= ended]


def test_the_tree_of_a_machine(fleet):
    run = fleet.tasks_run(
        Task("checkpoint_info", {"machine_name": "shop1", "sizes": True}).play("tree"),
        Task("checkpoint_info", {"vm_id": 603}).play("template"),
        Task("checkpoint_info", {"vm_id": 601, "name": "two", "below": False}).play("one"),
        Task("checkpoint_info", {"vm_id": 699}).play("missing", ignore_errors=True),
        Task("checkpoint_info", {"vm_id": 602, "identity": OWNER}).play("other", ignore_errors=True),
    )
    assert run.rc == 0, run.output
    tree = run.named["tree"]
    assert not tree["changed"]
    assert tree["machine"]["name"] == "shop1"
    assert tree["machine"]["bases"] == [tree["machine"]["bases"][0]]
    one, two, template = tree["checkpoints"]
    assert (one["id"], one["parent"], one["children"], one["current"]) == ("601@one", None, ["601@two"], True)
    assert (one["description"], one["ram"], one["whole"]) == ("first", False, True)
    assert (two["id"], two["parent"], two["children"], two["ram"]) == ("601@two", "601@one", ["603"], True)
    assert (template["id"], template["parent"], template["name"]) == ("603", "601@two", "two")
    assert template["carrier"] == "template"
    assert tree["clones"] == [{"vm_id": 604, "node": "pve1", "name": "branch", "status": "stopped", "of": "603"}]
    assert [one["id"] for one in run.named["template"]["checkpoints"]] == ["603"]
    assert run.named["template"]["clones"] == tree["clones"]
    assert [one["id"] for one in run.named["one"]["checkpoints"]] == ["601@two"]
    assert run.named["missing"]["error_class"] == "NotFound"
    assert run.named["other"]["error_class"] == "IdentityError"


def test_machines_are_listed_in_one_call(fleet):
    run = fleet.tasks_run(
        Task("machine_info", {}).play("everything"),
        Task("machine_info", {"project": "shop", "templates": False}).play("project"),
        Task("machine_info", {"identity": {"machine": OWNER["machine"]}}).play("identity"),
        Task("machine_info", {"pool": "autovibe", "tags": TAGS, "status": "running"}).play("pool"),
        Task("machine_info", {"vm_id": 601, "config": True, "snapshots": True, "addresses": True}).play("full"),
        Task("machine_info", {"name": "nope"}).play("nothing"),
    )
    assert run.rc == 0, run.output
    by_step = {step: [one["vm_id"] for one in result["machines"]] for step, result in run.named.items()}
    assert [vm_id for vm_id in by_step["everything"] if vm_id > 600] == [601, 602, 603, 604]
    assert by_step["project"] == [601]
    assert by_step["identity"] == [601]
    assert by_step["pool"] == [601]
    assert by_step["nothing"] == []
    assert calls_of(fleet, run, "everything") == ["GET /cluster/resources"]
    assert calls_of(fleet, run, "identity") == ["GET /cluster/resources", "GET /nodes/pve1/qemu/601/config"]
    found = run.named["full"]["machines"][0]
    assert (found["project"], found["machine_type"], found["cores"], found["memory"]) == ("shop", "claude_code", 2, 512)
    assert found["identity"]["machine"] == OWNER["machine"]
    assert {one["name"] for one in found["snapshots"]} == {"one", "two"}
    assert isinstance(found["addresses"], list)


def test_usage_is_what_is_allocated_times_how_long(fleet):
    run = fleet.tasks_run(
        Task("usage_info", {"vm_id": 601}).play("start"),
        Task("usage_info", {"since": "2026-01-01T00:00:00", "group_by": ["project", "tag", "pool"]}).play("since"),
        Task("usage_info", {"since": "2999-01-01"}).play("future", ignore_errors=True),
        Task("usage_info", {"since": "yesterday"}).play("words", ignore_errors=True),
    )
    assert run.rc == 0, run.output
    (one,) = run.named["start"]["usage"]
    seconds = one["billed"]["running_seconds"]
    assert one["allocated"]["cores"] == 2
    assert one["billed"]["core_seconds"] == 2 * seconds
    assert one["billed"]["memory_mib_seconds"] == 512 * seconds
    assert one["billed"]["disk_mib_seconds"] == one["allocated"]["disk_mib"] * seconds
    assert set(one["measured"]) >= {"cpu", "memory_bytes", "net_in_bytes", "disk_write_bytes"}
    since = run.named["since"]
    db = next(one for one in since["usage"] if one["vm_id"] == 602)
    assert db["billed"]["core_seconds"] == 0
    assert db["billed"]["disk_mib_seconds"] > 0
    assert since["groups"]["project"]["bank"]["disk_mib_seconds"] == db["billed"]["disk_mib_seconds"]
    assert since["total"]["machines"] == sum(group["machines"] for group in since["groups"]["project"].values())
    assert since["groups"]["tag"]["type-claude_code"]["machines"] == 1
    assert calls_of(fleet, run, "since") == ["GET /cluster/resources"]
    assert "in the future" in run.named["future"]["msg"]
    assert "no time" in run.named["words"]["msg"]


def inventory(lab, tmp_path: Path, *arguments: str, **options):
    path = tmp_path / "lab.autovibe.yml"
    connection = {key: value for key, value in lab.connection().items() if key != "node"}
    path.write_text(yaml.safe_dump({"plugin": "autovibe.proxmox.machines", **connection, **options}))
    tool = str(Path(sys.executable).with_name("ansible-inventory"))
    argv = [tool, "-i", str(path), *(arguments or ("--list",))]
    env = lab.environment() | {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true"}
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=180, check=False)


def listed(lab, tmp_path: Path, **options):
    began = len(lab.aid("GET", "calls"))
    done = inventory(lab, tmp_path, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = [f"{call['method']} {call['path']}" for call in lab.aid("GET", "calls")[began:]]
    document = json.loads(done.stdout, object_hook=lambda found: found.get("__ansible_unsafe", found))
    return document, document["_meta"]["hostvars"], calls


def test_the_inventory_is_one_call(fleet, tmp_path):
    groups, hosts, calls = listed(fleet, tmp_path)
    assert calls == ["GET /cluster/resources"]
    assert {"shop1", "db", "branch"} <= set(hosts)
    assert "two" not in hosts
    assert groups["project_shop"]["hosts"] == ["shop1"]
    assert groups["type_claude_code"]["hosts"] == ["shop1"]
    assert groups["status_running"]["hosts"] == ["shop1"]
    assert groups["pool_autovibe"]["hosts"] == ["shop1"]
    assert "db" in groups["node_pve1"]["hosts"]
    assert (hosts["shop1"]["proxmox_vm_id"], hosts["shop1"]["proxmox_project"]) == (601, "shop")


def test_the_inventory_asks_for_what_is_wanted_and_composes(fleet, tmp_path):
    groups, hosts, calls = listed(
        fleet,
        tmp_path,
        config=True,
        addresses=True,
        templates=True,
        filters=["proxmox_vm_id > 600"],
        compose={"big": "proxmox_memory >= 512", "ansible_host": "proxmox_addresses | first | default('none')"},
        groups={"banks": "proxmox_project == 'bank'"},
        keyed_groups=[{"key": "proxmox_cores | string", "prefix": "cores"}],
        strict=True,
    )
    assert set(hosts) == {"shop1", "db", "two", "branch"}
    assert hosts["shop1"]["proxmox_identity"]["installation"] == OWNER["installation"]
    assert hosts["shop1"]["big"] is True
    assert "proxmox_config" in hosts["db"]
    assert groups["banks"]["hosts"] == ["db"]
    assert groups["templates"]["hosts"] == ["two"]
    assert set(groups["cores_2"]["hosts"]) >= {"shop1", "db"}
    assert len([call for call in calls if call.endswith("/config")]) <= 6
    assert len([call for call in calls if "network-get-interfaces" in call]) == 1


def test_the_inventory_is_cached(fleet, tmp_path):
    options = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "cache_connection": str(tmp_path / "cache")}
    _groups, hosts, calls = listed(fleet, tmp_path, **options)
    _groups, again, none = listed(fleet, tmp_path, **options)
    assert (calls, none) == (["GET /cluster/resources"], [])
    assert hosts == again
    assert not any("secret" in path.read_text() for path in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_token_secret_file": "/nowhere"}, "No such file"),
        ({"api_port": 1}, "Connection refused"),
        ({"filters": ["nope.nope"], "strict": True}, "filters"),
        ({"compose": {"x": "nope.nope"}, "strict": True}, "nope"),
        ({"ca_path": "/nowhere.pem"}, "there is no file /nowhere.pem"),
    ],
)
def test_what_is_wrong_with_an_inventory_is_said(fleet, tmp_path, options, message):
    done = inventory(fleet, tmp_path, **options)
    assert done.returncode != 0
    assert message in " ".join((done.stdout + done.stderr).split())
    secret = (fleet.folder / "token-secret").read_text().strip()
    assert secret not in done.stdout + done.stderr
