"""Listens: on a socket in the state folder for its owner, and, when it is told to, on an address for everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio.to_thread
import uvicorn
import uvloop

from autovibe import ca, db
from autovibe.api.servers import HubServer, allow_many_files, behind, keep_loaded
from autovibe.api.v1.app import create_app
from autovibe.api.v1.middleware import Local
from autovibe.listening import CannotListen, people_socket
from autovibe.settings import Settings
from autovibe.sockets import answers, short

log = logging.getLogger(__name__)

#: Database steps at a time: what the engine's pool has, less what streams and notifications take.
THREADS = 12
SHUTDOWN_SECONDS = 10
BACKLOG = 2048
RENEW_EVERY_SECONDS = 6 * 3600


class Server(HubServer):
    """A server that leaves signals to who runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    settings: Settings, local: socket.socket, public: socket.socket | None, stop: asyncio.Event, *, listen: bool = True
) -> None:
    """Serve on these sockets until `stop` is set. Without `listen`, it listens to the database only for who follows."""
    app = create_app(settings)
    servers = [(Server(configured(Local(app))), local)]
    keeper = None
    if public is not None:
        config = configured(app, settings)
        config.load()
        servers.append((Server(config), public))
        if config.ssl is not None:
            keeper = asyncio.create_task(_keep_certificate(settings, config.ssl))
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    notifications = app.state.doors.notifications
    if listen:
        notifications.start()
        keep_loaded()
    serving = [asyncio.create_task(server.serve(sockets=[listener])) for server, listener in servers]
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([stopped, *serving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        notifications.stop()
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*serving, return_exceptions=True)
        await app.state.pool.close()
        for task in (stopped, keeper):
            if task is not None:
                task.cancel()


def configured(app: object, public: Settings | None = None) -> uvicorn.Config:
    """uvicorn's; `public`: of the address that these settings name, else of the hub's own socket."""
    more, proxies = {}, []
    if public is not None:
        proxies = [str(one) for one in public.api_proxy]
        more["http"] = behind(public.api_proxy)
        if public.api_tls:
            certificate = ca.ensure_for(public).server
            more |= {"ssl_certfile": certificate, "ssl_keyfile": certificate}
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        # Anybody else who says in a header where he comes from would choose whom his failures are counted for.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        lifespan="off",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        **more,
    )


async def _keep_certificate(settings: Settings, context) -> None:
    """New connections use a renewed certificate without a restart."""
    while True:
        await asyncio.sleep(RENEW_EVERY_SECONDS)
        try:
            context.load_cert_chain(await asyncio.to_thread(lambda: ca.ensure_for(settings).server))
        except Exception:
            log.exception("the API's certificate could not be renewed")


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""

    async def main(local: socket.socket, public: socket.socket | None) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(settings, local, public, stop)

    allow_many_files()
    with contextlib.ExitStack() as stack:
        public = stack.enter_context(contextlib.closing(people_socket(settings))) if settings.api_bind else None
        # The database first, and the public address: whoever finds the socket finds all of it served.
        db.engine(settings)
        if public is not None:
            public.listen(BACKLOG)
        local = stack.enter_context(local_socket(settings.api_socket))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(local, public))


@contextlib.contextmanager
def inside(settings: Settings, path: Path) -> Iterator[None]:
    """Serve on a socket from a thread of this process, for as long as the context is open."""
    ready, loop_stop = threading.Event(), []
    _log_to(settings)

    async def main(local: socket.socket) -> None:
        stop = asyncio.Event()
        loop_stop.append((asyncio.get_running_loop(), stop))
        ready.set()
        await serve(settings, local, None, stop, listen=False)

    with local_socket(path) as local:
        thread = threading.Thread(target=lambda: asyncio.run(main(local)), daemon=True)
        thread.start()
        ready.wait()
        try:
            yield
        finally:
            loop, stop = loop_stop[0]
            loop.call_soon_threadsafe(stop.set)
            thread.join(SHUTDOWN_SECONDS)


def _log_to(settings: Settings) -> None:
    """What goes wrong in there goes to a file: the terminal is the command's."""
    target = logging.getLogger("uvicorn.error")
    if not target.handlers:
        settings.log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(settings.log_dir / "errors.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        handler = logging.StreamHandler(os.fdopen(descriptor, "a"))
        handler.setLevel(logging.WARNING)
        for name in ("uvicorn.error", "autovibe"):
            logging.getLogger(name).addHandler(handler)
            logging.getLogger(name).propagate = False


@contextlib.contextmanager
def local_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket that only the owner of its folder can reach; gone afterwards. CannotListen when one serves."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(listener), short(path) as name:
        if answers(path):
            raise CannotListen(f"Another process serves {path}", "Stop it with `autovibe down`.")
        path.unlink(missing_ok=True)
        listener.bind(name)
        os.chmod(path, 0o600)
        listener.listen(BACKLOG)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
