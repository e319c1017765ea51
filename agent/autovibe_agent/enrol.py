"""Turns the pushed identity into a machine token."""

import json
import secrets
from dataclasses import dataclass

from autovibe_agent.hub import Hub
from autovibe_agent.paths import Paths, User, write_private


@dataclass(frozen=True)
class Identity:
    """What role `machine` pushed: who this machine is, and a token that enrols it once."""

    machine: str
    generation: int
    hub_url: str
    token: str

    @classmethod
    def read(cls, path) -> "Identity":
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls(str(value["machine"]), int(value["generation"]), str(value["hub_url"]), str(value["token"]))


@dataclass(frozen=True)
class Enrolment:
    """What the hub says on enrolling, besides the token."""

    heartbeat_seconds: float


def enrol(hub: Hub, identity: Identity, paths: Paths, user: User, agent_sha256: str) -> Enrolment:
    """Enrols until the hub answers; HubRefused when it says no.

    The nonce is made once per identity and boot. A repeated call (a lost answer, an agent that died) says the same
    nonce and is answered again; a copy of this disk elsewhere has another one and is refused.
    """
    answer = hub.persist(
        "POST",
        "/agent/v1/enrol",
        {
            "machine": identity.machine,
            "generation": identity.generation,
            "token": identity.token,
            "nonce": _nonce(identity, paths),
            "agent_sha256": agent_sha256,
        },
    )
    keep_token(hub, paths, user, answer["token"])
    return Enrolment(max(0.05, float(answer.get("heartbeat_seconds", 10))))


def keep_token(hub: Hub, paths: Paths, user: User, token: str) -> None:
    """Uses a token from now on, and leaves it where the coding CLI's key helper reads it."""
    if token != hub.token:
        hub.token = token
        write_private(paths.token, token, user)


def _nonce(identity: Identity, paths: Paths) -> str:
    owner = {"machine": identity.machine, "generation": identity.generation}
    try:
        kept = json.loads(paths.nonce.read_text(encoding="utf-8"))
        if {key: kept[key] for key in owner} == owner:
            return str(kept["nonce"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    nonce = secrets.token_urlsafe(24)
    write_private(paths.nonce, json.dumps({**owner, "nonce": nonce}))
    return nonce
