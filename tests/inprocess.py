"""One task of ours in this process, as Ansible's worker runs it: quick enough for hundreds of tasks in a test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.loader import action_loader, connection_loader, init_plugin_loader
from ansible.template import Templar
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
from autovibe_lab.testing import LabInThread

COLLECTIONS = Path(__file__).parents[1] / "collections"


def connection(lab: LabInThread) -> dict[str, Any]:
    """The collection's options that lead to this lab."""
    user, _, token = (lab.state / "token-id").read_text().strip().partition("!")
    return {
        "api_host": "127.0.0.1",
        "api_port": lab.lab.port,
        "api_user": user,
        "api_token_id": token,
        "api_token_secret_file": str(lab.state / "token-secret"),
        "ca_path": str(lab.state / "ca.pem"),
        "node": "pve1",
    }


def task(lab: LabInThread, module: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """The result of one task; `failed` and `msg` tell an error."""
    load_plugins()
    loader, context = DataLoader(), PlayContext()
    action = f"autovibe.proxmox.{module}"
    data = {action: {**connection(lab), **arguments}, "check_mode": check, "diff": True}
    plugin = action_loader.get(
        action,
        task=Task.load(data, loader=loader),
        connection=connection_loader.get("ansible.builtin.local", context),
        play_context=context,
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    return plugin.run(None, {})


def load_plugins() -> None:
    """Let this checkout's collection be imported, as Ansible does it."""
    if not any(isinstance(finder, _AnsibleCollectionFinder) for finder in sys.meta_path):
        init_plugin_loader([str(COLLECTIONS)])
