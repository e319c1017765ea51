"""schemathesis against the running API, as everybody: no 5xx, no answer that the OpenAPI document does not have."""

import pytest
import requests
import schemathesis
from autovibe.api.v1.app import create_app
from autovibe.api.v1.tests.conftest import populate, running
from autovibe.settings import load_settings
from autovibe.tests import world
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import load_all_checks
from schemathesis.generation import GenerationMode

#: What an admin removes is there for the others before.
ROLES = ("nobody", "machine-ours", "viewer-ours", "operator-ours", "admin")
#: Streams do not end by themselves; `test_calls` follows them.
DOCUMENT = schemathesis.openapi.from_dict(create_app(load_settings(state_dir="/nonexistent")).openapi())
# Each role's own Authorization replaces whatever a case has. One that was wrong in this, and in a query that arrives as
# a right one (an empty list is not sent), would be right then, and its answer be called a violation.
DOCUMENT.config.generation.with_security_parameters = False
SCHEMA = DOCUMENT.exclude(path_regex="/events$")
#: So many requests for each path, each sent as every role.
FEW = settings(
    max_examples=2,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

MANY = settings(FEW, max_examples=60, derandomize=False)

load_all_checks()


@pytest.fixture(scope="module")
def fuzzed(api_server, tmp_path_factory):
    """An API of its own: what is asked of it here is not gentle."""
    with running(api_server, tmp_path_factory.mktemp("fuzzed"), AUTOVIBE_API_TLS="false") as one:
        populate(one)
        with one.session() as session:
            from autovibe.models import Checkpoint

            world.hub(session, one.settings)
            checkpoint = session.query(Checkpoint).filter(Checkpoint.description == "half way").first().uuid
        one.names = {"project": "ours", "machine": "machine-ours", "checkpoint": str(checkpoint), "user": "viewer-ours"}
        yield one


@pytest.fixture(scope="module")
def sessions():
    """One connection for each role."""
    found = {role: requests.Session() for role in ROLES}
    yield found
    for session in found.values():
        session.close()


def checks():
    """All checks but one: that a request fits the schema does not say that there is such a machine, or money for it."""
    named = schemathesis.checks.CHECKS.get_all()
    return [check for check in named if check.__name__ not in ("positive_data_acceptance", "max_response_time")]


CHECKS = checks()


@SCHEMA.parametrize()
@FEW
def test_every_answer_is_documented(case, fuzzed, sessions):
    as_everybody(case, fuzzed, sessions)


@pytest.mark.soak
@SCHEMA.parametrize()
@MANY
def test_every_answer_is_documented_whatever_is_asked(case, fuzzed, sessions):
    as_everybody(case, fuzzed, sessions)


def test_who_asks_is_no_part_of_a_case():
    assert [one.name for one in SCHEMA["/api/v1/tree"]["GET"].headers] == ["If-None-Match"]


def as_everybody(case, fuzzed, sessions):
    """Ask it as each role in turn."""
    right = case.meta is None or case.meta.generation.mode == GenerationMode.POSITIVE
    for name, value in (case.path_parameters or {}).items() if right else ():
        if name in fuzzed.names and len(str(value)) % 2:
            case.path_parameters[name] = fuzzed.names[name]
    for role in ROLES:
        answer = ask(case, role, fuzzed, sessions[role])
        is_open = not case.operation.definition.raw["security"]
        if role == "machine-ours":
            assert answer.status_code in (400, 401, 403, 404, 405, 413, 429) or is_open
        if role == "nobody":
            assert answer.status_code >= 400 or is_open


def ask(case, role, fuzzed, session):
    """The answer that this role gets, which passes the checks."""
    headers = {"Authorization": f"Bearer {fuzzed.keys[role]}"} if role != "nobody" else {}
    answer = case.call(base_url=f"http://127.0.0.1:{fuzzed.port}", session=session, headers=headers, timeout=30)
    case.validate_response(answer, checks=CHECKS, headers=headers)
    return answer
