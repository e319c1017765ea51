"""The firewall's options of the cluster, a node and a guest: those that Proxmox has."""

from __future__ import annotations

from autovibe_lab import declared

PATHS = {"cluster": "/cluster/firewall", "host": "/nodes/{node}/firewall", "vm": "/nodes/{node}/qemu/{vmid}/firewall"}
OTHERS = {"node", "vmid", "delete", "digest"}
OPTIONS = {scope: [*sorted(declared.rules(f"PUT {path}/options").keys() - OTHERS)] for scope, path in PATHS.items()}
