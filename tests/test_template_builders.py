"""Several controllers that want the same version of a template at once, on hosts that share nothing but the node."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from autovibe_lab.tests.testing import LabInThread
from inprocess import load_plugins
from test_core_lab import BASE, connected, started_lab

load_plugins()
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve import building  # noqa: E402
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.images import Image  # noqa: E402
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.seed import Seed  # noqa: E402
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.templates import (  # noqa: E402
    CustomizationFailed,
    Inputs,
    Step,
    Templates,
)

CUSTOMISED = Inputs("web", Image(volume="null:1"), "null", steps=(Step(("true",)),))
PLAIN = Inputs("web", Image(volume="null:1"), "null")
SEEDED = Inputs("web", Image(volume="null:1"), "null", steps=(Step(("true",)),), seed=Seed("#cloud-config"))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabInThread]:
    yield from started_lab(tmp_path / "lab")


@pytest.fixture
def controller(lab: LabInThread, tmp_path: Path) -> Any:
    """Makes one controller on a host of its own."""
    numbers = iter(range(100))

    def made() -> Templates:
        machines = connected(lab)
        folder = tmp_path / f"host{next(numbers)}"
        folder.mkdir()
        machines.tasks.shared("pve1")._folder = str(folder)
        return Templates(machines)

    return made


def build(templates: Templates, inputs: Inputs, **options: Any) -> int:
    return templates.ensure(inputs, installation="i", **options).facts["vm_id"]


def problems(lab: LabInThread, template: int) -> list[str]:
    """What is there beside the one template."""
    found = [f"VM {vmid}" for vmid in lab.node.machines if vmid not in (BASE, template)]
    found += [] if lab.node.machines[template].is_template else ["it is no template"]
    named = {volid.rpartition("/")[2] for volid, _size in lab.node.volumes()}
    folder = lab.node.paths.storage("null") / "images"
    found += sorted({path.name for path in folder.glob("*/*")} - named)
    return found + [path.name for path in (lab.state / "template" / "iso").glob("autovibe-seed-*")]


def kinds(lab: LabInThread) -> Counter[str]:
    return Counter(task["type"] for task in lab.aids.tasks() if task["id"] != str(BASE))


@pytest.mark.parametrize("inputs", [PLAIN, CUSTOMISED, SEEDED], ids=["plain", "customised", "with a seed"])
def test_two_controllers_at_once_build_one_template(lab, controller, inputs):
    with ThreadPoolExecutor(3) as threads:
        (made,) = set(threads.map(lambda one: build(one, inputs, keep=1), [controller() for _ in range(3)]))
    assert problems(lab, made) == []
    assert kinds(lab)["qmtemplate"] == 1
    assert kinds(lab)["qmstart"] == (1 if inputs.steps else 0)
    assert build(controller(), inputs) == made


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/cluster/nextid"),
        ("GET", "/nodes/pve1/qemu"),
        ("POST", "/nodes/pve1/qemu"),
        ("PUT", ".*/config"),
        ("POST", ".*/status/start"),
        ("POST", ".*/agent/exec"),
        ("POST", ".*/template"),
    ],
)
@pytest.mark.parametrize("ids", [(None, None), (150, 140), (140, 150)], ids=["next ids", "lower later", "higher later"])
def test_one_stops_anywhere_while_the_other_goes_on(lab, controller, method, path, ids):
    """The ids are forced apart as if one had become free in between: both make a VM, and one of them goes."""
    first, second = (with_id(controller(), number) for number in ids)
    with lab.aids.held(method, path, skip=0) as held, ThreadPoolExecutor(2) as threads:
        begun = threads.submit(build, first, CUSTOMISED)
        held.wait()
        other = threads.submit(build, second, CUSTOMISED)
        with pytest.raises(TimeoutError):
            other.result(0.3) if other.done() else begun.result(0.3)
        held.release()
        assert begun.result(60) == other.result(60)
    assert problems(lab, begun.result()) == []
    assert kinds(lab)["qmtemplate"] == 1


def with_id(templates: Templates, number: int | None) -> Templates:
    """The next free id, as this controller is told, is this one, once."""
    get, told = templates.client.get, []

    def answered(path: str, **params: Any) -> Any:
        if path == "/cluster/nextid" and not params and number and not told:
            get(path)
            told.append(number)
            return str(number)
        return get(path, **params)

    templates.client.get = answered
    return templates


def test_a_builder_that_lives_is_waited_for_and_a_dead_one_is_not(lab, controller, monkeypatch):
    monkeypatch.setattr(building, "BEAT", 0.05)
    monkeypatch.setattr(building, "LEASE", 3.0)
    with lab.aids.held("POST", ".*/agent/exec") as held, ThreadPoolExecutor(2) as threads:
        first = threads.submit(build, controller(), CUSTOMISED)
        held.wait()
        other = threads.submit(build, controller(), CUSTOMISED)
        with pytest.raises(TimeoutError):
            other.result(6)  # two leases
        monkeypatch.setattr(building.Building, "_say", lambda *_: None)  # as if its host had stopped
        taken_over = other.result(60)
        held.release()
        assert first.result(60) == taken_over, "and when it goes on it notices"
    assert problems(lab, taken_over) == []


def test_what_another_controller_builds_is_no_old_version(lab, controller):
    """Who keeps one version of all does not take the next one away while it is made."""
    with lab.aids.held("POST", ".*/agent/exec") as held, ThreadPoolExecutor(1) as threads:
        newer = threads.submit(build, controller(), CUSTOMISED)
        held.wait()
        older = build(controller(), PLAIN, keep=1)
        held.release()
        assert newer.result(60) != older
    build(controller(), CUSTOMISED, keep=1)
    assert problems(lab, newer.result()) == []


def test_one_that_failed_is_begun_anew_at_once(lab, controller):
    broken = Inputs("web", Image(volume="null:1"), "null", steps=(Step(("/bin/sh", "-c", "test -e /etc/fixed")),))
    for _ in range(2):
        with pytest.raises(CustomizationFailed):
            build(controller(), broken)
        (left,) = [vmid for vmid in lab.node.machines if vmid != BASE]
        description = lab.node.machines[left].config.current["description"]
        assert re.fullmatch(rf"autovibe installation=i template=web inputs=\w+ by=\w+ vm={left}\nfailed", description)


@pytest.mark.parametrize("inputs", [PLAIN, CUSTOMISED], ids=["plain", "customised"])
def test_controllers_that_are_given_the_same_id_agree(lab, controller, inputs):
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda one: build(one, inputs, vmid=300), [controller() for _ in range(2)]))
    assert (made, problems(lab, 300)) == ([300, 300], [])
