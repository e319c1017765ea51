"""What all paths have in common: kinds of values, bodies, answers, pages, errors."""

from __future__ import annotations

import re
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.json_schema import WithJsonSchema

Item = TypeVar("Item")


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("NUL characters cannot be kept")
    return value


def text(most: int, least: int = 0, pattern: str | None = None) -> Any:
    """A string of bounded length without NUL characters."""
    bounds = StringConstraints(min_length=least, max_length=most, pattern=pattern)
    return Annotated[str, bounds, AfterValidator(_no_nul)]


def formed(most: int, pattern: str, said: str) -> Any:
    """A string that fits a pattern; `said` is what people are told of it."""

    def fits(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(said)
        return value

    return Annotated[text(most, 1), AfterValidator(fits), Field(json_schema_extra={"pattern": f"^{pattern}$"})]


MACHINE_NAME = formed(63, "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "a name has a-z, 0-9 and - between them, at most 63")


def _written_day(value: Any) -> Any:
    # Else a number would be the day of so many seconds after 1970.
    if not isinstance(value, date) and not (isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value)):
        raise ValueError("a day is written as 2026-01-31")
    return value


#: A day on its way in.
Day = Annotated[date, BeforeValidator(_written_day)]
#: An exact number on its way in: a string, or a JSON number.
Amount = Annotated[Decimal, Field(ge=0, lt=Decimal("1e15"), max_digits=24, decimal_places=9)]
#: On its way out: always a string.
Number = Annotated[Decimal, WithJsonSchema({"type": "string", "pattern": r"^-?\d+(\.\d+)?$"}, mode="serialization")]


class Body(BaseModel):
    """What is sent. An unknown field is an error: it is a misspelt one."""

    model_config = ConfigDict(extra="forbid")


class View(BaseModel):
    """What is answered. A client meets fields that it does not know when its hub is newer."""

    model_config = ConfigDict(extra="allow")


class ErrorBody(BaseModel):
    code: str
    message: str
    hint: str | None
    details: dict[str, Any]
    request_id: str
    time: datetime


class Error(BaseModel):
    """Every error."""

    error: ErrorBody


class Page(BaseModel, Generic[Item]):
    """A page of a list."""

    items: list[Item]
    next_cursor: str | None
