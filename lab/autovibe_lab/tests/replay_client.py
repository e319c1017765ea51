"""Sends recorded calls to a lab as their recorder sent them to a node: credentials, encodings and odd requests."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from autovibe_lab.tests.testing import LabInThread

FORM = "application/x-www-form-urlencoded"
BOUNDARY = "replay-2f1c"
#: Sizes in bytes of the files that the recorder had on its node.
SEEDS = {"seed.qcow2": 128 << 20, "big.raw": 700 << 20}


@dataclass
class Reply:
    status: int
    reason: str
    content_type: str
    body: str


class InOnePiece(http.client.HTTPSConnection):
    """Sends a request's head and body together: no call is begun and waits for its body."""

    _pieces: list[bytes] | None = None

    def endheaders(self, *arguments: object, **options: object) -> None:
        self._pieces = []
        super().endheaders(*arguments, **options)
        whole, self._pieces = b"".join(self._pieces), None
        self.send(whole)

    def send(self, data: bytes) -> None:
        if self._pieces is None:
            super().send(data)
        else:
            self._pieces.append(data)


class Sender:
    """One recorder: who it is, and what it has learnt to say instead of what was recorded."""

    def __init__(self, lab: LabInThread, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.made_up: dict[str, str] = {}
        self.pids: dict[int, int] = {}
        self.tokens: dict[str, str] = {}
        self.tickets: dict[str, dict] = {}
        self.passwords = {"root@pam": lab.lab.secrets.root_password}
        self.context = ssl.create_default_context(cafile=str(lab.state / "ca.pem"))
        self._seed()
        for _ in range(2):  # the log of the recorded node has two logins before the first recorded one
            self.login("root@pam")

    def _seed(self) -> None:
        """The files that the recorded calls import; a null guest needs no content."""
        seeds = self.folder / "seed"
        seeds.mkdir()
        for name, size in SEEDS.items():
            with (seeds / name).open("wb") as file:
                file.truncate(size)
        with (self.lab.state / "template" / "iso" / "agent.iso").open("wb") as file:
            file.truncate(19238912)
        with (self.lab.state / "import" / "seed.qcow2").open("wb") as file:
            file.write(struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, SEEDS["seed.qcow2"]))
            file.truncate(196616)

    # Who ----------------------------------------------------------------------------------------------------------

    def login(self, user: str) -> None:
        if user not in self.passwords:
            return
        body = urlencode({"username": user, "password": self.passwords[user]})
        reply = self.send("POST", "/api2/json/access/ticket", body, {"Content-Type": FORM})
        if reply.status == 200:
            self.tickets[user] = json.loads(reply.body)["data"]

    def credentials(self, who: str, method: str, note: str) -> dict[str, str]:
        """The headers of a recorded identity."""
        if who in ("root", "dev"):
            user = "root@pam" if who == "root" else "dev@pve"
            if user not in self.tickets:
                self.login(user)
            ticket = self.tickets.get(user, {"ticket": "none", "CSRFPreventionToken": "none"})
            headers = {"Cookie": f"PVEAuthCookie={quote(ticket['ticket'])}"}
            if method != "GET" and "without CSRFPreventionToken" not in note:
                wrong = "wrong CSRFPreventionToken" in note
                headers["CSRFPreventionToken"] = "5F000000:wrong" if wrong else ticket["CSRFPreventionToken"]
            return headers
        if who == "badticket":
            return {"Cookie": "PVEAuthCookie=PVE%3Aroot%40pam%3A5F000000%3A%3Aforged"}
        if who == "badtokenfmt":
            return {"Authorization": "PVEAPIToken=rubbish"}
        name = {"roottoken": "root@pam!full", "wrongsecret": "root@pam!full", "token": "dev@pve!ci"}.get(who)
        if name is None:
            name = "root@pam!nosuch"
        secret = "00000000-0000-0000-0000-000000000000"
        if who in ("roottoken", "token"):
            secret = self.tokens.get(name, secret)
        return {"Authorization": f"PVEAPIToken={name}={secret}"}

    # What -----------------------------------------------------------------------------------------------------------

    def translated(self, value: object) -> object:
        """The recorded value in the lab's words."""
        if isinstance(value, dict):
            return {key: self.translated(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.translated(entry) for entry in value]
        if not isinstance(value, str):
            return value
        value = value.replace("/var/tmp/seed", str(self.folder / "seed"))
        if value in self.made_up:
            return self.made_up[value]
        for recorded, ours in self.made_up.items():
            if len(recorded) >= 19 and recorded in value:
                value = value.replace(recorded, ours)
        return value

    def perform(self, call: dict) -> Reply:
        note, method = call.get("note", ""), call["method"]
        path, params = self.translated(call["path"]), self.translated(call.get("params"))
        if isinstance(params, dict) and params.get("pid", "") in self.pids:
            params["pid"] = self.pids[params["pid"]]
        if isinstance(params, dict) and "since" in params:
            params["since"] = self._time(params["since"])
        if "no TLS" in path:
            return self._without_tls(path.split(") ")[1])
        path = path.split(" (outside")[0] if "(outside" in path else path
        if not path.startswith("/api2/") and "(outside" not in call["path"]:
            path = f"/api2/json{path}"
        headers = self.credentials(call["auth"], method, note) if "auth" in call else {}
        if isinstance(params, dict) and params.get("password") == "PASSWORD":
            user = params.get("userid") or params.get("username", "")
            user = user if "@" in user else f"{user}@{params.get('realm', 'pam')}"
            params["password"] = self.passwords.setdefault(user, "replayed-password")
        if path.endswith(("/access/users", "/access/password")) and isinstance(params, dict) and "password" in params:
            self.passwords.setdefault(params["userid"], params["password"])
        if path.endswith("/upload"):
            wrong = "wrong extension" in note
            headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
            body = _multipart(params or {}, "tiny.txt" if wrong else "tiny.iso", 65536)
            return self.send(method, quote(path, safe="/:@!*~"), body, headers)
        target, body = self._encoded(call, path, params, headers)
        return self.send(method, target, body, headers)

    def as_root(self, method: str, path: str) -> object:
        """The data of a call that is not in the recording."""
        reply = self.send(method, f"/api2/json{path}", None, self.credentials("root", method, ""))
        return json.loads(reply.body)["data"] if reply.status == 200 else None

    def _encoded(self, call: dict, path: str, params: object, headers: dict) -> tuple[str, str | None]:
        target, body = quote(path, safe="/:@!*~"), None
        if isinstance(params, str):
            headers["Content-Type"] = "text/plain" if "text/plain" in call.get("note", "") else "application/json"
            return target, params
        if params is None:
            return target, None if call["method"] in ("GET", "HEAD", "DELETE", "PATCH") else ""
        if call.get("params_encoding") == "application/json":
            headers["Content-Type"] = "application/json"
            return target, json.dumps(params)
        pairs = list(params.items()) if isinstance(params, dict) else [tuple(pair) for pair in params]
        text = urlencode(pairs, doseq=True)
        if call["method"] in ("GET", "HEAD", "DELETE"):
            return f"{target}?{text}" if text else target, None
        headers["Content-Type"] = FORM
        body = text
        return target, body

    def send(self, method: str, target: str, body: str | bytes | None, headers: dict[str, str]) -> Reply:
        connection = InOnePiece("127.0.0.1", self.lab.lab.port, timeout=60, context=self.context)
        try:
            content = body.encode() if isinstance(body, str) else body
            connection.request(method, target, body=content, headers=headers)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            return Reply(response.status, response.reason, response.headers.get("Content-Type", ""), self._known(text))
        except (http.client.HTTPException, OSError) as error:
            return Reply(0, f"{type(error).__name__}: {error}", "", "")
        finally:
            connection.close()

    def _without_tls(self, path: str) -> Reply:
        """Plain HTTP on the TLS port; headers only."""
        try:
            with socket.create_connection(("127.0.0.1", self.lab.lab.port), timeout=10) as plain:
                plain.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
                head, _, body = b"".join(iter(lambda: plain.recv(4096), b"")).partition(b"\r\n\r\n")
        except OSError as error:
            return Reply(0, f"{type(error).__name__}: {error}", "", "")
        match = re.match(rb"HTTP/1\.[01] (\d+) ([^\r\n]*)", head)
        return Reply(int(match[1]), match[2].decode(), "", body.decode()) if match else Reply(0, "no answer", "", "")

    def _known(self, text: str) -> str:
        """The lab's own folders under the names that a node gives them."""
        return text.replace(str(self.folder / "seed"), "/var/tmp/seed").replace(str(self.lab.state), "/var/lib/vz")

    def _time(self, recorded: int) -> int:
        """The lab's time for a recorded one: by the tasks that began before it."""
        pairs = [(int(key.split(":")[4], 16), int(value.split(":")[4], 16)) for key, value in self._tasks()]
        before = max((pair for pair in pairs if pair[0] <= recorded), default=(recorded, recorded))
        return before[1] + (recorded > before[0])

    def _tasks(self) -> list[tuple[str, str]]:
        return [pair for pair in self.made_up.items() if pair[0].startswith("UPID:")]

    def learn(self, recorded: dict, body: object, made_up: dict[str, str]) -> None:
        """What the lab made up instead of what the node had made up; and the secrets of new tokens."""
        self.made_up |= {key: value for key, value in made_up.items() if key not in self.made_up and key != value}
        data = body.get("data") if isinstance(body, dict) else None
        if isinstance(data, dict):
            if "full-tokenid" in data and "value" in data:
                self.tokens[data["full-tokenid"]] = data["value"]
            theirs = (recorded.get("response_body") or {}).get("data") or {}
            if recorded["path"].endswith("/agent/exec") and "pid" in data and isinstance(theirs, dict):
                self.pids[theirs.get("pid")] = data["pid"]


def _multipart(fields: dict, filename: str, size: int) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="filename"; filename="{filename}"\r\n'
    parts.append(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + bytes(size) + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
