"""The API's calls, one module a subject. Importing this package registers them all."""

from autovibe_lab.api import (
    access,
    agent,
    backup,
    clone,
    cluster,
    configure,
    content,
    firewall,
    lifecycle,
    nodes,
    pools,
    power,
    snapshots,
    storage,
    tasks,
    users,
)

__all__ = [
    "access",
    "agent",
    "backup",
    "clone",
    "cluster",
    "configure",
    "content",
    "firewall",
    "lifecycle",
    "nodes",
    "pools",
    "power",
    "snapshots",
    "storage",
    "tasks",
    "users",
]
