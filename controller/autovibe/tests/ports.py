"""Ports for servers that a test starts a moment later, on a machine where other tests run at the same time.

They are below those that the kernel gives out by itself: nothing that asks it for any port, and no outgoing connection,
gets one of them meanwhile. Of pytest-xdist's processes each has ports of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket

FIRST, EACH, PROCESSES = 20000, 1500, 8


def _of_this_process() -> itertools.cycle[int]:
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES
    first, begin = FIRST + number * EACH, random.randrange(EACH)
    return itertools.cycle(first + (begin + one) % EACH for one in range(EACH))


_ports = _of_this_process()


def free_port() -> int:
    """A port on which nobody listens now. It is not given out again soon."""
    while True:
        port = next(_ports)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
