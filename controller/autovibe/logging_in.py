"""Logging in to a distant hub: whom to trust, and a key of one's own for this computer.

A hub that its own CA vouches for is trusted by that CA's fingerprint, which comes another way: from the hub's owner.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

from autovibe import client
from autovibe.api.v1 import schemas
from autovibe.client import Client, HubUnreachable, Login, NotLoggedIn, Refused
from autovibe.errors import AutovibeError, Invalid
from autovibe.settings import Settings


class WrongFingerprint(AutovibeError):
    """The hub shows another CA than the one that was named."""

    code = "wrong_fingerprint"
    default_hint = "Somebody may be in between. Compare with `autovibe hub` on the hub itself."


def trusted(url: str, fingerprint: str | None, confirm: Callable[[str], Any]) -> tuple[str, str | None]:
    """(URL, the hub's CA as PEM): None when the system trusts the hub by itself. `confirm` is asked else."""
    url = _checked(url)
    if url.startswith("http://"):
        return url, None
    if fingerprint is None and _system_trusts(url):
        return url, None
    der = _der(_shown_ca(url))
    found = hashlib.sha256(der).hexdigest()
    if fingerprint is None:
        confirm(found)
    elif not hmac.compare_digest(fingerprint.replace(":", "").strip().lower().encode(), found.encode()):
        raise WrongFingerprint(f"The hub's CA has the fingerprint {found}")
    # Of what was shown, only what the fingerprint is of: another CA beside it would be trusted, too.
    return url, ssl.DER_cert_to_PEM_cert(der)


def made_key(url: str, ca: str | None, name: str, password: str, *, label: str, days: int) -> str:
    """A key for this computer, by name and password. NotLoggedIn."""
    with _client(Login(url, "", ca)) as hub:
        tokens = hub.ask("POST", "/auth/login", schemas.LoggedIn, body={"name": name, "password": password})
    with _client(Login(url, tokens["access_token"], ca)) as hub:
        made = hub.post("/keys", schemas.KeyMade, {"name": label, "scope": _most(hub), "days": days})
        hub.post("/auth/logout")
    return made["key"]


def _most(hub: Client) -> str:
    return hub.get("/me", schemas.Me)["level"]


def log_in(settings: Settings, url: str, ca: str | None, key: str) -> dict[str, Any]:
    """Remember the hub, once it has said who we are. NotLoggedIn, HubUnreachable."""
    login = Login(url, key.strip(), ca)
    with _client(login) as hub:
        me = hub.get("/me", schemas.Me)
    client.save_login(settings, login)
    return me


def log_out(settings: Settings) -> dict[str, Any]:
    """Forget the hub, and end the key when the hub can be reached.

    {"was_logged_in", "url", "key", "key_ended"}: the key by its prefix; one that the hub does not know has ended.
    """
    try:
        login = client.load_login(settings)
    except NotLoggedIn:
        client.forget_login(settings)
        return {"was_logged_in": True, "url": None, "key": None, "key_ended": False}
    if login is None:
        return {"was_logged_in": False, "url": None, "key": None, "key_ended": False}
    done = {"was_logged_in": True, "url": login.url, "key": _prefix(login.key), "key_ended": True}
    try:
        with _client(login) as hub:
            me = hub.get("/me", schemas.Me)
            if me["key"] is not None:
                hub.ask("DELETE", f"/keys/{me['key']}")
    except NotLoggedIn:
        pass
    except (HubUnreachable, Refused):
        done["key_ended"] = False
    client.forget_login(settings)
    return done


def _prefix(key: str) -> str | None:
    """What the hub knows a key by: no secret."""
    return "_".join(key.split("_")[:2]) if key.startswith("avk_") else None


def _client(login: Login) -> Any:
    return client.distant(login)


def _checked(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"https://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("https", "http") or not parts.hostname or port == -1 or parts.path.strip("/"):
        raise Invalid(f"{url[:100]!r} is not a hub's URL", "Example: https://hub.example:18001.")
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise Invalid("A key is sent to a distant hub only over https")
    return f"{parts.scheme}://{parts.netloc}"


def _system_trusts(url: str) -> bool:
    try:
        httpx.get(f"{url}/ca.pem", timeout=client.TIMEOUT_SECONDS)
    except httpx.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return False
        raise HubUnreachable(f"The hub ({url}) does not answer: {error}") from None
    except httpx.HTTPError as error:
        raise HubUnreachable(f"The hub ({url}) does not answer: {error}") from None
    return True


def _shown_ca(url: str) -> str:
    """The CA that the hub shows to anybody; nothing secret is sent before it is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        answer = httpx.get(f"{url}/ca.pem", verify=context, timeout=client.TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        raise HubUnreachable(f"The hub ({url}) does not answer: {error}") from None
    if not answer.is_success or "BEGIN CERTIFICATE" not in answer.text:
        raise HubUnreachable(f"{url} is no hub")
    return answer.text


def _der(pem: str) -> bytes:
    body = pem.split("-----BEGIN CERTIFICATE-----", 1)[1].split("-----END CERTIFICATE-----", 1)[0]
    try:
        return base64.b64decode(body)
    except ValueError:
        raise HubUnreachable("What is shown there as a hub's CA is no certificate") from None
