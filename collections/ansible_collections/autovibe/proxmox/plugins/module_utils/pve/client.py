# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection: one TLS session with keep-alive, and every failure as one of our errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

try:
    import requests
    from proxmoxer.backends.https import Backend
    from proxmoxer.core import AuthenticationError
except ImportError as error:
    if error.name not in ("proxmoxer", "requests"):
        raise
    requests = Backend = AuthenticationError = None

from .errors import ApiError, Forbidden, NoAnswer, NotAuthenticated, SettingsError, TlsNotVerified, Unreachable

#: Whether the packages that every call needs are there; the rest of the core can be imported without.
USABLE = Backend is not None
CONNECT_TIMEOUT = 5.0
#: Longer than the 10 s that Proxmox VE itself waits for a lock, and than the 5–11 s before its 596.
READ_TIMEOUT = 30.0
#: How long a connection that has worked before is tried again when it is refused (a restart of pveproxy), and one that
#: has not: there a wrong address is likelier.
RECONNECT_SECONDS = 10.0
FIRST_CONNECT_SECONDS = 1.0
#: Of the failures of TLS, those that say that the server is not the right one; others break a connection that was good.
NOT_VERIFIED = (
    "CERTIFICATE_VERIFY_FAILED",
    "WRONG_VERSION_NUMBER",
    "doesn't match",
    "UNSUPPORTED_PROTOCOL",
    "HANDSHAKE_FAILURE",
)


@dataclass(frozen=True)
class Endpoint:
    """Where Proxmox VE is and who asks. Either a token or a password; the secrets are not shown by repr()."""

    host: str
    user: str
    port: int = 8006
    token_id: str | None = None
    token_secret: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    verify: bool = True
    ca_path: str | None = None

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"

    def who(self) -> str:
        """User, or user and token, as Proxmox VE writes them."""
        return "!".join(self.token()) if self.token_secret else self.user

    @property
    def is_root(self) -> bool:
        """Whether this is root@pam in person: only he may ignore locks, not even his own token may."""
        return self.user == "root@pam" and not self.token_secret

    def token(self) -> tuple[str, str]:
        """User and token name; `token_id` may be the name alone or the full `user@realm!name`."""
        user, separator, name = (self.token_id or "").rpartition("!")
        return (user, name) if separator else (self.user, name)


