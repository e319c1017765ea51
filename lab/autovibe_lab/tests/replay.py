"""Replays recorded calls of a real node against a fresh lab of null guests, and says where the answers differ.

::

    python -m autovibe_lab.tests.replay                     # the score of every section
    python -m autovibe_lab.tests.replay --section config    # that section's deviations (all before it is replayed too)
    python -m autovibe_lab.tests.replay --call 132          # one call, both answers
    python -m autovibe_lab.tests.replay --write             # the table in lab/README.md

The recording is `pve/transcript-8.4.jsonl` in the folder `AUTOVIBE_REFERENCE` (default: `../shared`
beside the project).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from autovibe_lab.tests.reference import PROJECT, recorded_calls
from autovibe_lab.tests.replay_client import Reply, Sender
from autovibe_lab.tests.replay_clock import ReplayLoop
from autovibe_lab.tests.replay_compare import Comparison
from autovibe_lab.tests.testing import LabInThread

README = PROJECT / "lab" / "README.md"
#: How long the recorder waited for a task at most.
LONGEST_TASK = 300
#: Within so many seconds a call is answered that has not to wait for a lock.
ANSWERS = 1
#: How long the recorder let a task work that it was to abort.
PAUSE = 1
#: Before this call the recorder deleted all guests that were left, and wrote down only which one stayed.
CLEANED_BEFORE = 1435
MARKS = ("<!-- replay: begin -->", "<!-- replay: end -->")


@dataclass
class Result:
    """One call and how the lab's answer differs: kinds such as `status`, each with the details."""

    call: dict
    reply: Reply
    deviations: dict[str, list[str]] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        return not self.deviations


def section_of(call: dict) -> str:
    return call["section"].split(" (qemu-img")[0]


# Order ------------------------------------------------------------------------------------------------------------


def groups(calls: list[dict]) -> Iterator[list[dict]]:
    """The calls in order, those that were made at the same time together."""
    notes = " ".join(call.get("note", "") for call in calls)

    def together(call: dict) -> bool:
        note = call.get("note", "")
        if re.match(r"(final task status|task log) of", note) or re.search(r"/tasks/UPID", call["path"]):
            return False
        return bool(re.search(r" #\d+$|^parallel ", note)) or bool(note) and f"of: parallel {note}" in notes

    def beside(at: int) -> bool:
        """A refusal among calls made at the same time has no task that says so."""
        return (
            calls[at]["method"] != "GET"
            and calls[at]["http_status"] != 200
            and any(
                (other := _next_with_task(calls, at, step)) and together(other) and "#" not in other["note"]
                for step in (-1, 1)
            )
        )

    marks = [together(call) or beside(at) for at, call in enumerate(calls)]
    for together_now, run in groupby(range(len(calls)), key=lambda at: marks[at]):
        if together_now:
            yield from _families([calls[at] for at in run])
        else:
            yield from ([calls[at]] for at in run)


def _next_with_task(calls: list[dict], at: int, step: int) -> dict | None:
    """The next call in this direction that was not refused at once; reads end the search."""
    at += step
    while 0 <= at < len(calls) and calls[at]["method"] != "GET" and calls[at]["section"] == calls[at - step]["section"]:
        if calls[at]["http_status"] == 200:
            return calls[at]
        at += step
    return None


def _families(run: list[dict]) -> Iterator[list[dict]]:
    """`… #0 … #1` belong together, and another text begins another group."""
    for _, family in groupby(run, key=lambda call: re.sub(r" #\d+$", "", call["note"]) if "#" in call["note"] else ""):
        yield list(family)


# Replaying ----------------------------------------------------------------------------------------------------------


