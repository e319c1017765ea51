"""The node over HTTPS: who calls, with what, and how the answer looks on the wire."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from urllib.parse import parse_qsl

from aiohttp import web

import autovibe_lab.api  # noqa: F401  (registers the calls)
from autovibe_lab.aids import Aids
from autovibe_lab.api import hidden, permits
from autovibe_lab.api.routes import Answer, Call, find
from autovibe_lab.auth import Auth, Refused, Secrets
from autovibe_lab.disks import DiskError
from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.guest import GuestError
from autovibe_lab.locks import LockTimeout
from autovibe_lab.node import Node
from autovibe_lab.schema import STRING, Schema, opt

logger = logging.getLogger(__name__)

API = re.compile(r"/api2/(?P<format>[a-z]+)(?P<path>/.*)?")
#: The forms of an answer; what the web interface asks for (`extjs`) is always a 200.
FORMATS = ("json", "extjs")
#: What needs no login.
WORLD = ("/access/ticket", "/access/domains")
ANYBODY = "root@pam"
METHODS = ("GET", "POST", "PUT", "DELETE")
#: Files that are uploaded go to the disk as they come.
LARGEST_BODY = 8 << 30
#: What Perl's JSON parser says where Python's says something else.
PERL_JSON = {
    "Expecting property name": "'\"' expected",
    "Expecting ',' delimiter": ", or } expected while parsing object/hash",
    "Expecting ':' delimiter": "':' expected",
    "Expecting value": "malformed JSON string, neither tag, array, object, number, string or atom",
    "Unterminated string": "unexpected end of string while parsing JSON string",
    "Extra data": "garbage after JSON object",
}
TICKET = Schema(
    {"username": STRING, "password": STRING, "realm": opt(STRING), "otp": opt(STRING), "new-format": opt(STRING)}
    | {"path": opt(STRING), "privs": opt(STRING), "tfa-challenge": opt(STRING)}
)


class Server:
    """The API of a cluster's first node as an aiohttp application: it hands the calls of others on."""

    def __init__(self, node: Node, secrets: Secrets) -> None:
        self.node = node
        self.auth = Auth(secrets, node.access)
        self.aids = Aids(node, secrets.lab_token)

    def application(self) -> web.Application:
        application = web.Application(client_max_size=LARGEST_BODY)
        application.router.add_route("*", "/{path:.*}", self.handle)
        return application

    async def handle(self, request: web.Request) -> web.Response:
        if request.path.startswith("/lab/"):
            return await self.aids.answer(request)
        match = API.fullmatch(request.path)
        if not match:
            return _plain(500, f"no such file '{request.path}'")
        path, method = (match["path"] or "").rstrip("/") or "/", request.method
        if match["format"] not in FORMATS:
            return _plain(501, f"no formatter for uri {path}, {match['format']}")
        call = self.aids.began(method, path)
        if fault := self.aids.fault(call):
            response = await fault.answer(path, lambda: self._respond(request, method, path))
            if isinstance(response, ApiError):
                response = _error(response)
        else:
            response = await self._respond(request, method, path)
        call["status"] = response.status if response is not None else 0
        await self.aids.hold(request, call)
        if response is None:
            return _dropped(request)
        return _extjs(response) if match["format"] == "extjs" else response

    async def _respond(self, request: web.Request, method: str, path: str) -> web.Response:
        if method not in METHODS:
            return _empty(501, f"method '{method}' not available")
        try:
            if path == "/access/ticket" and method == "POST":
                found = self.auth.ticket(TICKET.verify(await _parameters(request)))
                self.node.cluster.logins.append((int(time.time()), found["username"]))
                return _success(found)
            user = ANYBODY if path in WORLD and method == "GET" else self._user(request)
            return _success(await self._call(request, method, path, user))
        except Refused as error:
            await asyncio.sleep(self.node.delays.login_delay * self.node.delays.time_scale)
            return _empty(401, str(error))
        except ApiError as error:
            if error.status == 401:
                await asyncio.sleep(self.node.delays.login_delay * self.node.delays.time_scale)
            return _error(error)
        except (TaskError, LockTimeout, DiskError, GuestError) as error:
            return _error(ApiError(500, str(error)))
        except Exception as error:
            logger.exception("%s %s", method, path)
            return _error(ApiError(500, f"{type(error).__name__}: {error}"))

    def _user(self, request: web.Request) -> str:
        names = ("Authorization", "Cookie", "CSRFPreventionToken")
        return self.auth.user(request.method, *(request.headers.get(name, "") for name in names))

    async def _call(self, request: web.Request, method: str, path: str, user: str) -> object:
        if method == "DELETE" and request.can_read_body:
            raise ApiError(501, "Unexpected content for method 'DELETE'", text=True)
        route, in_path = find(method, path)
        given = await _parameters(request) | in_path
        # Before anything else is looked at: a parameter that is wrong, a guest that is missing are a 403 too.
        permits.check(permits.Asking(self.node.access.permissions, user, given, method, route.template))
        node = self.node.cluster.node(in_path["node"]) if "node" in in_path else self.node
        call = Call(node, user, route.schema.verify(given), await _upload(request))
        async with node.latency.call(method, path):
            hidden.check(call, method, route.template)
            return hidden.left(call, method, route.template, await route.handler(call))


