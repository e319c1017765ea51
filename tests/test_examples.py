"""Every module's EXAMPLES work: they run against the lab, as they stand, with what they take for granted made first."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

import pytest
import yaml
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
from labs import ROOT, running_lab

MODULES = sorted(
    path.stem for path in (ROOT / "collections/ansible_collections/autovibe/proxmox/plugins/modules").glob("*.py")
)
#: Needs what a test has not: the web.
NOT_RUN = {"A cloud image from the web, with two packages more, and the last two versions"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("state")) as found:
        template = {"name": "debian", "vm_id": 9000, "disk_source": "null:1", "storage": "null"}
        machine = {"vm_id": 101, "name": "web1", "source": {"name": "debian"}, "state": "started"}
        made = [
            {"name": "template", "autovibe.proxmox.template": template},
            {"name": "machine", "autovibe.proxmox.machine": machine},
            {"name": "checkpoint", "autovibe.proxmox.checkpoint": {"vm_id": 101, "name": "before-upgrade"}},
        ]
        assert found.tasks_run(*made).rc == 0
        yield found


def docs(module: str) -> ModuleType:
    if not any(isinstance(finder, _AnsibleCollectionFinder) for finder in sys.meta_path):
        _AnsibleCollectionFinder(paths=[str(ROOT / "collections")])._install()
    return import_module(f"ansible_collections.autovibe.proxmox.plugins.modules.{module}")


def examples(module: str) -> list[dict]:
    return yaml.safe_load(docs(module).EXAMPLES)


@pytest.mark.parametrize("module", MODULES)
def test_examples_are_tasks_of_their_module(module):
    for task in examples(module):
        assert task.get("name"), f"an example without a name: {task}"
    used = {key.rpartition(".")[2] for task in examples(module) for key in task if key.startswith("autovibe.proxmox.")}
    assert module in used


@pytest.fixture(scope="module")
def ran(lab):
    tasks = [
        {**task, "check_mode": True, "ignore_errors": True, "no_log": False, "name": f"{module}: {task['name']}"}
        for module in MODULES
        for task in examples(module)
        if task["name"] not in NOT_RUN
    ]
    ran = lab.tasks_run(*tasks, vars=VARIABLES)
    assert ran.rc == 0, ran.output[-4000:]
    return ran


def test_all_examples_run_in_check_mode(ran):
    """Options, their names, types and choices hold: a failure may only be of what is not there in the lab."""
    wrong = {
        name: result.get("msg", result)
        for name, result in ran.named.items()
        if result.get("failed") and result.get("error_class") not in MISSING
    }
    assert wrong == {}


def test_what_is_returned_is_documented(ran):
    undocumented = set()
    for name, result in ran.named.items():
        module = name.partition(":")[0]
        documented = yaml.safe_load(docs(module).RETURN)
        used = str(result.get("action", ""))
        if result.get("failed") or result.get("skipped") or not used.endswith(f".{module}"):
            continue
        for key, value in result.items():
            if key in COMMON or key.startswith("_"):
                continue
            fields = documented.get(key, {}).get("contains")
            undocumented |= {f"{module}.{key}"} if key not in documented else set()
            for one in value if isinstance(value, list) else [value]:
                if fields and isinstance(one, dict):
                    undocumented |= {f"{module}.{key}.{field}" for field in one if field not in fields}
    assert undocumented == set()


#: What every task returns.
COMMON = {"action", "changed", "diff", "failed", "msg", "skipped", "skipped_reason", "warnings", "invocation"}
#: Kinds of errors that say: the VM, file, snapshot or storage of the example is not here.
MISSING = {"NotFound", "SettingsError", "AgentNotAnswering", "NotPossible", "NotReady"}
VARIABLES = {"debian_image_sha256": "0" * 64, "debian_sha512": "0" * 128}