class Replay:
    """A lab, its recorder, and the results so far."""

    def __init__(self, folder: Path, calls: list[dict]) -> None:
        self.calls = calls
        settings = {
            "null_guests": True,
            "bare_guests": True,
            "latency": "pve84",
            "site": "bare",
            "login_delay": 3,
        }
        self.clock = ReplayLoop()
        self.lab = LabInThread(folder / "lab", loop=self.clock, **settings)
        self.clock.calls = self.lab.lab.server.aids.calls
        self.sender = Sender(self.lab, folder)
        self.results: list[Result] = []
        #: The recorder's clock, and the lab's, when the last task began of which both are known.
        self.began: tuple[float, float] | None = None

    def run(self, until: str | None = None) -> list[Result]:
        """Replay up to the end of section `until`, or all."""
        reached = False
        for group in groups(self.calls):
            here = section_of(group[0]) == until
            if reached and not here:
                break
            reached = here
            self._group(group)
        return self.results

    def close(self) -> None:
        self.clock.run_on()
        self.lab.close()

    def _group(self, group: list[dict]) -> None:
        replies: dict[int, Reply] = {}
        # A wrapper of the recorder's slowed `qemu-img create` down in this section, by two seconds and its own start.
        self.lab.node.disk_delay = 2.05 if "slow storage" in section_of(group[0]) else 0

        def send(call: dict) -> None:
            replies[call["seq"]] = self.sender.perform(call)
            self.clock.answered()

        if len(group) == 1:
            self._unrecorded(group[0])
            self._await_task(group[0])
            self._await_guest(group[0])
            self._await_time(group[0])
            self.clock.begin(1)
            send(group[0])
        else:
            self._together(group, send)
        for call in group:
            self.results.append(self._compare(call, replies[call["seq"]]))

    def _unrecorded(self, call: dict) -> None:
        """What the recorder did without writing it down: calls of which only the task was, and its cleaning up."""
        match = re.search(r"/tasks/(UPID:[^/]+)/status$", call["path"])
        made = re.match(
            r"final task status of: (POST|DELETE) (/nodes/pve1/qemu/\d+(?:/status/stop)?) *$", call.get("note", "")
        )
        if match and made and match[1] not in self.sender.made_up:
            upid = self._as_root(made[1], made[2])
            if str(upid).startswith("UPID:"):
                self.sender.made_up[match[1]] = upid
        if call["seq"] == CLEANED_BEFORE:
            kept = {entry["vmid"] for entry in call["response_body"]["data"]}
            for vmid in sorted(set(self.lab.node.machines) - kept, reverse=True):
                for method, path in (("POST", f"{vmid}/status/stop"), ("DELETE", f"{vmid}")):
                    task = self.lab.node.tasks.all.get(self._as_root(method, f"/nodes/pve1/qemu/{path}"))
                    self.clock.until(lambda task=task: task is None or task.status is not None, LONGEST_TASK)

    def _together(self, group: list[dict], send: Callable[[dict], None]) -> None:
        """Calls that were made at the same time: in their order, and all before the first one's worker begins."""
        threads, gate = [], self.lab.node.tasks.gate
        self._await_time(group[0])
        self.clock.stands = True
        self.clock.call_soon_threadsafe(gate.clear)
        self.clock.begin(len(group))
        for number, call in enumerate(group):
            threads.append(threading.Thread(target=send, args=(call,)))
            threads[-1].start()
            while threads[-1].is_alive() and self.clock.arrived() <= number:
                time.sleep(0.0005)
        # Some wait for a lock before they are answered.
        self.clock.until(self.clock.all_answered, ANSWERS, then=gate.set)
        for thread in threads:
            thread.join()

    def _as_root(self, method: str, path: str) -> object:
        """The data of a call that is not in the recording."""
        self.clock.begin(1)
        data = self.sender.as_root(method, path)
        self.clock.answered()
        return data

    def _await_time(self, call: dict) -> None:
        """A task was begun so long after the last one: its UPID has hundredths of seconds."""
        data = (call.get("response_body") or {}).get("data")
        if call["method"] == "DELETE" and "/tasks/UPID" in call["path"]:
            self.clock.until(lambda: False, PAUSE)
        if not isinstance(data, str) or not data.startswith("UPID:"):
            return
        recorded, now = int(data.split(":")[3], 16) / 100, self.clock.time()
        if self.began:
            passed = now - self.began[1]
            self.clock.until(lambda: False, recorded - self.began[0] - passed)
        self.began = (recorded, self.clock.time())

    def _await_task(self, call: dict) -> None:
        """A call that was answered with an ended task was repeated until then."""
        match = re.search(r"/tasks/(UPID:[^/]+)(/|$)", call["path"])
        if match is None or '"running"' in json.dumps(call.get("response_body")):
            return
        note = call.get("note", "")
        if not note.startswith(("final task status", "task log of", "aborted")):
            return
        task = self.lab.node.tasks.all.get(self.sender.made_up.get(match[1], ""))
        if task:
            self.clock.until(lambda: task.status is not None, LONGEST_TASK)

    def _await_guest(self, call: dict) -> None:
        """The agent of a guest that is being started again was asked when it was there."""
        match = re.search(r"/qemu/(\d+)/agent/", call["path"])
        machine = self.lab.node.machines.get(int(match[1])) if match else None
        if machine and call["http_status"] == 200:
            self.clock.until(machine.running, LONGEST_TASK)

    def _compare(self, call: dict, reply: Reply) -> Result:
        result, comparison = Result(call, reply), Comparison()
        if reply.status != call["http_status"]:
            said = f"{reply.status} {reply.reason}"[:100]
            result.deviations["status"] = [f"{said} instead of {call['http_status']} {call['http_reason']}"[:220]]
        else:
            comparison.text(call["http_reason"], reply.reason, "reason")
            if comparison.deviations:
                result.deviations["reason"], comparison.deviations = comparison.deviations, []
        body = _parsed(reply.body)
        if "response_body" in call:
            if not isinstance(body, dict):
                comparison.differs(f"body: {reply.body[:60]!r} instead of JSON")
            else:
                comparison.value(call["response_body"], body)
        elif isinstance(recorded := _parsed(call.get("response_text", "")), dict) and isinstance(body, dict):
            comparison.value(recorded, body)
        else:
            comparison.text(call.get("response_text", ""), reply.body, "body")
        self.sender.learn(call, body, comparison.made_up)
        if comparison.deviations and "status" not in result.deviations:
            for deviation in comparison.deviations:
                result.deviations.setdefault(_kind(call, deviation), []).append(deviation)
        return result


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _kind(call: dict, deviation: str) -> str:
    if call["path"].endswith("/log"):
        return "task log"
    where = deviation.partition(": ")[0]
    if where.endswith(".exitstatus"):
        return "exit status"
    if ": without " in deviation or ": has " in deviation:
        return "keys"
    return "entries" if deviation.endswith(" entries") else "values"