async def _upload(request: web.Request) -> web.FileField | None:
    """The file of a multipart body."""
    if not request.content_type.startswith("multipart/"):
        return None
    return next((value for value in (await request.post()).values() if isinstance(value, web.FileField)), None)


def _dropped(request: web.Request) -> web.Response:
    """The connection ends without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _parameters(request: web.Request) -> dict[str, object]:
    """What was given in the query and the body; what is repeated is a list."""
    found: dict[str, object] = {}
    pairs = [(key, value) for key, value in request.query.items()]
    if request.can_read_body:
        kind = request.content_type
        if kind == "application/json":
            text = await request.text()
            try:
                content = json.loads(text) if text.strip() else {}
            except json.JSONDecodeError as error:
                raise ApiError(500, _perl_json(error), text=True) from None
            if not isinstance(content, dict):
                raise ApiError(500, "a JSON object is expected", text=True)
            return dict(pairs) | {key: value for key, value in content.items() if value is not None}
        if "Content-Type" not in request.headers:  # as a client does that encodes its form by itself
            pairs += parse_qsl(await request.text(), keep_blank_values=True)
        elif kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
            if await request.read():
                raise ApiError(506, f"upload 'Content-Type '{kind}' not implemented", text=True)
        else:
            # A file's parameter is its name.
            given = ((key, getattr(value, "filename", value)) for key, value in (await request.post()).items())
            pairs += [(key, value) for key, value in given if isinstance(value, str)]
    for key, value in pairs:
        if key in found:
            old = found[key]
            found[key] = [*old, value] if isinstance(old, list) else [old, value]
        else:
            found[key] = value
    return found


def _perl_json(error: json.JSONDecodeError) -> str:
    """What the node's own JSON parser says of a broken body."""
    said = next(
        (perl for python, perl in PERL_JSON.items() if error.msg.startswith(python)), PERL_JSON["Expecting value"]
    )
    rest = error.doc[error.pos :] or "(end of string)"
    rest = rest if len(rest) <= 25 else f"{rest[:20]}..."
    at = "/usr/share/perl5/PVE/APIServer/AnyEvent.pm line 917."
    return f'{said}, at character offset {error.pos} (before "{rest}") at {at}\n'


def _reason(text: str) -> str:
    return text.strip().replace("\r", " ").replace("\n", " ")[:500]


def _success(answer: object) -> web.Response:
    content = {"data": answer}
    if isinstance(answer, Answer):
        content = {"data": answer.data} | answer.extra
    return _json(200, "OK", content)


def _error(error: ApiError) -> web.Response:
    if error.text:
        return web.Response(text=error.message, status=error.status, reason=_reason(error.message))
    if not error.body:
        return _empty(error.status, error.message)
    content: dict[str, object] = {"data": None, "message": error.message + ("" if error.status == 501 else "\n")}
    if error.errors:
        content["errors"] = error.errors
    return _json(error.status, error.message, content)


def _json(status: int, reason: str, content: object) -> web.Response:
    body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json;charset=UTF-8", "Cache-Control": "no-cache"}
    return web.Response(body=body, status=status, reason=_reason(reason), headers=headers)


def _extjs(response: web.Response) -> web.Response:
    """The same answer as the web interface gets it: a 200 that says in its body whether it is one."""
    if response.content_type != "application/json":
        return response
    content = json.loads(response.body)
    content |= {"success": int(response.status == 200)} | (
        {"status": str(response.status)} if response.status != 200 else {}
    )
    return _json(200, "OK", content)


def _empty(status: int, reason: str) -> web.Response:
    return web.Response(status=status, reason=_reason(reason))


def _plain(status: int, reason: str) -> web.Response:
    return web.Response(text=reason, status=status, reason=_reason(reason))
