"""The twelve steps of `backup`, and its other states."""

from __future__ import annotations

import pytest
from labs import running_lab
from steps import Call, Refusal, Steps, Task, run

WEB = {"vm_id": 520, "name": "web", "source": {"name": "null"}, "notes": "the web server"}
ONE = {"machine_name": "web", "storage": "local", "max_age": 3600}
STEPS = Steps(
    "backup",
    before=[Task("machine", WEB)],
    create={**ONE, "notes": "first"},
    change={**ONE, "notes": "second\nline", "protected": True},
    delete={"volume": "{{ create.backup.volume }}", "state": "absent", "force": True},
    info=Task("backup", {"volume": "{{ create.backup.volume }}", "state": "verified"}),
    errors=[
        Refusal({**ONE, "machine_name": "nope"}, "NotFound", "no machine 'nope'"),
        Refusal({"machine_name": "web", "state": "restored", "storage": "local"}, "SettingsError", "restore_vm_id"),
        Refusal({"machine_name": "web", "state": "verified", "storage": "local"}, "NotFound", "no backup of VM 520"),
        Refusal({"volume": "local:backup/no", "state": "verified"}, "NotFound", "no backup local:backup/no"),
        Refusal({"machine_name": "web"}, None, "missing: storage"),
    ],
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("state")) as found:
        asked = Call("POST", "/nodes/pve1/vzdump").task(found).play("asked", ignore_errors=True)
        if found.tasks_run(asked).named["asked"]["status"] == 501:
            pytest.skip("this lab makes no backups")
        yield found


def test_backup_passes_the_twelve_steps(lab):
    assert run(lab, STEPS).problems() == []


def test_backups_are_kept_by_rules_and_restored_once_as_another_machine(lab):
    me = {"vm_id": 521, "storage": "local"}
    owner = {"installation": "i-1", "machine": "aaaaaaaa-2222-3333-4444-555555555555"}
    restore = {"vm_id": 521, "storage": "local", "state": "restored", "restore_vm_id": 522, "start": True}
    done = lab.tasks_run(
        Task("machine", {**WEB, "vm_id": 521, "name": "db", "identity": owner, "pool": "autovibe"}).play("make"),
        Task("backup", {**me, "max_age": 0, "protected": True}).play("one"),
        Task("backup", {**me, "max_age": 0}).play("two"),
        Task("backup", {**me, "max_age": 0, "keep": {"last": 1}}).play("kept_check", check_mode=True),
        Task("backup", {**me, "max_age": 0, "keep": {"last": 1}}).play("kept"),
        Task("backup", {**me, "max_age": 3600, "keep": {"last": 1}}).play("kept_again"),
        Task("backup", {"volume": "{{ one.backup.volume }}", "state": "absent"}).play("guarded", ignore_errors=True),
        Task("backup", {**restore, "pool": "autovibe"}).play("restored_check", check_mode=True),
        Task("backup", {**restore, "pool": "autovibe"}).play("restored"),
        Task("backup", restore).play("restored_again"),
        Task("machine_info", {"vm_id": 522, "config": True}).play("info"),
        Task("backup", {**restore, "restore_vm_id": 521}).play("taken", ignore_errors=True),
    )
    assert done.rc == 0, done.output
    named = done.named
    assert named["kept_check"]["diff"] == named["kept"]["diff"]
    assert named["kept"]["backup"]["removed"] == [named["two"]["backup"]["volume"]]
    assert not named["kept_again"]["changed"]
    assert "is protected" in named["guarded"]["msg"]
    assert named["restored_check"]["diff"] == named["restored"]["diff"]
    assert named["restored"]["machine"]["status"] == "running"
    assert not named["restored_again"]["changed"]
    assert named["info"]["machines"][0]["identity"] is None
    assert "the web server" in named["info"]["machines"][0]["config"]["description"]
    assert named["taken"]["error_class"] == "IdentityError"