# Telling ------------------------------------------------------------------------------------------------------------


def scores(results: list[Result]) -> list[tuple[str, int, int, Counter]]:
    """Each section with how many calls agree, of how many, and the kinds of deviation."""
    found = []
    for section, run in groupby(results, key=lambda result: section_of(result.call)):
        part = list(run)
        kinds = Counter(next(iter(result.deviations)) for result in part if result.deviations)
        found.append((section, sum(result.agrees for result in part), len(part), kinds))
    return found


def table(results: list[Result]) -> str:
    """The score as a table, in Markdown."""
    rows = ["| section | agree | of | differ in |", "|---|---|---|---|"]
    for section, agree, total, kinds in scores(results):
        rows.append(f"| {section} | {agree} | {total} | {', '.join(f'{k} {n}' for k, n in kinds.most_common())} |")
    agree = sum(result.agrees for result in results)
    rows.append(f"| **all** | **{agree}** | **{len(results)}** | {100 * agree / len(results):.1f} % agree |")
    return "\n".join(rows) + "\n"


def listed(result: Result) -> str:
    """One deviating call with its details."""
    call = result.call
    params = json.dumps(call["params"], ensure_ascii=False)[:150] if "params" in call else ""
    head = (
        f"{call['seq']} {call.get('auth', '-')} {call['method']} {call['path']} {params}  # {call.get('note', '')[:90]}"
    )
    return "\n".join([head, *(f"    {kind}: {text}" for kind, texts in result.deviations.items() for text in texts)])


def write(results: list[Result]) -> None:
    """The table into the lab's README, between its marks."""
    text = README.read_text()
    begin, end = MARKS
    head, _, rest = text.partition(begin)
    README.write_text(f"{head}{begin}\n{table(results)}{end}{rest.partition(end)[2]}")


def replayed(until: str | None = None) -> list[Result]:
    """Replay in a folder of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        replay = Replay(Path(folder), recorded_calls())
        try:
            return replay.run(until)
        finally:
            replay.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", help="list the deviations of this section (its first letters are enough)")
    parser.add_argument("--call", type=int, help="show both answers to the call of this number")
    parser.add_argument("--write", action="store_true", help="write the table into lab/README.md")
    options = parser.parse_args()
    until, calls = None, recorded_calls()
    if options.call:
        until = next((section_of(call) for call in calls if call["seq"] == options.call), None)
    elif options.section:
        until = next((s for call in calls if (s := section_of(call)).startswith(options.section)), None)
        if until is None:
            sys.exit("Sections: " + ", ".join(dict.fromkeys(map(section_of, calls))))
    results = replayed(until)
    if options.call:
        result = next(result for result in results if result.call["seq"] == options.call)
        print(listed(result), json.dumps(result.call, indent=1, ensure_ascii=False), vars(result.reply), sep="\n")
        return
    if options.section:
        print(*(listed(r) for r in results if r.deviations and section_of(r.call) == until), sep="\n")
    if options.write:
        write(results)
    print(table(results))


if __name__ == "__main__":
    main()
