"""Does a lab's answer agree with a recorded one? Status, reason and body; what differs by nature is not compared.

By nature differ: ids that are made up (UPIDs, uuids, MAC addresses, secrets), times, digests, measured numbers (load,
traffic, space), the order of Perl's hashes, and the progress lines of a copy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: What a node makes up, in texts: learnt from an answer, then put into later calls in its place.
MADE_UP = re.compile(
    r"(?P<upid>UPID:pve1:[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}:[^:\s]+:[^:\s]*:[^:\s]+:)"
    r"|(?P<uuid>\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b|TOKEN-SECRET)"
    r"|(?P<mac>\b(?i:BC:24:11(?::[0-9A-F]{2}){3})\b)"
    r"|(?P<ctime>\bctime=\d+)"
    r"|(?P<stamp>\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d)"
    r"|(?P<date>\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d)?)"
    r"|(?P<clock>\b[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\b)"
    r"|(?P<address>\b(?:10\.77\.0\.1|127\.0\.0\.1)\b)"
    r"|(?P<upload>pveupload-[0-9a-f]+|vzdumptmp\d+)"
    r"|(?P<password>\$5\$[^\s$]+\$[^\s$]+)"
    r"|(?P<digest>\b[0-9a-f]{40}\b)"
)
#: What is measured, in a log: how long a backup took, how large an archive became.
TOOK = re.compile(r"(?<= in )\d+ seconds \([^)]*/s\)|(?<=archive file size: )\S+|\(\d\d:\d\d:\d\d\)$")
#: A command's options, which Perl keeps in a hash.
OPTIONS = re.compile(r"(?<= vzdump )\d+( --.*)")
#: Keys whose values are measured, count time or are made up: types only.
MEASURED = re.compile(
    r"avail|cpu|ctime|freemem|disk|diskread|diskwrite|endtime|localtime|mem|netin|netout|next-run|pid|pri|pstart|snaptime|starttime"
    r"|time|uid|uptime|used|used_fraction|wait|loadavg|kversion|ssl_fingerprint|serverid|cgroup-mode|ticket|CSRFPreventionToken|digest"
    r"|cert|password"
)
#: The node's own hardware: inside of these, types only.
HARDWARE = {
    "cpuinfo",
    "memory",
    "swap",
    "rootfs",
    "ksm",
    "current-kernel",
    "boot-info",
    "blockstat",
    "ballooninfo",
    "nics",
}
#: The same of an entry of a list of nodes.
OF_NODES = {"maxcpu", "maxdisk", "maxmem"}
#: Lists in one text whose order is that of a hash.
UNORDERED = {"content", "privs"}
PROGRESS = re.compile(
    r"(drive-\w+: )?transferred .*\(\d+\.\d+%\)( in \d+s(, ready)?)?"
    r"|[\d.]+ \w+ in \d+s|completed saving the VM state in .*"
    r"|INFO: +\d+% .*|trying to acquire lock\.\.\.| OK"
)
#: What names an entry of a list.
NAMES = (
    "upid",
    "volid",
    "id",
    "vmid",
    "n",
    "key",
    "roleid",
    "userid",
    "groupid",
    "realm",
    "poolid",
    "storage",
    "iface",
)
NAMES += ("subdir", "name", "pos", "cidr", "tokenid", "group", "macro", "method", "path", "ugid", "type")


@dataclass
class Comparison:
    """One answer beside the recorded one; `deviations` names what differs, `made_up` what stands for what."""

    deviations: list[str] = field(default_factory=list)
    made_up: dict[str, str] = field(default_factory=dict)

    def differs(self, what: str) -> None:
        if what not in self.deviations:
            self.deviations.append(what)

    # Texts ------------------------------------------------------------------------------------------------------

    def text(self, recorded: str, answered: str, where: str) -> None:
        """Learn what was made up, then compare the rest."""
        ours, theirs = list(MADE_UP.finditer(answered)), list(MADE_UP.finditer(recorded))
        if [match.lastgroup for match in ours] == [match.lastgroup for match in theirs]:
            for mine, its in zip(ours, theirs, strict=True):
                self.made_up.setdefault(its[0], mine[0])
        if plain(recorded) != plain(answered):
            self.differs(f"{where}: {short(answered)} instead of {short(recorded)}")

    # Bodies -----------------------------------------------------------------------------------------------------

    def value(self, recorded: object, answered: object, key: str = "", where: str = "body") -> None:
        if isinstance(recorded, dict) and isinstance(answered, dict):
            self._object(recorded, answered, key, where)
        elif isinstance(recorded, list) and isinstance(answered, list):
            self._list(recorded, answered, key, where)
        elif MEASURED.fullmatch(key) or where_is_hardware(where):
            if kind(recorded) != kind(answered):
                self.differs(f"{where}: {kind(answered)} instead of {kind(recorded)}")
            elif key == "digest":
                self.text(recorded, answered, where)
        elif key == "saved":  # the node itself says 1 here and "1" there
            if str(recorded) != str(answered):
                self.differs(f"{where}: {short(answered)} instead of {short(recorded)}")
        elif type(recorded) is not type(answered):
            self.differs(f"{where}: {short(answered)} instead of {short(recorded)}")
        elif isinstance(recorded, str):
            if key in UNORDERED:
                recorded, answered = (",".join(sorted(text.split(","))) for text in (recorded, answered))
            self.text(recorded, answered, where)
        elif recorded != answered:
            self.differs(f"{where}: {short(answered)} instead of {short(recorded)}")

    def _object(self, recorded: dict, answered: dict, key: str, where: str) -> None:
        if "t" in recorded and "n" in recorded and "n" in answered:
            recorded, answered = (
                {name: entry[name] for name in entry if name != "n"} for entry in (recorded, answered)
            )
        if missing := sorted(recorded.keys() - answered.keys()):
            self.differs(f"{where}: without {', '.join(missing)}")
        if more := sorted(answered.keys() - recorded.keys()):
            self.differs(f"{where}: has {', '.join(more)}")
        for name in sorted(recorded.keys() & answered.keys()):
            if name == "total" and is_log(recorded.get("data")) and is_log(answered.get("data")):
                continue  # follows from the lines
            measured = (name in OF_NODES and recorded.get("type") == "node") or (
                name == "size" and recorded.get("content") == "backup"
            )
            self.value(recorded[name], answered[name], "used" if measured else name, f"{where}.{name}")

    def _list(self, recorded: list, answered: list, key: str, where: str) -> None:
        if is_log(recorded) and is_log(answered):
            recorded, answered = lines(recorded), lines(answered)
        elif all(isinstance(entry, dict) for entry in recorded + answered):
            recorded, answered = self._paired(recorded, answered)
        else:
            recorded, answered = sorted(map(str, recorded)), sorted(map(str, answered))
        if len(recorded) != len(answered):
            self.differs(f"{where}: {len(answered)} instead of {len(recorded)} entries")
        for old, new in zip(recorded, answered, strict=False):
            self.value(old, new, key, f"{where}[]")

    def _paired(self, recorded: list, answered: list) -> tuple[list, list]:
        """Entries of the same name beside each other. A list of tasks is in the order that it was given in."""
        name = next((name for name in NAMES if all(name in entry for entry in recorded + answered)), None)
        if name in (None, "upid", "n", "pos", "time"):
            return recorded, answered
        names = [name, *(other for other in ("roleid", "path", "id", "name") if other != name)]

        def order(entry: dict) -> list[str]:
            return [plain(str(entry.get(each, ""))) for each in names]

        return sorted(recorded, key=order), sorted(answered, key=order)


def plain(text: str) -> str:
    """The text with what is made up replaced by its kind."""
    text = OPTIONS.sub(lambda match: " --".join(sorted(match[0].split(" --"))), TOOK.sub("<measured>", text))
    return MADE_UP.sub(lambda match: f"<{match.lastgroup}{_task(match)}>", text).strip()


def _task(match: re.Match) -> str:
    """Of a UPID its type, guest and user count."""
    return " " + ":".join(match[0].split(":")[5:8]) if match.lastgroup == "upid" else ""


def short(value: object) -> str:
    text = plain(value) if isinstance(value, str) else str(value)
    return repr(text if len(text) < 90 else text[:87] + "…")


def kind(value: object) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def where_is_hardware(where: str) -> bool:
    return any(part.removesuffix("[]") in HARDWARE for part in where.split("."))


def is_log(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(line, dict) and "t" in line for line in value)


def lines(log: list[dict]) -> list[dict]:
    """A task's log without what depends on how fast the machine is."""
    return [line for line in log if not PROGRESS.fullmatch(line["t"])]
