"""`python -m autovibe_lab.model --key-file F [--port N] [--port-file F]`: serve the demo model on loopback."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from aiohttp import web

from autovibe_lab.model.server import create_app


def main() -> int:
    options = _options()
    try:
        key = options.key_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        sys.exit(f"The demo model cannot read its key file {options.key_file}: {error.strerror}")
    if not key:
        sys.exit(f"The demo model's key file {options.key_file} is empty")
    try:
        asyncio.run(_serve(key, options))
    except OSError as error:
        sys.exit(f"The demo model cannot listen on 127.0.0.1:{options.port}: {error.strerror or error}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="autovibe_lab.model", description="Serve the demo model on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--port-file", type=Path, help="where to write the port, once it answers")
    parser.add_argument("--key-file", type=Path, required=True, help="the key that callers must give")
    parser.add_argument("--bill-file", type=Path, help="append each billed call as a line of JSON")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between the events of a stream")
    return parser.parse_args()


async def _serve(key: str, options: argparse.Namespace) -> None:
    runner = web.AppRunner(create_app(key, bill_file=options.bill_file, pace=options.pace), access_log=None)
    await runner.setup()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        site = web.TCPSite(runner, "127.0.0.1", options.port, backlog=1024, shutdown_timeout=1)
        await site.start()
        port = runner.addresses[0][1]
        if options.port_file:
            _write(options.port_file, f"{port}\n")
        print(f"demo model on http://127.0.0.1:{port}", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


def _write(path: Path, text: str) -> None:
    """All at once: a reader never sees half a file."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
