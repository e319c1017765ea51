"""`python -m autovibe.api`: the hub's API and gateway over TLS, until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
import threading

import uvicorn

from autovibe import ca
from autovibe.api.app import create_app
from autovibe.api.servers import BoundedConnections, HubServer, allow_many_files, keep_loaded
from autovibe.errors import AutovibeError
from autovibe.listening import machines_socket
from autovibe.settings import Settings, load_settings

RENEW_EVERY_SECONDS = 6 * 3600
SHUTDOWN_SECONDS = 10

log = logging.getLogger(__name__)


def main() -> int:
    """Serves; 0 after a graceful end, 1 with one line when it cannot begin."""
    parser = argparse.ArgumentParser(prog="python -m autovibe.api", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, help="default: setting hub_port")
    parser.add_argument("--bind", help="address; default: setting hub_bind")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Their INFO lines are one for each request; some carry query strings.
    for name in ("httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        given = {"hub_port": args.port, "hub_bind": args.bind}
        settings = load_settings(**{key: value for key, value in given.items() if value is not None})
        with machines_socket(settings) as listener:
            serve(settings, listener)
    except AutovibeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def serve(settings: Settings, listener: socket.socket) -> None:
    """Serves on the socket until SIGTERM or SIGINT; renews its own certificate while it does."""
    allow_many_files()
    certificates = ca.ensure_for(settings)
    config = uvicorn.Config(
        create_app(settings),
        http=BoundedConnections,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nothing stands in front: an address in a header is a guest's own word.
        proxy_headers=False,
        lifespan="on",
        ssl_certfile=certificates.server,
        ssl_keyfile=certificates.server,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    config.load()
    keep_loaded()
    ended = threading.Event()
    threading.Thread(target=keep_certificate, args=(settings, config.ssl, ended), daemon=True).start()
    # uvicorn ends gracefully and then raises the signal again: that is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        HubServer(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        ended.set()


def keep_certificate(settings: Settings, context, ended: threading.Event) -> None:
    """New connections use a renewed certificate without a restart."""
    while not ended.wait(RENEW_EVERY_SECONDS):
        try:
            context.load_cert_chain(ca.ensure_for(settings).server)
        except Exception:
            log.exception("the hub's certificate could not be renewed")


if __name__ == "__main__":
    sys.exit(main())
