"""What agents send, and its bounds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from autovibe.errors import Invalid

Parsed = TypeVar("Parsed", bound=BaseModel)
OBJECT_CHARACTERS = 64 << 10
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def cut(length: int) -> Any:
    """A string that is cut to `length` characters."""
    return Annotated[str, AfterValidator(lambda value: value[:length])]


def _as_postgres_keeps_it(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value, allow_nan=False)) > OBJECT_CHARACTERS:
        raise ValueError(f"it has more than {OBJECT_CHARACTERS} characters")
    return value


#: An object of the agent's own; NaN and infinity are no JSON.
Object = Annotated[dict[str, Any], AfterValidator(_as_postgres_keeps_it)]


class Body(BaseModel):
    """A request's body. Unknown keys are ignored: an agent may be newer than its hub."""

    model_config = ConfigDict(extra="ignore")


class Enrol(Body):
    machine: UUID
    generation: int = Field(ge=1, le=2**31 - 1)
    token: str = Field(min_length=1, max_length=200)
    nonce: str = Field(min_length=8, max_length=200)
    agent_sha256: str = Field("", max_length=64)


class Heartbeat(Body):
    status: Literal["working"] = "working"
    progress: cut(500) | None = None


class ProgressMessage(Body):
    at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    kind: Literal["text", "tool", "system", "error"]
    text: cut(8000)
    seq: int | None = Field(None, ge=0, le=2**63 - 1)


class Progress(Body):
    """`spool` and a message's `seq` in it name the message: it is kept once, however often it is sent."""

    spool: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    messages: list[ProgressMessage] = Field(max_length=500)


class ManifestFile(Body):
    path: str = Field(min_length=1, max_length=4096)
    size: int = Field(ge=0, le=2**63 - 1)
    sha256: Sha256 | None = None
    mode: Annotated[str, StringConstraints(max_length=20)] | Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


class Manifest(Body):
    files: list[ManifestFile] = Field(default_factory=list, max_length=20_000)
    truncated: bool = False


class CheckpointRequest(Body):
    type: Literal["automatic", "manual"] = "automatic"
    description: cut(1000) | None = None
    standing: bool = False
    context: Object | cut(10_000) | None = None
    manifest: Manifest = Field(default_factory=Manifest)


class File(Body):
    kind: Literal["workspace"]
    name: Literal["workspace.tar.gz"]
    sha256: Sha256
    upload: Sha256 | None = None


class Result(Body):
    outcome: Literal["succeeded", "failed", "out_of_budget", "stopped"]
    summary: cut(8000) = ""
    exit_code: int | None = Field(None, ge=-(2**31), le=2**31 - 1)
    manifest: Manifest = Field(default_factory=Manifest)
    details: Object = Field(default_factory=dict)


def parse(model: type[Parsed], body: bytes) -> Parsed:
    """The body as that message; Invalid with the first thing that is wrong, without its value.

    Postgres keeps no NUL characters: they come out as the replacement character.
    """
    try:
        return model.model_validate_json(body.replace(b"\\u0000", b"\\ufffd") or b"{}")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"{place or 'body'}: {first['msg']}") from None
