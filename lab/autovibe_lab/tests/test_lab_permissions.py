"""Roles on paths become privileges as on a node; calls that need others are refused in its words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from autovibe_lab.api.permits import need_of
from autovibe_lab.api.routes import ROUTES
from autovibe_lab.permissions import Permissions
from autovibe_lab.privileges import builtin_roles, privileges
from autovibe_lab.shadow import Shadow
from autovibe_lab.usercfg import Group, Pool, Token, User, UserConfig

DEV, CI, OPEN = "dev@pve", "dev@pve!ci", "dev@pve!open"


@pytest.fixture
def config(tmp_path: Path) -> UserConfig:
    config = UserConfig(tmp_path / "user.cfg")
    config.users[DEV] = User(tokens={"ci": Token(), "open": Token(privsep=False)})
    config.groups["builders"] = Group(members={DEV})
    config.pools["lab"] = Pool(vms={100}, storages={"local"})
    config.roles["Starter"] = frozenset({"VM.PowerMgmt", "VM.Audit"})
    return config


@pytest.fixture
def permissions(config: UserConfig) -> Permissions:
    return Permissions(config)


def grant(config: UserConfig, path: str, subject: str, role: str, propagate: bool = True) -> None:
    config.set_acl(path, subject, role, propagate)
    config.save()


def test_a_role_holds_below_its_path_only_if_it_propagates(config, permissions):
    grant(config, "/vms", DEV, "Starter")
    grant(config, "/storage", DEV, "PVEDatastoreUser", propagate=False)
    assert permissions.of(DEV, "/vms/100") == {"VM.PowerMgmt": 1, "VM.Audit": 1}
    assert permissions.can(DEV, "/storage", "Datastore.Audit")
    assert not permissions.can(DEV, "/storage/local", "Datastore.Audit")


def test_the_nearer_path_replaces_the_farther_one(config, permissions):
    grant(config, "/", DEV, "PVEAdmin")
    grant(config, "/vms/102", DEV, "PVEAuditor")
    assert permissions.can(DEV, "/vms/101", "VM.PowerMgmt")
    assert not permissions.can(DEV, "/vms/102", "VM.PowerMgmt")


def test_an_own_role_comes_before_the_groups(config, permissions):
    grant(config, "/vms", "@builders", "PVEVMAdmin")
    assert permissions.can(DEV, "/vms/100", "VM.Allocate")
    grant(config, "/vms", DEV, "PVEAuditor")
    assert not permissions.can(DEV, "/vms/100", "VM.Allocate")


def test_no_access_beats_what_is_above_and_what_a_pool_gives(config, permissions):
    grant(config, "/pool/lab", DEV, "Starter")
    assert permissions.can(DEV, "/vms/100", "VM.PowerMgmt")
    grant(config, "/vms/100", DEV, "NoAccess")
    assert permissions.of(DEV, "/vms/100") == {}


def test_members_of_a_pool_have_its_roles_and_hand_nothing_down(config, permissions):
    grant(config, "/pool/lab", DEV, "PVEDatastoreUser")
    assert permissions.of(DEV, "/storage/local") == {"Datastore.AllocateSpace": 0, "Datastore.Audit": 0}
    assert permissions.of(DEV, "/pool/lab/sub")["Datastore.Audit"] == 1
    assert permissions.of(DEV, "/vms/101") == {}


def test_a_separated_token_has_what_both_have(config, permissions):
    grant(config, "/vms/100", DEV, "Starter")
    assert permissions.of(OPEN, "/vms/100") == permissions.of(DEV, "/vms/100")
    assert permissions.of(CI, "/vms/100") == {}
    grant(config, "/vms", CI, "PVEVMAdmin")
    assert set(permissions.of(CI, "/vms/100")) == {"VM.PowerMgmt", "VM.Audit"}
    config.unset_acl("/vms/100", DEV, "Starter")
    config.save()
    assert permissions.of(CI, "/vms/100") == {}


def test_a_change_of_roles_or_pools_counts_at_once(config, permissions):
    grant(config, "/pool/lab", DEV, "Starter")
    assert permissions.can(DEV, "/vms/100", "VM.Audit")
    config.roles["Starter"] = frozenset({"VM.Console"})
    config.save()
    assert not permissions.can(DEV, "/vms/100", "VM.Audit")


def test_pve_9_has_no_monitor_and_five_privileges_for_the_agent():
    assert "VM.Monitor" in privileges(8)
    assert "VM.Monitor" not in privileges(9)
    assert {"VM.GuestAgent.FileRead", "VM.GuestAgent.Unrestricted", "VM.Replicate"} <= privileges(9) - privileges(8)
    assert builtin_roles(9)["Administrator"] == privileges(9)


def test_user_cfg_is_read_as_it_was_written(config, tmp_path):
    config.users[DEV].comment = "a: b, 100 %"
    grant(config, "/pool/lab", CI, "Starter", propagate=False)
    grant(config, "/", "@builders", "PVEAuditor")
    again = UserConfig(config.file)
    assert again.lines() == config.lines()
    assert again.users == config.users
    assert again.acls == config.acls
    assert again.pools == config.pools


def test_secrets_are_hashed_in_a_file_of_ones_own(tmp_path):
    shadow = Shadow(tmp_path / "priv" / "shadow.cfg")
    shadow.set_password(DEV, "a long password")
    shadow.set_secret(CI, "a-secret")
    assert oct(shadow.file.stat().st_mode & 0o777) == "0o600"
    assert "a-secret" not in shadow.file.read_text()
    assert "a long password" not in shadow.file.read_text()
    again = Shadow(shadow.file)
    assert again.verify(DEV, "a long password")
    assert again.verify(CI, "a-secret")
    assert not again.verify(DEV, "another")
    assert not again.verify(CI, "b")
    assert not again.verify("nobody@pve", "")


def test_every_call_says_what_it_needs_but_the_one_that_is_for_root():
    unsaid = [f"{route.method} {route.template}" for route in ROUTES if need_of(route.method, route.template) is None]
    assert unsaid == ["GET /cluster/backup-info"]


#: Where the line says the same in other words, or more than the reference, which names only PVE 8.
OTHER_WORDS = ("userid", "perm-modify", "/agent", "/monitor")


def said(check: list) -> str:
    """A declaration of the reference in the words of `permits`."""
    kind = check[0]
    if kind in ("and", "or"):
        return f" {kind} ".join(said(part) for part in check[1:])
    if kind != "perm":
        return kind
    more = dict(zip(check[3::2], check[4::2], strict=True))
    only = f" if {more['require_param']}" if "require_param" in more else ""
    return f"{check[1]} {('|' if more.get('any') else ',').join(check[2])}{only}"


def test_what_calls_need_is_what_the_reference_declares():
    reference = (
        Path(os.environ.get("AUTOVIBE_REFERENCE") or Path(__file__).parents[4] / "shared") / "pve" / "api-8.4.json"
    )
    if not reference.exists():
        pytest.skip("no reference: set AUTOVIBE_REFERENCE")
    declared, differing = json.loads(reference.read_text()), []
    for route in ROUTES:
        call = f"{route.method} {route.template.replace('*}', '}')}"
        if call not in declared:
            continue
        known = declared[call].get("permissions")
        wanted = None if known is None else known.get("user") or said(known["check"])
        if wanted != need_of(route.method, route.template) and not any(
            word in f"{call} {wanted}" for word in OTHER_WORDS
        ):
            differing.append((call, wanted, need_of(route.method, route.template)))
    assert differing == []
