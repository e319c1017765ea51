"""Parameters of the API's calls: a table per call, checked as Proxmox checks them, with its own messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from autovibe_lab.errors import ApiError

UNKNOWN = "property is not defined in schema and the schema does not allow additional properties"
MISSING = "property is missing and it is not optional"


@dataclass(frozen=True)
class Param:
    """One parameter. `check` gets the text and raises ValueError with what Proxmox says after `invalid format - `;
    `pattern` must match the whole text; `requires` names another parameter without which this one may not be given;
    an `is_list` may be given several times."""

    type: str = "string"
    optional: bool = False
    enum: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    min_length: int = 0
    max_length: int | None = None
    pattern: str = ""
    requires: str = ""
    check: Callable[[str], object] | None = None
    is_list: bool = False

    def parse(self, value: object) -> object:
        """The typed value; raises ValueError with the message for `errors`."""
        if self.type == "array":
            return [str(item) for item in value] if isinstance(value, list) else [str(value)]
        if self.is_list and isinstance(value, list):
            value = ",".join(map(str, value))
        if isinstance(value, list):
            raise ValueError(f"type check ('{self.type}') failed - got ARRAY")
        if self.type == "boolean":
            return self._boolean(value)
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if self.type in ("integer", "number"):
            return self._number(text)
        self._check_format(text)
        if self.pattern and not re.fullmatch(self.pattern, text):
            raise ValueError("value does not match the regex pattern")
        self._check_length(text)
        if self.enum and text not in self.enum:
            raise ValueError(f"value '{text}' does not have a value in the enumeration '{', '.join(self.enum)}'")
        return text

    def _check_format(self, text: str) -> None:
        try:
            if self.check is not None:
                self.check(text)
        except ValueError as error:
            raise ValueError(f"invalid format - {error}\n") from None

    def _check_length(self, text: str) -> None:
        if len(text) < self.min_length:
            raise ValueError(f"value must be at least {self.min_length} characters long")
        if self.max_length is not None and len(text) > self.max_length:
            raise ValueError(f"value may only be {self.max_length} characters long")

    def _boolean(self, value: object) -> bool:
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if text not in ("0", "1"):
            raise ValueError(f"type check ('boolean') failed - got '{text}'")
        return text == "1"

    def _number(self, text: str) -> int | float:
        pattern = r"-?\d+" if self.type == "integer" else r"-?\d+(\.\d+)?"
        if not re.fullmatch(pattern, text):
            raise ValueError(f"type check ('{self.type}') failed - got '{text}'")
        number = int(text) if self.type == "integer" else float(text)
        self._check_format(text)
        if self.minimum is not None and number < self.minimum:
            raise ValueError(f"value must have a minimum value of {self.minimum}")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"value must have a maximum value of {self.maximum}")
        return number


def opt(param: Param) -> Param:
    """The same parameter, not required."""
    return replace(param, optional=True)


class Schema:
    """The parameters of one call; `numbered` holds families such as `net[n]`, keyed by their stem, `largest` their
    greatest n."""

    def __init__(
        self,
        params: dict[str, Param],
        numbered: dict[str, Param] | None = None,
        largest: dict[str, int] | None = None,
    ) -> None:
        self.params = params
        self.numbered = numbered or {}
        self.largest = largest or {}

    def find(self, name: str) -> Param | None:
        if name in self.params:
            return self.params[name]
        match = re.fullmatch(r"(\w+?)(0|[1-9]\d*)", name)
        if not match or int(match[2]) > self.largest.get(match[1], 255):
            return None
        return self.numbered.get(match[1])

    def verify(self, given: dict[str, object]) -> dict[str, object]:
        """Typed values; raises the 400 that names every wrong parameter at once."""
        errors: dict[str, str] = {}
        values: dict[str, object] = {}
        for name, value in given.items():
            param = self.find(name)
            if param is None:
                errors[name] = UNKNOWN
                continue
            try:
                values[name] = param.parse(value)
            except ValueError as error:
                # Property strings say `drive.format`, `net.tag`: here is known which one it is.
                errors[name] = re.sub(r"\n(drive|net|ipconfig)?\.", f"\n{name}.", str(error))
        for name, param in self.params.items():
            if not param.optional and name not in given:
                errors.setdefault(name, MISSING)
            if name in given and param.requires and param.requires not in given:
                errors[param.requires] = f"missing property - '{name}' requires this property"
        if errors:
            raise ApiError(400, "Parameter verification failed.", errors)
        return values


# Formats ------------------------------------------------------------------------------------------------------------


def vm_id(text: str) -> None:
    if not re.fullmatch(r"[1-9][0-9]{2,8}", text):
        raise ValueError("value does not look like a valid VM ID")


class VmId(Param):
    """A VM id: an integer first, then its range."""

    def parse(self, value: object) -> object:
        number = super().parse(value)
        try:
            vm_id(str(number))
        except ValueError as error:
            raise ValueError(f"invalid format - {error}\n") from None
        return number


STRING = Param()
VMID = VmId("integer")
