"""The twelve steps that every module passes, in one run of ansible-playbook against a lab.

    create in check mode · create · again in check mode · again · change in check mode · change · again · info ·
    delete in check mode · delete · again · error paths

and, between change and info, a drift: one property is changed by hand, and the next run sets it right with one write
call. `Steps` says what they are for a module, `run` runs them, `Outcome.problems()` lists what is not as it has to be:

    steps = Steps("machine", create={...}, change={...}, delete={...}, drift=Call("PUT", path, {...}), errors=[...])
    assert run(lab, steps).problems() == []

Arguments may be templates; the results of earlier tasks are registered under the names of the steps:
`{{ create.machine.vm_id }}`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from labs import Lab, Run

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Any module with its arguments: a short name is one of ours."""

    module: str
    arguments: Arguments

    def play(self, name: str, **keywords: Any) -> dict[str, Any]:
        action = self.module if "." in self.module else f"autovibe.proxmox.{self.module}"
        return {"name": name, action: self.arguments, "register": name, **keywords}


@dataclass(frozen=True)
class Call:
    """A call of the API by somebody else's hand: `Call("PUT", "/nodes/pve1/qemu/100/config", {"cores": 3})`."""

    method: str
    path: str
    data: Arguments = field(default_factory=dict)

    def task(self, lab: Lab) -> Task:
        token_id = (lab.folder / "token-id").read_text().strip()
        secret = (lab.folder / "token-secret").read_text().strip()
        arguments = {
            "url": f"{lab.url}/api2/json{self.path}",
            "method": self.method,
            "headers": {"Authorization": f"PVEAPIToken={token_id}={secret}"},
            "ca_path": str(lab.folder / "ca.pem"),
        }
        if self.data:
            arguments |= {"body_format": "form-urlencoded", "body": self.data}
        return Task("ansible.builtin.uri", arguments)


@dataclass(frozen=True)
class Refusal:
    """An error path: these arguments fail with this error class (None: before our code) and a message that matches."""

    arguments: Arguments
    error_class: str | None
    message: str
    module: str | None = None


@dataclass
class Steps:
    """The steps of one module. What is None is left out (a module that changes nothing, or that removes nothing)."""

    module: str
    create: Arguments
    change: Arguments | None = None
    delete: Arguments | None = None
    info: Task | None = None
    drift: Call | Task | None = None
    before: list[Task] = field(default_factory=list)
    errors: list[Refusal] = field(default_factory=list)
    #: The write calls of the run after the drift.
    drift_writes: int = 1
    #: Calls that are writes by their method only, such as a `stat` through the guest agent.
    harmless: str | None = None

    def tasks(self, lab: Lab) -> list[dict[str, Any]]:
        plays = [task.play(f"before_{number}") for number, task in enumerate(self.before)]
        plays += self._pair("create", self.create, check_again=True)
        plays += self._pair("change", self.change)
        if self.drift:
            by_hand = self.drift.task(lab) if isinstance(self.drift, Call) else self.drift
            wanted = self.create if self.change is None else self.change
            plays += [by_hand.play("drift"), *self._pair("heal", wanted, check_again=True)]
        if self.info:
            plays += [self.info.play("info")]
        plays += self._pair("delete", self.delete)
        for number, refusal in enumerate(self.errors):
            task = Task(refusal.module or self.module, refusal.arguments)
            plays += [task.play(f"error_{number}_check", ignore_errors=True, check_mode=True)]
            plays += [task.play(f"error_{number}", ignore_errors=True)]
        return plays

    def _pair(self, step: str, arguments: Arguments | None, check_again: bool = False) -> list[dict[str, Any]]:
        if arguments is None:
            return []
        task = Task(self.module, arguments)
        plays = [task.play(f"{step}_check", check_mode=True), task.play(step)]
        if check_again:
            plays.append(task.play(f"{step}_again_check", check_mode=True))
        return [*plays, task.play(f"{step}_again")]


@dataclass
class Outcome:
    """What came of the steps: results by step, and the calls that each made."""

    steps: Steps
    run: Run
    calls: list[dict[str, Any]]

    def result(self, step: str) -> dict[str, Any]:
        return self.run.named[step]

    def made(self, step: str) -> list[str]:
        """The calls that a step made, as `GET /path`."""
        began, ended = self.run.spans[step]
        return [f"{call['method']} {call['path']}" for call in self.calls if began <= call["at"] <= ended]

    def writes(self, step: str) -> list[str]:
        harmless = re.compile(self.steps.harmless or "(?!)")
        return [call for call in self.made(step) if not call.startswith("GET ") and not harmless.fullmatch(call)]

    def problems(self) -> list[str]:
        """Each thing that is not as it has to be, as a line."""
        if self.run.rc != 0:
            failed = [f"{name}: {result.get('msg')}" for name, result in self.run.named.items() if result.get("failed")]
            return [f"the run ended with {self.run.rc}", *failed, self.run.output[-3000:]]
        found = []
        for step in ("create", "change", "heal", "delete"):
            if step in self.run.named:
                found += self._of_pair(step)
        if "heal" in self.run.named and len(self.writes("heal")) != self.steps.drift_writes:
            found.append(f"heal wrote {self.writes('heal')}")
        if "info" in self.run.named:
            found += [f"info wrote {call}" for call in self.writes("info")]
            found += ["info changed"] if self.result("info").get("changed") else []
        for number, refusal in enumerate(self.steps.errors):
            found += self._of_refusal(f"error_{number}", refusal)
            found += self._of_refusal(f"error_{number}_check", refusal)
        return found

    def _of_pair(self, step: str) -> list[str]:
        predicted, real = self.result(f"{step}_check"), self.result(step)
        found = [f"{step}_check wrote {call}" for call in self.writes(f"{step}_check")]
        for name, result in ((f"{step}_check", predicted), (step, real)):
            found += [] if result.get("changed") else [f"{name} changed nothing"]
        if predicted.get("diff") != real.get("diff"):
            found.append(f"{step} predicted {predicted.get('diff')}\n and did {real.get('diff')}")
        if not self.writes(step):
            found.append(f"{step} wrote nothing")
        if not real.get("diff"):
            found.append(f"{step} has no diff")
        for name in (f"{step}_again_check", f"{step}_again"):
            if name in self.run.named:
                again = self.result(name)
                found += [f"{name} changed: {again.get('diff')}"] if again.get("changed") else []
                found += [f"{name} wrote {call}" for call in self.writes(name)]
        return found

    def _of_refusal(self, step: str, refusal: Refusal) -> list[str]:
        result = self.result(step)
        if not result.get("failed"):
            return [f"{step} did not fail: {refusal.arguments}"]
        found, message = [], str(result.get("msg"))
        if result.get("error_class") != refusal.error_class:
            found.append(f"{step} is a {result.get('error_class')}, not {refusal.error_class}: {message}")
        if not re.search(refusal.message, message) or "\n" in message:
            found.append(f"{step} says '{message}', not '{refusal.message}'")
        return found


def run(lab: Lab, steps: Steps) -> Outcome:
    """One ansible-playbook run of all steps. After an unexpected failure the rest is not run."""
    done = lab.tasks_run(*steps.tasks(lab))
    return Outcome(steps, done, lab.aid("GET", "calls"))
