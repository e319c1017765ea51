"""The addresses that the hub listens on: bound by who serves them, and tried before the hub starts.

The machines' address is shared by several processes where there are several; people's is one process's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from autovibe.errors import AutovibeError
from autovibe.settings import Settings


class CannotListen(AutovibeError):
    """The hub cannot listen there."""

    code = "cannot_listen"


def check(settings: Settings) -> None:
    """CannotListen when an address is taken, not ours, or open to all without TLS."""
    with contextlib.closing(_alone(settings)) as first:
        # Only one that listens keeps the next one off its address.
        first.listen(1)
        if settings.api_bind:
            people_socket(settings).close()


def check_machines(settings: Settings) -> None:
    """CannotListen when the machines' address is taken or not ours."""
    _alone(settings).close()


def machines_socket(settings: Settings) -> socket.socket:
    """The bound socket for machines; CannotListen when the address is taken or not ours."""
    return _bound(settings.hub_bind, settings.hub_port, "hub_port", shared=settings.hub_processes > 1)


def people_socket(settings: Settings) -> socket.socket:
    """The bound socket for people elsewhere; CannotListen when it is taken, not ours, or open to all without TLS."""
    check_bind(settings)
    return _bound(settings.api_bind, settings.api_port, "api_port")


def check_bind(settings: Settings) -> None:
    """CannotListen for a public address without TLS, unless the settings say so in a word of their own."""
    if not settings.api_bind or settings.api_tls or settings.api_insecure:
        return
    try:
        private = ipaddress.ip_address(settings.api_bind).is_loopback
    except ValueError:
        private = settings.api_bind == "localhost"
    if not private:
        raise CannotListen(
            f"The API would listen on {settings.api_bind} without TLS",
            "Leave api_tls on, listen on 127.0.0.1 behind a proxy, or set api_insecure.",
        )


def reachable(bind: str) -> str:
    """The address at which this host reaches who listens on `bind`."""
    return "127.0.0.1" if bind in ("0.0.0.0", "::", "") else bind


def _alone(settings: Settings) -> socket.socket:
    return _bound(settings.hub_bind, settings.hub_port, "hub_port")


def _bound(bind: str, port: int, setting: str, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((bind, port))
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise CannotListen(
            f"Port {port} on {bind} cannot be used: {reason}",
            f"Stop what uses it, or choose another one (setting {setting}).",
        ) from None
    return listener
