"""/access/users, their API tokens, and /access/tfa."""

from __future__ import annotations

import uuid

from autovibe_lab.api.access import names
from autovibe_lab.api.routes import Call, route
from autovibe_lab.errors import ApiError, invalid
from autovibe_lab.usercfg import ROOT, Token, User

USERS = "/access/users"
ONE = USERS + "/{userid}"
TOKEN = ONE + "/token/{tokenid}"

OF_USER = ("enable", "expire", "firstname", "lastname", "email", "comment", "keys")
OF_TOKEN = ("comment", "expire", "privsep")


def _user(call: Call, what: str = "") -> User:
    found = call.node.access.config.users.get(call.params["userid"])
    if found is None:
        raise ApiError(500, f"{what}no such user ('{call.params['userid']}')")
    return found


def _shown(user: User) -> dict:
    found = {"enable": int(user.enable), "expire": user.expire, "email": user.email}
    texts = {"firstname": user.firstname, "lastname": user.lastname, "comment": user.comment, "keys": user.keys}
    return found | {name: text for name, text in texts.items() if text}


def _groups_of(call: Call, userid: str) -> list[str]:
    return sorted(name for name, group in call.node.access.config.groups.items() if userid in group.members)


def _token(token: Token) -> dict:
    found = {"expire": token.expire, "privsep": int(token.privsep)}
    return found | ({"comment": token.comment} if token.comment else {})


@route("GET", USERS)
async def listing(call: Call) -> object:
    access = call.node.access
    may = ("User.Modify", "Sys.Audit")
    allowed = {call.user}
    for name, group in access.config.groups.items():
        if call.can(f"/access/groups/{name}", *may, any=True):
            allowed |= group.members
    if call.can("/access/groups", *may, any=True):
        allowed |= set(access.config.users)
    found = []
    for name, user in sorted(access.config.users.items()):
        if name in allowed and call.get("enabled", user.enable) == user.enable:
            realm = access.domains.get(name.rpartition("@")[2], {})
            entry = _shown(user) | {"userid": name} | ({"realm-type": realm["type"]} if realm else {})
            if name == ROOT and not user.email:
                del entry["email"]  # nobody has ever written it
            if call.get("full"):
                entry["groups"] = ",".join(_groups_of(call, name))
                entry["tokens"] = [{"tokenid": its, **_token(token)} for its, token in sorted(user.tokens.items())]
            found.append(entry)
    return found


@route("GET", ONE)
async def show(call: Call) -> object:
    user = _user(call)
    tokens = {name: _token(token) for name, token in user.tokens.items()} or None
    return _shown(user) | {"groups": _groups_of(call, call.params["userid"]), "tokens": tokens}


def _join(call: Call, what: str) -> None:
    """Put the user into the groups that are named, and into no others unless `append`."""
    groups, userid = call.node.access.config.groups, call.params["userid"]
    wanted = names(call.get("groups"))
    for name in wanted:
        if name not in groups:
            raise ApiError(500, f"{what} user failed: no such group '{name}'")
    for name, group in groups.items():
        if name in wanted:
            group.members.add(userid)
        elif not call.get("append"):
            group.members.discard(userid)


@route("POST", USERS)
async def create(call: Call) -> None:
    access, userid = call.node.access, call.params["userid"]
    if userid in access.config.users:
        raise ApiError(500, f"create user failed: user '{userid}' already exists")
    _join(call, "create")
    access.config.users[userid] = User(**{name: call.params[name] for name in OF_USER if name in call.params})
    if "password" in call.params:
        access.set_password(userid, call.params["password"])
    access.config.save()


@route("PUT", ONE)
async def update(call: Call) -> None:
    user = _user(call, "update user failed: ")
    if "groups" in call.params:
        _join(call, "update")
    for name in OF_USER:
        if name in call.params:
            setattr(user, name, call.params[name])
    call.node.access.config.save()


@route("DELETE", ONE)
async def delete(call: Call) -> None:
    """One that is not there is no error."""
    access, userid = call.node.access, call.params["userid"]
    if userid in (call.user, ROOT):
        raise ApiError(500, f"delete user failed: cannot delete user '{userid}'")
    access.config.drop(subject=userid)
    access.config.users.pop(userid, None)
    for group in access.config.groups.values():
        group.members.discard(userid)
    access.shadow.forget(userid)
    access.config.save()


# Tokens ---------------------------------------------------------------------------------------------------------------


def _its(call: Call) -> Token:
    user, token = _user(call), call.params["tokenid"]
    if token not in user.tokens:
        raise ApiError(500, f"no such token '{token}' for user '{call.params['userid']}'")
    return user.tokens[token]


def _given(call: Call) -> dict[str, str]:
    """What the call gives, as text: so the answer repeats it."""
    given = {name: call.params[name] for name in OF_TOKEN if name in call.params}
    return {name: str(int(value)) if isinstance(value, (bool, int)) else value for name, value in given.items()}


@route("GET", ONE + "/token")
async def tokens(call: Call) -> object:
    return [{"tokenid": name, **_token(token)} for name, token in sorted(_user(call).tokens.items())]


@route("GET", TOKEN)
async def token(call: Call) -> object:
    return _token(_its(call))


@route("POST", TOKEN)
async def create_token(call: Call) -> object:
    access, user, name = call.node.access, _user(call), call.params["tokenid"]
    if name in user.tokens:
        raise invalid(tokenid="Token already exists.")
    user.tokens[name] = Token(**{key: call.params[key] for key in OF_TOKEN if key in call.params})
    access.config.save()
    full, secret = f"{call.params['userid']}!{name}", str(uuid.uuid4())
    access.shadow.set_secret(full, secret)
    return {"full-tokenid": full, "value": secret, "info": {"privsep": 1} | _given(call)}


@route("PUT", TOKEN)
async def update_token(call: Call) -> object:
    found = _its(call)
    for name in OF_TOKEN:
        if name in call.params:
            setattr(found, name, call.params[name])
    call.node.access.config.save()
    return _token(found) | _given(call)


@route("DELETE", TOKEN)
async def delete_token(call: Call) -> None:
    access, name = call.node.access, f"{call.params['userid']}!{call.params['tokenid']}"
    _its(call)
    access.config.drop(subject=name)
    del access.config.users[call.params["userid"]].tokens[call.params["tokenid"]]
    access.shadow.forget(name)
    access.config.save()


# Second factors: nobody has one ---------------------------------------------------------------------------------------


@route("GET", "/access/tfa")
async def tfa(call: Call) -> object:
    return []


@route("GET", "/access/tfa/{userid}")
async def tfa_of(call: Call) -> object:
    _user(call)
    return []


@route("GET", ONE + "/tfa")
async def tfa_types(call: Call) -> object:
    _user(call)
    return {"types": []} if call.get("multiple") else {}


@route("PUT", ONE + "/unlock-tfa")
async def unlock_tfa(call: Call) -> object:
    """Whether it was locked."""
    _user(call)
    return 0
