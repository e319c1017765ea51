"""Users, tokens and what they are refused, over the wire."""

from __future__ import annotations

import time

import pytest
import requests
from autovibe_lab.tests.testing import Client, LabInThread
from proxmoxer import ProxmoxAPI
from proxmoxer.core import AuthenticationError, ResourceException

PASSWORD = "a good password"


def login(lab: LabInThread, user: str = "root@pam", password: str | None = None) -> ProxmoxAPI:
    password = password or lab.lab.secrets.root_password
    options = {"verify_ssl": str(lab.state / "ca.pem"), "timeout": 30}
    return ProxmoxAPI("127.0.0.1", port=lab.lab.port, user=user, password=password, **options)


def with_token(lab: LabInThread, made: dict) -> ProxmoxAPI:
    user, _, name = made["full-tokenid"].partition("!")
    options = {"verify_ssl": str(lab.state / "ca.pem"), "timeout": 30}
    return ProxmoxAPI("127.0.0.1", port=lab.lab.port, user=user, token_name=name, token_value=made["value"], **options)


@pytest.fixture
def root(lab: LabInThread) -> ProxmoxAPI:
    return login(lab)


@pytest.fixture
def dev(root: ProxmoxAPI, lab: LabInThread) -> ProxmoxAPI:
    root.access.users.post(userid="dev@pve", password=PASSWORD)
    return login(lab, "dev@pve", PASSWORD)


@pytest.fixture
def token(root: ProxmoxAPI, dev: ProxmoxAPI, lab: LabInThread) -> ProxmoxAPI:
    """A token of dev@pve, separated."""
    return with_token(lab, root.access.users("dev@pve").token("ci").post(privsep=1))


def refusal(call: object, **params: object) -> str:
    with pytest.raises(ResourceException) as caught:
        call(**params)
    return f"{caught.value.status_code} {caught.value.content}"


def both(root: ProxmoxAPI, path: str, roles: str) -> None:
    root.access.acl.put(path=path, roles=roles, users="dev@pve", tokens="dev@pve!ci")


def test_a_token_without_acls_sees_nothing_and_may_nothing(client: Client, token, lab):
    client.template()
    assert token.nodes("pve1").qemu.get() == []
    assert token.access.permissions.get() == {}
    assert [entry["type"] for entry in token.cluster.resources.get()] == ["node"]
    assert token.cluster.nextid.get() == "101"
    machine = token.nodes("pve1").qemu(100)
    assert refusal(machine.config.get) == "403 Permission check failed (/vms/100, VM.Audit)"
    assert refusal(machine.status.start.post) == "403 Permission check failed (/vms/100, VM.PowerMgmt)"
    assert refusal(token.nodes("pve1").qemu.post, vmid=101) == "403 Permission check failed"
    assert refusal(token.nodes("pve1").qemu(4242).config.get) == "403 Permission check failed (/vms/4242, VM.Audit)"


def test_a_refusal_comes_before_a_wrong_parameter_or_node(token):
    assert refusal(token.nodes("pve1").qemu(100).status.start.post, nonsense=1).startswith("403")
    assert refusal(token.nodes("nowhere").status.get).startswith("403")


def test_a_clone_into_a_pool_needs_the_bridge_too(client: Client, root, token):
    client.template()
    root.pools.post(poolid="lab")
    root.pools("lab").put(vms="100", storage="null")
    both(root, "/pool/lab", "PVEVMAdmin,PVEDatastoreUser")
    clone = token.nodes("pve1").qemu(100).clone
    assert refusal(clone.post, newid=101) == "403 Permission check failed"
    needs = "403 Permission check failed (/sdn/zones/localnetwork/vmbr1, SDN.Use)"
    assert refusal(clone.post, newid=101, pool="lab") == needs
    assert refusal(clone.post, newid=101, pool="no") == "403 Permission check failed"
    both(root, "/sdn/zones/localnetwork", "PVESDNUser")
    client.ok(clone.post(newid=101, pool="lab"))
    assert [vm["vmid"] for vm in token.nodes("pve1").qemu.get()] == [100, 101]


@pytest.mark.parametrize(
    ("option", "value", "privilege"),
    [
        ("cores", 2, "VM.Config.CPU"),
        ("memory", 512, "VM.Config.Memory"),
        ("net0", "virtio,bridge=vmbr1", "VM.Config.Network"),
        ("name", "another", "VM.Config.Options"),
        ("tags", "a", "VM.Config.Options"),
        ("smbios1", "serial=MQ==,base64=1", "VM.Config.HWType"),
        ("boot", "order=scsi0", "VM.Config.Disk"),
        ("scsi1", "null:1", "VM.Config.Disk"),
        ("ide3", "none,media=cdrom", "VM.Config.CDROM"),
        ("serial0", "socket", "VM.Config.HWType"),
    ],
)
def test_each_option_has_its_privilege(client: Client, root, token, option, value, privilege):
    client.create()
    others = "VM.Config.CPU VM.Config.Memory VM.Config.Network VM.Config.Options VM.Config.HWType VM.Config.Disk"
    others = ",".join({*others.split(), "VM.Config.CDROM"} - {privilege})
    root.access.roles.post(roleid="AllButOne", privs=others)
    both(root, "/vms/100", "AllButOne")
    both(root, "/sdn/zones/localnetwork", "PVESDNUser")
    both(root, "/storage/null", "PVEDatastoreUser")
    change = token.nodes("pve1").qemu(100).config
    assert refusal(change.put, **{option: value}) == f"403 Permission check failed (/vms/100, {privilege})"
    root.access.roles("AllButOne").put(privs=privilege, append=1)
    change.put(**{option: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"args": "-x"}, "only root can set 'args' config"),
        ({"lock": "backup"}, "only root can set 'lock' config"),
        ({"hostpci0": "00:01.0"}, "only root can set 'hostpci0' config for non-mapped devices"),
        ({"scsi1": "null:0,import-from=/etc/passwd"}, "Only root can pass arbitrary filesystem paths."),
    ],
)
def test_some_things_not_even_roots_token_may(client: Client, root, lab, given, message):
    client.create()
    full = with_token(lab, root.access.users("root@pam").token("full").post(privsep=0))
    assert refusal(full.nodes("pve1").qemu(100).config.put, **given).startswith(f"500 {message}")


