#!/usr/bin/env python3
"""Starts the hub's agent inside a machine. Part of the guest image, so it is small and knows little.

It waits for the identity that is pushed through the guest agent, pins the hub's CA by the fingerprint in it, fetches
the agent that the hub serves, checks its hash and runs it. The agent changes with the hub; this file does not.

One file, standard library only. Run as root by the image's init, which starts it again when it ends.

The agent's exit code says what comes next:
    0   the work is done and reported: wait for another identity
    75  this identity is of no more use (superseded, enrolled elsewhere, refused): wait for another identity
    other  it died: run it again (it goes on with work that had begun)
"""

import argparse
import hashlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

EXIT_DONE = 0
EXIT_WAIT = 75
POLL_SECONDS = 0.15
BACKOFF_SECONDS = (0.2, 10.0)
STOP_SECONDS = 20.0
CLOCK_TOLERANCE_SECONDS = 60.0
# X509_V_FLAG_NO_CHECK_TIME: the chain is verified, dates are not. Only to learn the time from the authentic hub.
NO_CHECK_TIME = 0x200000
IDENTITY_KEYS = {"machine": str, "generation": int, "hub_url": str, "ca_sha256": str, "token": str}


class HubError(Exception):
    """The hub gave no usable answer."""


def log(text):
    """One line to the console; never a secret."""
    print(f"autovibe-bootstrap: {text}", file=sys.stderr, flush=True)


class IdentityFile:
    """The identity as it was pushed; cheap to poll.

    It is pushed into /run, which is memory: its token never stands on a disk, and a copy of the disk, or one rolled
    back and booted, waits for an identity of its own.
    """

    def __init__(self, path):
        self.path = path
        self._stamp = None
        self._value = None

    def read(self):
        """The identity that was pushed last, or None while there is none (or only half of one)."""
        try:
            st = os.stat(self.path)
            stamp = (st.st_mtime_ns, st.st_ino, st.st_size)
            if stamp == self._stamp:
                return self._value
            with open(self.path, encoding="utf-8") as file:
                value = whole(json.load(file))
        except (OSError, ValueError):
            return self._value
        self._stamp = stamp
        if value is not None:
            self._value = value
        return self._value

    def wait(self, other_than=None, seconds=None):
        """Blocks until there is an identity that differs from `other_than`, or (None) the seconds have passed."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            identity = self.read()
            if identity is not None and identity != other_than:
                return identity
            if end is not None and time.monotonic() >= end:
                return None
            time.sleep(POLL_SECONDS)


def whole(value):
    """The value if it is a whole identity, with its token; else None."""
    valid = isinstance(value, dict) and all(isinstance(value.get(k), t) for k, t in IDENTITY_KEYS.items())
    return value if valid and value["token"] else None


def unverified_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def pinned_context(ca_path, check_time=True):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=ca_path)
    if not check_time:
        context.verify_flags |= NO_CHECK_TIME
    return context


def get(hub_url, path, context, limit):
    """(body, Date header) of a GET; HubError on anything but a 200 within `limit` bytes."""
    url = urlsplit(hub_url)
    if url.scheme != "https" or not url.hostname:
        raise HubError("the identity's hub_url is not an https URL")
    connection = http.client.HTTPSConnection(url.hostname, url.port or 443, context=context, timeout=15)
    try:
        connection.request("GET", path, headers={"Accept": "*/*"})
        answer = connection.getresponse()
        body = answer.read(limit + 1)
    except (OSError, http.client.HTTPException) as error:
        raise HubError(f"GET {path}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise HubError(f"GET {path}: HTTP {answer.status}")
    if len(body) > limit:
        raise HubError(f"GET {path}: answer is larger than {limit} bytes")
    return body, answer.getheader("Date")


def write(path, content, mode):
    """Replaces a file in one step."""
    temporary = f"{path}.new"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
    os.chmod(temporary, mode)
    os.replace(temporary, path)


def step_clock(date):
    """Sets the clock when the hub's Date is more than a minute away: a restored guest wakes up in the past."""
    try:
        hub_time = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return
    if abs(hub_time - time.time()) <= CLOCK_TOLERANCE_SECONDS:
        return
    try:
        time.clock_settime(time.CLOCK_REALTIME, hub_time)
        log("clock set to the hub's time")
    except OSError as error:
        log(f"clock differs from the hub's and cannot be set: {error}")