def waits(timeout: float, first: float = 0.05, longest: float = 1.0) -> Iterator[float]:
    """Drives a wait: yields at once, then after growing pauses, until `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    pause = first
    while True:
        left = deadline - time.monotonic()
        yield left
        if left <= 0:
            return
        time.sleep(min(pause, max(left, 0.0)))
        pause = min(pause * 1.5, longest)


class Client:
    """Calls of the API: `client.get("/nodes/pve1/qemu/100/config")` returns its `data`.

    Booleans travel as 0 and 1, parameters that are None are left out. Reads are repeated when no answer came; a write
    never is: its caller reads the state again first.
    """

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.calls = 0
        self._session: requests.Session | None = None
        self._base = ""
        self._has_answered = False
        self._date: tuple[str, float] | None = None

    def get(self, path: str, **params: Any) -> Any:
        for left in waits(RECONNECT_SECONDS, longest=2.0):
            try:
                return self._call("GET", path, params=params)
            except (NoAnswer, ApiError) as error:
                # An agent that hangs is a 596, too: to ask it again takes as long again.
                if left <= 0 or not error.retryable or "/agent/" in path:
                    raise
        raise AssertionError("waits() ends with left <= 0")

    def post(self, path: str, **data: Any) -> Any:
        return self._call("POST", path, data=data)

    def put(self, path: str, **data: Any) -> Any:
        return self._call("PUT", path, data=data)

    def delete(self, path: str, **params: Any) -> Any:
        return self._call("DELETE", path, params=params)

    def clock_ahead(self) -> float:
        """Seconds that the server's clock is ahead of ours at most: the last answer's date has whole seconds."""
        if self._date is None or not self._date[0]:
            return 0.0
        try:
            return parsedate_to_datetime(self._date[0]).timestamp() + 1 - self._date[1]
        except ValueError:
            return 0.0

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _call(self, method: str, path: str, **arguments: dict[str, Any]) -> Any:
        values = {kind: wire(items) for kind, items in arguments.items()}
        for left in waits(RECONNECT_SECONDS if self._has_answered else FIRST_CONNECT_SECONDS):
            try:
                response = self._send(method, path, values)
            except Unreachable:
                if left <= 0:
                    raise
            else:
                self._has_answered = True
                self._date = (response.headers.get("Date", ""), time.time())
                return self._data(method, path, response)
        raise AssertionError("waits() ends with left <= 0")

    def _send(self, method: str, path: str, values: dict[str, dict[str, Any]]) -> requests.Response:
        timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
        try:
            if self._session is None:
                self._open()
            self.calls += 1
            return self._session.request(method, self._base + path, timeout=timeout, **values)
        except requests.exceptions.SSLError as error:
            if not is_not_verified(error):
                raise NoAnswer(f"{method} {path}: the connection broke off ({error}).") from error
            raise TlsNotVerified(self._tls_advice(error)) from error
        except requests.exceptions.ConnectTimeout as error:
            raise Unreachable(
                f"{self.endpoint.url} does not accept connections within {CONNECT_TIMEOUT:g} s; "
                "check api_host, api_port and the firewall between."
            ) from error
        except requests.exceptions.ReadTimeout as error:
            raise NoAnswer(f"{method} {path} had no answer within {READ_TIMEOUT:g} s.") from error
        except requests.exceptions.ConnectionError as error:
            raise self._connection_error(method, path, error) from error
        except requests.exceptions.RequestException as error:
            raise NoAnswer(f"{method} {path}: {error}.") from error
        except AuthenticationError as error:
            raise NotAuthenticated(
                f"{self.endpoint.url} does not know user '{self.endpoint.user}' with this password; "
                "check api_user (with its realm, such as root@pam) and api_password."
            ) from error

    def _open(self) -> None:
        end = self.endpoint
        verify = end.verify and (end.ca_path or True)
        options: dict[str, Any] = {"port": end.port, "verify_ssl": verify, "timeout": (CONNECT_TIMEOUT, READ_TIMEOUT)}
        if end.token_id and end.token_secret:
            options["user"], options["token_name"] = end.token()
            options["token_value"] = end.token_secret
        elif end.password:
            options["user"], options["password"] = end.user, end.password
        else:
            raise SettingsError("Give api_token_id with api_token_secret or api_token_secret_file, or api_password.")
        backend = Backend(end.host, **options)
        self._session = backend.get_session()
        self._base = backend.get_base_url()
        # The environment is read once, for its proxies. Of the rest, REQUESTS_CA_BUNDLE would replace ca_path, and a
        # netrc entry the token's header.
        environment = self._session.merge_environment_settings(self._base, {}, None, verify, None)
        self._session.proxies.update(environment["proxies"])
        self._session.trust_env = False

    def _connection_error(self, method: str, path: str, error: Exception) -> Unreachable | NoAnswer:
        text = str(error)
        if "NewConnectionError" in text or "NameResolutionError" in text or "Max retries exceeded" in text:
            reason = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
            return Unreachable(
                f"{self.endpoint.url}: {reason.group(1) if reason else 'no connection'}; "
                "check api_host and api_port, and that pveproxy runs there."
            )
        return NoAnswer(f"{method} {path}: the connection was closed before an answer came.")

    def _tls_advice(self, error: Exception) -> str:
        reason = re.search(r"certificate verify failed: ([^(\"']+)", str(error))
        shown = reason.group(1).strip() if reason else "no TLS"
        return (
            f"{self.endpoint.url}: {shown}; give the node's CA (/etc/pve/pve-root-ca.pem) as ca_path"
            " and a host name that its certificate names."
        )

    def _data(self, method: str, path: str, response: requests.Response) -> Any:
        body = _json(response)
        if response.status_code < 400:
            if body is None:
                raise Unreachable(f"{self.endpoint.url} answers, but not as a Proxmox VE API does; check api_port.")
            return body.get("data")
        body = body or {}
        if response.status_code == 401:
            raise NotAuthenticated(
                f"{self.endpoint.url} answered 401 to '{self.endpoint.who()}' ({response.reason}); "
                "check the token's id and secret, and that neither has expired."
            )
        reason = str(body.get("message") or response.reason or "").strip()
        kind = Forbidden if response.status_code == 403 else ApiError
        raise kind(method, path, response.status_code, reason, body.get("errors"))


def is_not_verified(error: Exception) -> bool:
    """Whether TLS failed because of who answers, by its reason: the message also has the URL, with names in it."""
    text = str(error)
    reason = text.partition("(Caused by ")[2] or text
    return any(word in reason for word in NOT_VERIFIED)


def wire(values: dict[str, Any]) -> dict[str, Any]:
    """Parameters as Proxmox VE takes them: strictly 0/1 for booleans, lists as repeated parameters."""
    return {
        name.replace("__", "-"): int(value) if isinstance(value, bool) else value
        for name, value in values.items()
        if value is not None
    }


def _json(response: requests.Response) -> dict[str, Any] | None:
    try:
        body = json.loads(response.content)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
