from __future__ import annotations

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.readiness import addresses


def test_what_is_no_address_is_passed_over():
    """The guest's agent is the guest's: what it says need not be true."""
    said = ["10.0.0.7", "10.0.0.999", "", "fe80::1%eth0", "127.0.0.1", "fd00::1%eth0", None]
    entries = [{"ip-address": text} for text in said]
    assert addresses([{"ip-addresses": [*entries, {}]}, {}]) == ["10.0.0.7", "fd00::1"]
