"""`python -m autovibe.api.v1`: the API for people, until SIGTERM."""

from __future__ import annotations

import logging
import sys

from autovibe.api.v1 import server
from autovibe.errors import AutovibeError
from autovibe.settings import load_settings


def main() -> int:
    """Serves; 0 after a graceful end, 1 with one line when it cannot begin."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        server.run(load_settings())
    except AutovibeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