def test_tasks_of_others_are_hidden(client: Client, root, token):
    upid = root.nodes("pve1").qemu.post(vmid=100)
    client.ok(upid)
    assert token.nodes("pve1").tasks.get(source="all") == []
    task = token.nodes("pve1").tasks(upid)
    assert refusal(task.status.get) == "403 Permission check failed (/nodes/pve1, Sys.Audit)"
    assert refusal(task.log.get) == "403 Permission check failed (/nodes/pve1, Sys.Audit)"
    assert refusal(task.delete) == "403 Permission check failed (/nodes/pve1, Sys.Modify)"


def test_a_user_sees_the_tasks_of_its_tokens(client: Client, root, dev, token):
    both(root, "/", "PVEVMAdmin")
    upid = token.nodes("pve1").qemu.post(vmid=100)
    client.ok(upid)
    both(root, "/", "NoAccess")
    assert dev.nodes("pve1").tasks(upid).status.get()["exitstatus"] == "OK"
    assert token.nodes("pve1").tasks(upid).status.get()["exitstatus"] == "OK"


def test_who_is_disabled_or_late_is_let_in_no_more(root, dev, token, lab):
    user = root.access.users("dev@pve")
    user.put(enable=0)
    for api in (dev, token):
        assert refusal(api.version.get).startswith("401 Authentication failed!")
    user.put(enable=1)
    user.token("ci").put(expire=int(time.time()) - 1)
    assert dev.version.get()
    assert refusal(token.version.get).startswith("401")
    user.put(expire=1000)
    assert refusal(dev.version.get).startswith("401")


def test_a_password_can_be_changed(root, dev, lab):
    change = dev.access.password
    said = refusal(change.put, userid="dev@pve", password="another one")
    assert said.startswith("400")
    change.put(userid="dev@pve", password="another one", **{"confirmation-password": PASSWORD})
    login(lab, "dev@pve", "another one")
    with pytest.raises(AuthenticationError):
        login(lab, "dev@pve", PASSWORD)
    root.access.password.put(userid="root@pam", password="roots new one")
    assert (lab.state / "root-password").read_text() == "roots new one"
    login(lab, "root@pam", "roots new one")


def test_what_is_deleted_leaves_no_acl(client: Client, root, token):
    client.create()
    root.pools.post(poolid="lab")
    root.access.roles.post(roleid="Mine", privs="VM.Audit")
    for path in ("/vms/100", "/pool/lab", "/storage/null"):
        both(root, path, "PVEAuditor")
    both(root, "/nodes", "Mine")
    client.ok(client.node.qemu(100).delete())
    root.pools("lab").delete()
    root.access.roles("Mine").delete()
    mine = [entry["path"] for entry in root.access.acl.get() if entry["ugid"].startswith("dev@pve")]
    assert mine == ["/storage/null", "/storage/null"]
    root.access.users("dev@pve").delete()
    assert not [entry for entry in root.access.acl.get() if entry["ugid"].startswith("dev@pve")]


def test_only_what_one_has_can_be_handed_out(root, dev, token):
    root.access.acl.put(path="/vms/100", roles="PVEVMAdmin", users="dev@pve")
    root.access.users.post(userid="other@pve")
    dev.access.acl.put(path="/vms/100", roles="PVETemplateUser", users="other@pve")
    said = refusal(dev.access.acl.put, path="/vms/100", roles="Administrator", users="other@pve")
    assert said.startswith("400")
    assert refusal(dev.access.acl.put, path="/vms/101", roles="PVETemplateUser", users="other@pve").startswith("403")


def test_a_refused_member_leaves_the_pool_as_it_was(root):
    root.pools.post(poolid="one")
    root.pools.post(poolid="two")
    root.pools("one").put(vms="100")
    said = refusal(root.pools("two").put, vms="200,100", comment="new")
    assert "belongs already to pool 'one'" in said
    assert root.pools.get() == [{"poolid": "one"}, {"poolid": "two"}]
    assert "VM 300 is not a pool member" in refusal(root.pools("one").put, vms="300", delete=1)


def test_realms_are_kept(root, lab):
    root.access.domains.post(realm="corp", type="ldap", server1="ldap.example.com", base_dn="dc=x", user_attr="uid")
    assert [entry["realm"] for entry in root.access.domains.get()] == ["corp", "pam", "pve"]
    assert requests.get(f"{lab.url}/api2/json/access/domains", verify=str(lab.state / "ca.pem"), timeout=30).ok
