from __future__ import annotations

import pytest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import Forbidden
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.privileges import advice

FAILED = "Permission check failed"


@pytest.mark.parametrize(
    ("method", "path", "reason", "said"),
    [
        ("GET", "/nodes/n/qemu/1/config", f"{FAILED} (/vms/1, VM.Audit)", "need VM.Audit on /vms/1"),
        ("PUT", "/nodes/n/qemu/1/config", f"{FAILED} (/vms/1, VM.Config.CPU|VM.Config.Disk)", "CPU or VM.Config.Disk"),
        ("POST", "/nodes/n/qemu/1/clone", FAILED, "VM.Clone on the source and VM.Allocate on the pool"),
        ("POST", "/nodes/n/qemu/1/clone", f"{FAILED} (/sdn/zones/localnetwork/vmbr0, SDN.Use)", "need SDN.Use on /sdn"),
        ("POST", "/nodes/n/qemu", FAILED, "VM.Allocate on /vms/ID, or on the pool"),
        ("POST", "/nodes/n/qemu", f"{FAILED} (pool 'nope' does not exist)", "create the pool 'nope'"),
        (
            "POST",
            "/nodes/n/qemu/1/agent/exec",
            f"{FAILED} (/vms/1, VM.Monitor)",
            "VM.Monitor on /vms/1 (VM.GuestAgent.Unrestricted from Proxmox VE 9 on)",
        ),
        ("GET", "/nodes/n/qemu/1/agent/file-read", f"{FAILED} (/vms/1, VM.Monitor)", "(VM.GuestAgent.FileRead from"),
        ("GET", "/nodes/n/qemu/1/agent/get-osinfo", f"{FAILED} (/vms/1, VM.Monitor)", "(VM.GuestAgent.Audit from"),
    ],
)
def test_a_403_says_which_privilege_is_needed(method, path, reason, said):
    assert said in advice(method, path, reason)
    assert said in Forbidden(method, path, 403, reason).message


def test_nothing_is_made_up():
    assert advice("GET", "/version", FAILED) == ""
    assert Forbidden("GET", "/version", 403, FAILED).message.endswith(FAILED)