class Bootstrap:
    def __init__(self, root, user):
        self.root = root
        self.user = user
        self.run_dir = os.path.join(root, "run/autovibe")
        os.makedirs(self.run_dir, mode=0o755, exist_ok=True)
        os.chmod(self.run_dir, 0o755)
        self.identity_file = IdentityFile(os.path.join(self.run_dir, "identity.json"))
        self.child = None

    def fetch_ca(self, identity):
        """Path of the hub's CA certificate, accepted only with the fingerprint that the identity names."""
        pem, _ = get(identity["hub_url"], "/ca.pem", unverified_context(), 65536)
        try:
            der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii").strip())
        except ValueError as error:
            raise HubError("GET /ca.pem: not a PEM certificate") from error
        if hashlib.sha256(der).hexdigest() != identity["ca_sha256"].lower():
            raise HubError("the hub's CA does not match the identity's fingerprint: not talking to it")
        path = os.path.join(self.run_dir, "ca.pem")
        write(path, ssl.DER_cert_to_PEM_cert(der).encode("ascii"), 0o644)
        return path

    def fetch_agent(self, identity, ca_path):
        """Path of the agent that the hub serves now, checked by its hash."""
        hub = identity["hub_url"]
        body, date = get(hub, "/agent/v1/agent", pinned_context(ca_path, check_time=False), 65536)
        if self.root == "/":
            step_clock(date)
        try:
            sha256 = json.loads(body)["sha256"]
            if len(bytes.fromhex(sha256)) != 32:
                raise ValueError("not a SHA-256")
        except (ValueError, TypeError, KeyError) as error:
            raise HubError("GET /agent/v1/agent: not the expected answer") from error
        path = os.path.join(self.run_dir, f"agent-{sha256[:16]}.pyz")
        if not self._has_hash(path, sha256):
            content, _ = get(hub, f"/agent/v1/agent/{sha256}.pyz", pinned_context(ca_path), 16 << 20)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise HubError("the agent does not have the announced hash: not run")
            write(path, content, 0o644)
        return path, sha256

    @staticmethod
    def _has_hash(path, sha256):
        try:
            with open(path, "rb") as file:
                return hashlib.sha256(file.read()).hexdigest() == sha256
        except OSError:
            return False

    def run_agent(self, identity):
        """Runs the agent to its end; None when another identity came first."""
        ca_path = self.fetch_ca(identity)
        agent, sha256 = self.fetch_agent(identity, ca_path)
        argv = [sys.executable, "-I", "-S", agent, "--identity", self.identity_file.path, "--ca", ca_path]
        argv += ["--root", self.root, "--user", self.user, "--agent-sha256", sha256]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        self.child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
        while True:
            try:
                return self.child.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                now = self.identity_file.read()
                if now is not None and now != identity:
                    log("another identity has come: ending the agent of the old one")
                    self.stop_agent()
                    return None

    def stop_agent(self):
        """Ends the agent, which ends its CLI; killed when it does not."""
        if self.child is None or self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def live(self):
        """One identity after another, for ever."""
        identity = None
        delay = BACKOFF_SECONDS[0]
        finished = False
        while True:
            identity = self.identity_file.wait(other_than=identity if finished else None)
            finished = False
            try:
                code = self.run_agent(identity)
            except (HubError, OSError) as error:
                log(f"{error}; trying again")
                code = -1
            if code is None:
                delay = BACKOFF_SECONDS[0]
            elif code in (EXIT_DONE, EXIT_WAIT):
                log("work is done" if code == EXIT_DONE else "identity is of no more use, waiting for another")
                finished, delay = True, BACKOFF_SECONDS[0]
            else:
                if code > 0:
                    log(f"agent ended with {code}; running it again")
                self.identity_file.wait(other_than=identity, seconds=delay)
                delay = min(delay * 2, BACKOFF_SECONDS[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="/", help="folder that stands for / (for tests)")
    parser.add_argument("--user", default="agent", help="user that the coding CLI runs as")
    args = parser.parse_args()
    bootstrap = Bootstrap(args.root, args.user)

    def end(signum, _frame):
        bootstrap.stop_agent()
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    bootstrap.live()


if __name__ == "__main__":
    main()
