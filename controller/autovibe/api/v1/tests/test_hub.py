"""/api/v1/hub: the hub's own VM, over the API."""

import pytest
from autovibe import db
from autovibe.api.v1 import replays
from autovibe.api.v1.tests.conftest import SMBIOS_UUID, populate, running
from autovibe.models import Checkpoint, Operation
from autovibe.tests import world
from sqlalchemy import text


@pytest.fixture(scope="module")
def people(api_server, tmp_path_factory):
    with running(api_server, tmp_path_factory.mktemp("hub")) as one:
        populate(one)
        yield one


@pytest.fixture(scope="module")
def admin(people):
    with people.client("admin") as client:
        yield client


def health(people):
    with people.client() as client:
        checks = client.get(f"{people.url}/health").json()["checks"]
    return {check["name"]: check for check in checks}


def test_a_hub_is_adopted_then_checkpointed(people, admin):
    """In one test: each step needs the one before."""
    assert admin.get("/hub").json()["vm"] is None
    assert "hub checkpoint" not in health(people)
    refused = admin.post("/hub/checkpoint")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "hub_not_adopted")

    asked = admin.post("/hub/adopt", json={"vm_id": 120, "node": "pve1"})
    assert asked.status_code == 202, asked.text
    assert asked.json()["operation"]["kind"] == "adopt"
    with people.session() as session:
        (operation,) = world.do(session, people.settings, kind="adopt")
        assert operation.params["vars"]["hub_smbios_uuid"] == SMBIOS_UUID
        assert operation.params["vars"]["proxmox_node"] == "pve1"
    vm = admin.get("/hub").json()["vm"]
    assert (vm["vm_id"], vm["project"], vm["checkpoint"], vm["late"]) == (120, "hub", None, False)
    (listed,) = admin.get("/machines", params={"type": "hub"}).json()["items"]
    assert (listed["uuid"], listed["status"]) == (vm["machine"], "active")
    assert admin.get(f"/machines/{vm['machine']}").json()["operations"][0]["kind"] == "adopt"

    key = {"Idempotency-Key": "one"}
    made = [admin.post("/hub/checkpoint", json={"label": "before"}, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in made] == [202, 202]
    assert made[0].json() == made[1].json()
    checkpoint = made[0].json()["checkpoint"]
    assert (checkpoint["type"], checkpoint["description"], checkpoint["machine"]) == ("manual", "before", "hub")
    with people.session() as session:
        world.do(session, people.settings, kind="hub_checkpoint")
    vm = admin.get("/hub").json()["vm"]
    assert (vm["checkpoint"], vm["late"]) == (checkpoint["uuid"], False)
    assert health(people)["hub checkpoint"] == {
        "name": "hub checkpoint",
        "state": "ok",
        "message": "no checkpoint is late",
    }

    for verb, body in (
        ("terminate", None),
        ("pause", None),
        ("resume", None),
        ("checkpoints", None),
        ("restore", {"checkpoint": checkpoint["uuid"]}),
    ):
        refused = admin.post(f"/machines/{vm['machine']}/{verb}", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "hub_machine"), verb
    assert admin.put("/projects/hub/budgets/money/total", json={"amount": "5"}).status_code < 300
    for path, body in (
        (f"/checkpoints/{checkpoint['uuid']}/restore", None),
        (f"/checkpoints/{checkpoint['uuid']}/machines", {"prompt": "x"}),
        (f"/checkpoints/{checkpoint['uuid']}/verify", {"trial": True}),
    ):
        refused = admin.post(path, json=body)
        assert (refused.status_code, "hub" in refused.json()["error"]["code"]) == (409, True), path
    with people.session() as session:
        open_ones = session.query(Operation).filter(
            Operation.machine_uuid == vm["machine"], Operation.status == "queued"
        )
        assert open_ones.count() == 0
        session.query(Checkpoint).filter(Checkpoint.uuid == checkpoint["uuid"]).update({"created_at": "2026-01-01"})
    told = health(people)["hub checkpoint"]
    assert (told["state"], told["message"]) == ("warning", "the last checkpoint is late")
    assert admin.get("/hub").json()["vm"]["late"] is True


def test_a_key_is_good_for_its_callers_own_request_and_a_day(people, admin):
    with people.session() as session:
        world.hub(session, people.settings)
    key = {"Idempotency-Key": "each-night"}

    def asked(client, label="nightly"):
        answer = client.post("/hub/checkpoint", json={"label": label}, headers=key)
        return answer.status_code, answer.json()

    status, first = asked(admin)
    assert (status, asked(admin)) == (202, (202, first))
    status, refused = asked(admin, "another")
    assert (status, refused["error"]["code"]) == (409, "idempotency_key_reused")
    with people.client("local") as other:
        status, others = asked(other)
    assert (status, others["checkpoint"]["uuid"] != first["checkpoint"]["uuid"]) == (202, True)
    with people.session() as session:
        session.execute(text("UPDATE request_replays SET created_at = created_at - interval '25 hours'"))
        replays.forget(session)
    status, next_day = asked(admin)
    assert (status, next_day["checkpoint"]["uuid"] != first["checkpoint"]["uuid"]) == (202, True)
    with people.session() as session:
        world.do(session, people.settings, kind="hub_checkpoint")


def test_the_hubs_vm_is_shown_to_who_may_see_its_project(people, admin):
    with people.session() as session:
        uuid = str(world.hub(session, people.settings).uuid)
    assert admin.get("/hub").json()["vm"]["machine"] == uuid
    with people.client("viewer-ours") as viewer:
        assert viewer.get("/hub").json()["vm"] is None
        assert admin.put("/projects/hub/grants/viewer-ours", json={"role": "viewer"}).status_code < 300
        assert viewer.get("/hub").json()["vm"]["machine"] == uuid
        assert admin.delete("/projects/hub/grants/viewer-ours").status_code == 204


@pytest.mark.parametrize(
    "body",
    [{}, {"vm_id": 99}, {"vm_id": "x"}, {"vm_id": 10**10}, {"vm_id": 120, "node": "a b"}, {"vm_id": 120, "more": 1}],
)
def test_a_request_that_makes_no_sense_is_refused(admin, body):
    assert admin.post("/hub/adopt", json=body).status_code == 400


def test_a_computer_without_a_uuid_is_told_what_to_do(api_server, tmp_path):
    """The user of this process may not read it, or it is no VM: `AUTOVIBE_HUB_SMBIOS_UUID` is empty."""
    with running(api_server, tmp_path, AUTOVIBE_HUB_SMBIOS_UUID="") as one:
        from autovibe import hubs

        if hubs.PRODUCT_UUID.exists():
            pytest.skip("this computer has an SMBIOS uuid")
        with one.client("local") as client:
            refused = client.post("/hub/adopt", json={"vm_id": 120})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "hub_unproven")
        assert "Only a hub in a VM of Proxmox" in refused.json()["error"]["hint"]
    db.dispose()
