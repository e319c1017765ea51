"""`python3 agent.pyz --identity FILE`: what the bootstrap runs. Its exit codes are the bootstrap's."""

import argparse
import ctypes
import logging
import signal
import sys
from pathlib import Path

from autovibe_agent.enrol import Identity
from autovibe_agent.hub import HubRefused
from autovibe_agent.life import IdentityIsOver, Life
from autovibe_agent.paths import Paths, User

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_WAIT = 75
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Lives one identity's life. 0: done and reported; 75: the identity is over; else: run me again."""
    parser = argparse.ArgumentParser(prog="autovibe-agent", description="The hub's agent in a machine.")
    parser.add_argument("--identity", type=Path, required=True, help="the identity that was pushed")
    parser.add_argument("--ca", type=Path, help="the hub's CA certificate, already checked")
    parser.add_argument("--root", type=Path, default=Path("/"), help="folder that stands for / (for tests)")
    parser.add_argument("--user", default="agent", help="user that the coding CLI runs as")
    parser.add_argument("--agent-sha256", default="", help="hash of this agent, told to the hub")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="autovibe-agent: %(message)s")
    end_with_parent()
    paths = Paths(args.root)
    try:
        life = Life(Identity.read(args.identity), paths, User.named(args.user, paths), args.agent_sha256)
    except (OSError, ValueError, KeyError) as error:
        logging.error("cannot begin: %s", error)
        return EXIT_FAILED
    signal.signal(signal.SIGTERM, end)
    try:
        life.run()
    except IdentityIsOver as error:
        logging.info("identity is over: %s", error)
        return EXIT_WAIT
    except HubRefused as error:
        logging.error("hub refused: %s", error)
        return EXIT_FAILED
    return EXIT_DONE


def end(*_) -> None:
    """SIGTERM: the CLI is ended, its work kept and gone on with later. Nothing is reported: whoever sent it knows."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def end_with_parent() -> None:
    """SIGTERM when the bootstrap dies: it comes back and runs an agent of its own."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
