"""For tests of Proxmox automation: a lab of their own, and its aids from Python.

A lab inside the test's process, with null guests, is there in a tenth of a second:

    from autovibe_lab.testing import LabInThread

    lab = LabInThread(tmp_path / "lab")
    lab.aids.fail("POST", "/nodes/pve1/qemu/.*/clone", status=500, reason="no space left on device")
    ...                                 # the automation under test, pointed at lab.url
    assert lab.aids.writes() == ["POST /nodes/pve1/qemu/100/clone"]
    lab.close()

`Aids.of(state)` are the aids of a lab that `autovibe lab up` has started. Needs requests and, for `api()`, proxmoxer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from autovibe_lab.auth import TOKEN_ID
from autovibe_lab.daemon import Lab, Settings


class Aids:
    """The test aids of a running lab. A path is a regular expression for all that follows `/api2/json`."""

    def __init__(self, url: str, token: str, certificate: Path) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {token}"
        self._session.trust_env = False  # $REQUESTS_CA_BUNDLE goes before a session's own certificate
        self._session.verify = str(certificate)

    @classmethod
    def of(cls, state: Path) -> Aids:
        """The lab of a state folder."""
        endpoint = json.loads((state / "endpoint.json").read_text())
        url = f"https://{endpoint['host']}:{endpoint['port']}"
        return cls(url, (state / "lab-token").read_text().strip(), state / "ca.pem")

    def close(self) -> None:
        self._session.close()

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        """Any aid: `aids("GET", "faults")`. Raises requests.HTTPError."""
        response = self._session.request(method, f"{self.url}/lab/{path}", json=body, timeout=30)
        if response.status_code == 400:
            raise requests.HTTPError(f"400: {response.json()['error']}", response=response)
        response.raise_for_status()
        return response.json()

    # Faults; each returns its id -----------------------------------------------------------------------------------

    def fault(self, method: str, path: str, action: str, **options: object) -> str:
        """`options`: count (1), skip (0), seconds (0), and of action `status` also status, reason, execute."""
        return self("POST", "faults", {"method": method, "path": path, "action": action} | options)["id"]

    def fail(self, method: str, path: str, status: int = 500, reason: str = "fault", **options: object) -> str:
        """Answer with this status and reason; with `execute` after doing it all the same."""
        return self.fault(method, path, "status", status=status, reason=reason, **options)

    def drop_before(self, method: str, path: str, **options: object) -> str:
        """Close the connection; the call is not executed."""
        return self.fault(method, path, "drop_before", **options)

    def drop_after(self, method: str, path: str, **options: object) -> str:
        """Execute the call, and close the connection without an answer."""
        return self.fault(method, path, "drop_after", **options)

    def delay(self, method: str, path: str, seconds: float, **options: object) -> str:
        """Execute the call so much later."""
        return self.fault(method, path, "delay", seconds=seconds, **options)

    def lock(self, method: str, path: str, **options: object) -> str:
        """Answer that the guest's lock was not to be had; the call is not executed."""
        return self.fault(method, path, "lock", **options)

    def faults(self) -> list[dict]:
        """All faults, with how many calls each has `matched` and how many are `left`."""
        return self("GET", "faults")

    def kill_next(self, type: str, id: object = "", count: int = 1) -> None:
        """Kill the worker of the next task of this type (and guest) in the middle of its work: a `qmclone` leaves a
        locked machine in no pool, and a disk that no configuration names."""
        self("POST", "kills", {"type": type, "id": str(id), "count": count})

    def kill(self, upid: str) -> None:
        """Kill the worker of a task that runs."""
        self("POST", "kills", {"upid": upid})

    def reset(self) -> None:
        """Forget all faults and holds."""
        self("DELETE", "faults")
        self("DELETE", "holds")

    @contextlib.contextmanager
    def held(self, method: str, path: str, **options: object) -> Iterator[Held]:
        """Meanwhile a matching call is executed and its answer is held back."""
        held = Held(self, self("POST", "holds", {"method": method, "path": path} | options)["id"])
        try:
            yield held
        finally:
            held.release()

    # What happened -------------------------------------------------------------------------------------------------

    def calls(self, since: int = 0) -> list[dict]:
        """Every call after number `since`: seq, method, path, status (0: dropped, None: under way), at, fault."""
        return self("GET", f"calls?since={since}")

    def last(self) -> int:
        """The number of the newest call."""
        return max((call["seq"] for call in self.calls()), default=0)

    def writes(self, since: int = 0) -> list[str]:
        """The calls that were no reads, as `POST /nodes/…`."""
        return [f"{call['method']} {call['path']}" for call in self.calls(since) if call["method"] != "GET"]

    def tasks(self) -> list[dict]:
        return self("GET", "tasks")

    def online(self, node: str, online: bool) -> None:
        """Take a node down (calls for it end in a 595), or bring it back."""
        self("PUT", f"nodes/{node}", {"online": online})

    def latency(self, **delays: object) -> dict:
        """Change delays, and return all: profile, time_scale, lock_timeout, login_delay, hang_delay."""
        return self("PUT", "latency", delays)


class Held:
    """A call's answer that is held back."""

    def __init__(self, aids: Aids, id: str) -> None:
        self.aids, self.id = aids, id

    @property
    def state(self) -> str:
        """armed, holding or released."""
        return self.aids("GET", f"holds/{self.id}")["state"]

    def wait(self, timeout: float = 30) -> None:
        """Until a call has come and was executed."""
        end = time.monotonic() + timeout
        while self.state != "holding":
            if time.monotonic() > end:
                raise TimeoutError("no such call came")
            time.sleep(0.005)

    def release(self) -> None:
        self.aids("DELETE", f"holds/{self.id}")


class LabInThread:
    """A lab that answers from a thread of the test's process. `settings` are those of `daemon.Settings`."""

    def __init__(self, state: Path, *, loop: asyncio.AbstractEventLoop | None = None, **settings: object) -> None:
        self.state = state
        self.loop = loop or asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.lab = self.run(self._make(Settings(state, port=0, **({"login_delay": 0} | settings))))
        self.run(self.lab.start())
        self.node = self.lab.node
        self.url = f"https://127.0.0.1:{self.lab.port}"
        self.aids = Aids(self.url, self.lab.secrets.lab_token, state / "ca.pem")

    async def _make(self, settings: Settings) -> Lab:
        return Lab(settings)

    def run(self, coroutine: object) -> object:
        """Run something in the lab's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self) -> None:
        self.aids.close()
        self.run(self.lab.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        # It may be in /tmp, where nobody else takes it away; what real guests have in it stays for the next lab.
        with contextlib.suppress(OSError):
            self.node.paths.run.rmdir()

    def api(self) -> Any:
        """A client with the API token, through proxmoxer."""
        from proxmoxer import ProxmoxAPI

        user, _, token = TOKEN_ID.partition("!")
        return ProxmoxAPI(
            "127.0.0.1",
            port=self.lab.port,
            user=user,
            token_name=token,
            token_value=self.lab.secrets.token_secret,
            verify_ssl=str(self.state / "ca.pem"),
            timeout=30,
        )

    def aid(self, method: str, path: str, body: object = None) -> Any:
        """A call to the lab's own test aids."""
        return self.aids(method, path, body)
