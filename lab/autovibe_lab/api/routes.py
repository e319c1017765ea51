"""Which call is answered by which function, with which parameters."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp.web import FileField

from autovibe_lab import declared
from autovibe_lab.errors import ApiError
from autovibe_lab.node import Machine, Node
from autovibe_lab.schema import STRING, VMID, Schema
from autovibe_lab.tasks import Task


@dataclass
class Call:
    """One call: who makes it and its checked parameters, those of the path among them."""

    node: Node
    user: str
    params: dict[str, object]
    #: The file that came with the call, where it is one that takes one.
    upload: FileField | None = None

    @property
    def machine(self) -> Machine:
        """The guest of the path, or the 500 that says it has no configuration file."""
        return self.node.machine(self.params["vmid"])

    def unlocked(self) -> Machine:
        """The same; a locked one is a 500."""
        if message := self.machine.locked():
            raise ApiError(500, message)
        return self.machine

    def get(self, name: str, default: object = None) -> object:
        return self.params.get(name, default)

    def check(self, path: str, *privileges: str, any: bool = False) -> None:
        """Proxmox's 403 when the caller lacks these privileges (or all of them, with `any`) on this path."""
        self.node.access.permissions.check(self.user, path, *privileges, any=any)

    def can(self, path: str, *privileges: str, any: bool = False) -> bool:
        """The same as an answer."""
        return self.node.access.permissions.can(self.user, path, *privileges, any=any)

    def root_only(self, *names: str) -> None:
        """These parameters are for root's own ticket, not even for root's token."""
        for name in names:
            if name in self.params and self.user != "root@pam":
                if name == "skiplock":
                    raise ApiError(
                        400, "Parameter verification failed.", {"skiplock": "Only root may use this option."}
                    )
                raise ApiError(500, f"only root can set '{name}' config")

    def task(self, type: str, work: Callable[[Task], Awaitable[None]], id: object = None) -> str:
        """Start a task named after the guest of the path."""
        return self.node.tasks.start(type, str(self.params["vmid"] if id is None else id), self.user, work)


@dataclass
class Answer:
    """Data with something beside it, such as `total`."""

    data: object
    extra: dict[str, object] = field(default_factory=dict)


@dataclass
class Route:
    method: str
    template: str
    pattern: re.Pattern
    schema: Schema
    handler: Callable[[Call], Awaitable[object]]


ROUTES: list[Route] = []

PATH_PARAMS = {"vmid": VMID}


def schema_of(method: str, template: str) -> Schema:
    """The call's parameters as `declared.json` has them; of one that it lacks (it is none of Proxmox's), its path's."""
    call = f"{method} {template.replace('*}', '}')}"
    names = re.findall(r"{(\w+)\*?}", template)
    own = {name: PATH_PARAMS.get(name, STRING) for name in names}
    if call not in declared.calls():
        return Schema(own)
    found = declared.schema(call)
    return Schema(own | found.params, found.numbered, found.largest)


def route(method: str, template: str) -> Callable:
    """Register a call. `{name}` stands for one segment of the path, `{name*}` for all that follow."""

    def register(handler: Callable[[Call], Awaitable[object]]) -> Callable:
        pattern = re.sub(r"{(\w+)\*}", r"(?P<\1>.+)", template)
        pattern = re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", pattern)
        ROUTES.append(Route(method, template, re.compile(pattern), schema_of(method, template), handler))
        return handler

    return register


def find(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The route of a call and its path's parameters, or Proxmox's 501."""
    for candidate in ROUTES:
        if candidate.method == method and (match := candidate.pattern.fullmatch(path)):
            return candidate, match.groupdict()
    raise ApiError(501, f"Method '{method} {path}' not implemented")
