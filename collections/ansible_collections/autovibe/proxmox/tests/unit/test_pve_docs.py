"""The documentation says what the action plugins check."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

PLUGINS = Path(__file__).parents[2] / "plugins"
ROOT = "ansible_collections.autovibe.proxmox.plugins"
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py"))


def documented(module: str) -> dict[str, Any]:
    doc = yaml.safe_load(import_module(f"{ROOT}.modules.{module}").DOCUMENTATION)
    options: dict[str, Any] = {}
    for name in doc["extends_documentation_fragment"]:
        _namespace, _collection, file, *part = name.split(".")
        fragments = import_module(f"{ROOT}.doc_fragments.{file}").ModuleDocFragment
        options |= yaml.safe_load(getattr(fragments, part[0].upper() if part else "DOCUMENTATION"))["options"]
    return options | doc.get("options", {})


def shape(options: dict[str, Any], key: str) -> dict[str, Any]:
    """What documentation (`suboptions`) and spec (`options`) must agree on."""
    return {
        name: {
            "type": option.get("type", "str"),
            "default": option.get("default"),
            "choices": option.get("choices"),
            "elements": option.get("elements"),
            "required": option.get("required", False),
            "options": shape(option[key], key) if option.get(key) else {},
        }
        for name, option in options.items()
    }


@pytest.mark.parametrize("module", MODULES)
def test_options_are_documented_as_they_are_checked(module):
    base = import_module(f"{ROOT}.plugin_utils.action")
    spec = import_module(f"{ROOT}.action.{module}").ActionModule.SPEC
    assert shape(documented(module), "suboptions") == shape({**base.CONNECTION_SPEC, **spec}, "options")


@pytest.mark.parametrize("module", MODULES)
def test_examples_and_return_values_are_yaml(module):
    docs = import_module(f"{ROOT}.modules.{module}")
    assert yaml.safe_load(docs.EXAMPLES)
    assert yaml.safe_load(docs.RETURN)


def test_the_action_group_has_every_module():
    runtime = yaml.safe_load((PLUGINS.parent / "meta" / "runtime.yml").read_text())
    assert sorted(runtime["action_groups"]["all"]) == MODULES
    assert sorted(path.stem for path in (PLUGINS / "action").glob("*.py")) == MODULES
