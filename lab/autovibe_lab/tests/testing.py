"""A lab inside a test's process, and a client that waits for its tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import requests
from autovibe_lab.auth import TOKEN_ID
from autovibe_lab.daemon import Lab, Settings
from proxmoxer import ProxmoxAPI
from proxmoxer.core import ResourceException


class LabInThread:
    """A lab that answers from a thread of the test's process."""

    def __init__(self, state: Path, **settings: object) -> None:
        self.state = state
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.lab = self.run(self._make(Settings(state, port=0, **({"login_delay": 0} | settings))))
        self.run(self.lab.start())
        self.node = self.lab.node
        self.url = f"https://127.0.0.1:{self.lab.port}"

    async def _make(self, settings: Settings) -> Lab:
        return Lab(settings)

    def run(self, coroutine: object) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self) -> None:
        self.run(self.lab.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def api(self) -> ProxmoxAPI:
        """A client with the API token, through proxmoxer."""
        user, _, token = TOKEN_ID.partition("!")
        certificate = str(self.state / "ca.pem")
        secret = self.lab.secrets.token_secret
        return ProxmoxAPI(
            "127.0.0.1",
            port=self.lab.port,
            user=user,
            token_name=token,
            token_value=secret,
            verify_ssl=certificate,
            timeout=30,
        )

    def aid(self, method: str, path: str, body: object = None) -> object:
        """A call to the lab's own test aids."""
        headers = {"Authorization": f"Bearer {self.lab.secrets.lab_token}"}
        url, certificate = f"{self.url}/lab/{path}", str(self.state / "ca.pem")
        response = requests.request(method, url, json=body, headers=headers, verify=certificate, timeout=30)
        response.raise_for_status()
        return response.json()


class Client:
    """Calls and waits for their tasks."""

    def __init__(self, lab: LabInThread) -> None:
        self.lab, self.api = lab, lab.api()
        self.node = self.api.nodes("pve1")

    def wait(self, upid: str) -> str:
        """The exit status of a task."""
        for attempt in range(2000):
            status = self.node.tasks(upid).status.get()
            if status["status"] == "stopped":
                return status["exitstatus"]
            time.sleep(min(0.005 * attempt, 0.1))
        raise AssertionError(f"{upid} does not end")

    def ok(self, upid: str) -> None:
        assert self.wait(upid) == "OK", self.node.tasks(upid).log.get()

    def refused(self, call: object, **params: object) -> ResourceException:
        """The error that a call ends with."""
        try:
            answer = call(**params)
        except ResourceException as error:
            return error
        raise AssertionError(f"not refused: {answer}")

    def create(self, vmid: int = 100, **params: object) -> object:
        base = {"name": "base", "memory": 256, "cores": 1, "scsi0": "null:1", "agent": "enabled=1"}
        base |= {"net0": "virtio,bridge=vmbr1", "ide2": "null:cloudinit"}
        self.ok(self.node.qemu.post(vmid=vmid, **(base | params)))
        return self.node.qemu(vmid)

    def template(self, vmid: int = 100, **params: object) -> object:
        machine = self.create(vmid, **params)
        self.ok(machine.template.post())
        return machine

    def clone(self, source: int, newid: int, **params: object) -> object:
        self.ok(self.node.qemu(source).clone.post(newid=newid, **params))
        return self.node.qemu(newid)
