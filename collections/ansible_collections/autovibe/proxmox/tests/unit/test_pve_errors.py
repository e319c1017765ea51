from __future__ import annotations

import inspect

import pytest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve import errors
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.client import Endpoint, is_not_verified, wire
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import ApiError, TaskFailed
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.tasks import Upid

LOCK = "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"


@pytest.mark.parametrize("kind", [value for _name, value in inspect.getmembers(errors, inspect.isclass)])
def test_every_errors_docstring_is_one_sentence(kind):
    first = kind.__doc__.strip().splitlines()[0]
    assert first.endswith(".")
    assert first[0].isupper()


def test_wrong_parameters_are_named():
    error = ApiError("POST", "/nodes/pve1/qemu", 400, "Parameter verification failed.", {"name": "invalid format\n"})
    assert error.message == "Proxmox VE refused a call. POST /nodes/pve1/qemu: 400 name: invalid format"


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ApiError("PUT", "/nodes/n/qemu/100/config", 500, LOCK), True),
        (ApiError("DELETE", "/nodes/n/qemu/100", 500, "got no worker upid - start worker failed"), True),
        (ApiError("POST", "/nodes/n/qemu/100/snapshot", 596, "Broken pipe"), True),
        (ApiError("POST", "/nodes/n/qemu/100/agent/exec", 596, "Broken pipe"), False),
        (ApiError("POST", "/nodes/n/qemu/100/template", 500, "VM is locked (clone)"), False),
        (ApiError("GET", "/version", 501, "not implemented"), False),
        (TaskFailed("UPID:n:1:2:3:qmclone:100:root@pam:", f"clone failed: {LOCK}", []), True),
        (TaskFailed("UPID:n:1:2:3:qmstart:100:root@pam:", "VM 100 already running", []), False),
    ],
)
def test_only_what_was_not_executed_is_done_again(error, again):
    assert error.retryable is again


def test_a_upid_is_taken_apart():
    upid = Upid.parse("UPID:pve1:00000507:0004EB2C:6B02F80A:qmsnapshot:101:root@pam:")
    assert (upid.node, upid.starttime, upid.kind, upid.vmid) == ("pve1", 0x6B02F80A, "qmsnapshot", "101")


def test_booleans_travel_as_0_and_1():
    sent = wire({"full": True, "purge": False, "name": None, "input__data": "x", "command": ["a", "b"]})
    assert sent == {"full": 1, "purge": 0, "input-data": "x", "command": ["a", "b"]}


@pytest.mark.parametrize("token_id", ["autovibe", "autovibe@pve!autovibe"])
def test_a_token_may_be_named_in_full(token_id):
    assert Endpoint("h", "autovibe@pve", token_id=token_id).token() == ("autovibe@pve", "autovibe")


@pytest.mark.parametrize(
    ("reason", "never"),
    [
        ("SSLEOFError(8, 'EOF occurred in violation of protocol')", False),
        ("SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed')", True),
        ("CertificateError(\"hostname 'a' doesn't match 'b'\")", True),
        ("SSLError(1, '[SSL: WRONG_VERSION_NUMBER] wrong version number')", True),
    ],
)
def test_a_name_in_the_url_does_not_make_a_broken_connection_an_unverified_one(reason, never):
    where = "HTTPSConnectionPool(host='h', port=8006): Max retries exceeded with url: /api2/json/x/doesn't match"
    assert is_not_verified(OSError(f"{where} (Caused by {reason})")) is never


def test_an_endpoint_does_not_show_its_secrets():
    assert "hunter2" not in repr(Endpoint("h", "u", token_secret="hunter2", password="hunter2"))


@pytest.mark.parametrize(
    "reason",
    [
        "unable to create VM 131: config file already exists",
        "unable to create VM 100 - VM 100 already exists on node 'pve1'",
        "VM 300 already exists on node 'pve2'",
        "CT 300 already exists on node 'pve1'",
    ],
)
def test_a_taken_id_is_known_by_each_wording(reason):
    assert ApiError("POST", "/nodes/n/qemu/100/clone", 500, reason).id_taken
    assert not ApiError("POST", "/nodes/n/qemu/100/clone", 500, "snapshot name 'a' already used").id_taken
