"""How a call fails."""

from __future__ import annotations


class ApiError(Exception):
    """A call is answered with `status`; the message is the reason phrase and stands in the body, as Proxmox does it:
    with the HTTP server's own refusals as mere `text`, with others as JSON."""

    def __init__(
        self, status: int, message: str, errors: dict[str, str] | None = None, body: bool = True, text: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = errors
        self.body = body
        self.text = text


class TaskError(Exception):
    """A task ends with this message as its `exitstatus`."""


def invalid(**errors: str) -> ApiError:
    """A 400 that names each parameter and what is wrong with it."""
    return ApiError(400, "Parameter verification failed.", errors)


def no_config(node: str, vmid: int) -> ApiError:
    return ApiError(500, f"Configuration file 'nodes/{node}/qemu-server/{vmid}.conf' does not exist")
