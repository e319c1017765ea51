"""The ledger beside the provider's own report: what was booked at its bound comes to what was billed."""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import httpx
import pytest
import sqlalchemy as sa
from autovibe import allocations, budgets, client, db, ledger, months, prices, projects, rates, reconcile
from autovibe.api.v1 import schemas
from autovibe.errors import Invalid
from autovibe.ledger import UsageLine
from autovibe.prices import Tokens
from autovibe.tests import gateway_fixtures as fixtures
from autovibe.tests.test_cli import command  # noqa: F401 - a fixture
from pydantic import SecretStr

MODEL = "claude-sonnet-5-5"
DAY = timedelta(days=1)
POLICY = prices.Policy()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An installation, the demo model, a hub, and an account."""
    folder = tmp_path_factory.mktemp("reconcile")
    with (
        fixtures.migrated(folder) as settings,
        fixtures.demo_model(settings.lab_dir) as model,
        fixtures.hub(settings) as url,
    ):
        update = {"anthropic_admin_key": SecretStr(model.key), "upstream_url": model.url}
        yield settings.model_copy(update=update), model, url


def today():
    """Asked for in each test: the day of the run's beginning may be over by then."""
    return datetime.now(UTC).date()


def days_of(model):
    """How many UTC days the provider's bill has lines of."""
    return len({line["at"][:10] for line in model.bill()})


def test_calls_that_were_cut_off_are_put_right_once_and_billed_is_what_the_ledger_says(place):
    settings, model, url = place
    account = fixtures.account(settings, "100")

    def call():
        return httpx.post(
            f"{url}/v1/messages", json=fixtures.request_body(stream=True), headers=account.headers, timeout=60
        )

    began = today()
    assert call().status_code == 200
    for events in (0, 3):
        model.fault("cut", after_events=events)
        with pytest.raises(httpx.HTTPError):
            call().raise_for_status()
    fixtures.wait_for(lambda: len(account.lines()) == 3 and account.held() == 0, "settling")
    with db.session_scope(settings) as session:
        tariff = prices.tariff(session, MODEL)
        billed = sum(prices.cost(tariff, line["usage"]).cad for line in model.bill())
    assert account.budget().used_amount > billed

    for turn in range(2):
        last = today()
        reported = reconcile.report(settings, began, last)
        with db.session_scope(settings) as session:
            found = reconcile.compare(session, reported, began, last, POLICY)
            assert bool(found.corrections) is (turn == 0)
            assert found.unexplained_cad == 0
            booked = reconcile.book(session, found)
            assert (booked < 0) is (turn == 0)
    assert 0 <= account.budget().used_amount - billed <= Decimal("3e-9")
    assert account.budget().frozen_at is None


def test_a_report_has_pages_and_wants_its_key(place):
    settings, model, _ = place
    now = today()
    # Of days before the calls above, which may have been yesterday's.
    assert reconcile.report(settings, now - 70 * DAY, now - 2 * DAY) == {}
    assert len([c for c in model.ask("GET", "/lab/calls")["calls"] if "usage_report" in c["path"]]) >= 3
    wrong = settings.model_copy(update={"anthropic_admin_key": SecretStr("sk-ant-admin-geheim")})
    with pytest.raises(reconcile.ReportFailed, match=r"refused its usage report \(401\)") as refused:
        reconcile.report(wrong, now, now)
    assert "geheim" not in str(refused.value)
    nowhere = settings.model_copy(update={"upstream_url": f"http://127.0.0.1:{fixtures.free_port()}"})
    with pytest.raises(reconcile.ReportFailed, match="cannot be had"):
        reconcile.report(nowhere, now, now)
    with pytest.raises(reconcile.NoAdminKey):
        reconcile.report(settings.model_copy(update={"anthropic_admin_key": None}), now, now)


def test_the_command_asks_before_it_books(place, command, monkeypatch):  # noqa: F811
    settings, model, _ = place
    monkeypatch.setenv("AUTOVIBE_ANTHROPIC_ADMIN_KEY", model.key)
    monkeypatch.setenv("AUTOVIBE_UPSTREAM_URL", model.url)
    days = ("--from", (today() - DAY).isoformat(), "--to", today().isoformat())
    data = json.loads(command("reconcile", *days, "--json")[1])
    assert data["booked"] is False
    # This database knows of no call: somebody else used the key.
    assert Decimal(data["unexplained_cad"]) > 0
    assert command("project", "create", "payer", "--budget", "50")[0] == 0
    code, said, _ = command("reconcile", *days, "--charge-to", "payer", "--yes")
    assert (code, f"Booked {days_of(model)} corrections" in said) == (0, True)
    assert model.key not in said
    code, _, error = command("reconcile", "--from", "2026-11-02", "--to", "2026-11-01")
    assert (code != 0, "before it begins" in error) == (True, True)


def test_only_what_was_shown_is_booked(place, settings):
    _, model, _ = place
    update = {"anthropic_admin_key": SecretStr(model.key), "upstream_url": model.url}
    with db.session_scope(settings) as session:
        shop = projects.create(session, "shop", budget_cad=Decimal(100))
    asked = {"first": today() - DAY, "last": today(), "charge_to": "shop"}
    with client.connect(settings.model_copy(update=update)) as hub:
        shown = hub.get("/reconciliation", schemas.Reconciliation, **asked)
        assert (shown["corrections"], shown["booked"]) == (days_of(model), False)
        with pytest.raises(client.Refused) as refused:
            hub.post("/reconciliation", None, asked | {"fingerprint": "0" * 64})
        assert refused.value.code == "reconciliation_changed"
        with db.session_scope(settings) as session:
            assert ledger.total_cad(session, shop.uuid) == 0
        body = asked | {"fingerprint": shown["fingerprint"]}
        booked = hub.post("/reconciliation", schemas.Reconciliation, body, key="once")
        assert hub.post("/reconciliation", schemas.Reconciliation, body, key="once") == booked
        assert hub.pages("/audit", schemas.AuditLine)[0]["action"] == "book"
    with db.session_scope(settings) as session:
        assert ledger.total_cad(session, shop.uuid) == shown["corrections_cad"] == booked["corrections_cad"]


# By hand


@pytest.fixture
def session(settings):
    with db.session_scope(settings) as open_session:
        yield open_session


@pytest.fixture
def day(session):
    """The day of all that the session's one transaction writes, with a rate of its own."""
    found = session.scalar(sa.text("SELECT (now() AT TIME ZONE 'UTC')::date"))
    rates.set_manual(session, "USD", "CAD", Decimal("1.25"), found)
    return found


def booked(session, project, cad, model, **metadata):
    if model:
        metadata |= {"model": model}
    line = UsageLine("money", "claude_api", amount=Decimal(cad), cost_cad=Decimal(cad), metadata=metadata)
    budgets.charge(session, project_uuid=project.uuid, lines=[line])


def test_those_without_a_model_share_what_no_other_explains(session, day):
    shop, other = (projects.create(session, name, budget_cad=Decimal(100)) for name in ("shop", "other"))
    booked(session, shop, 5, "claude-opus-5-5", basis="usage", tokens={"input": 10**6})
    booked(session, shop, 3, None, settled_at_bound=True)
    booked(session, other, 1, None, settled_at_bound=True)
    reported = {(day, "claude-opus-5-5"): Tokens(input=int(1.4 * 10**6))}
    found = reconcile.compare(session, reported, day, day, POLICY)
    assert found.models[0].cad == 2
    reconcile.book(session, found)
    assert ledger.total_cad(session, shop.uuid) == Decimal("6.5")
    assert ledger.total_cad(session, other.uuid) == Decimal("0.5")
    assert reconcile.compare(session, reported, day, day, POLICY).corrections == []
    # Another range knows nothing of it.
    assert reconcile.compare(session, {}, day - DAY, day - DAY, POLICY).corrections == []


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 5, 7, 1_000_003])
def test_one_comparison_puts_all_right_to_the_last_digit(session, day, tokens):
    names = {"a": "9.000000001", "b": "0.1", "c": "0.2", "d": "0.3"}
    shops = [projects.create(session, name, budget_cad=Decimal(100)) for name in names]
    for shop, cad in zip(shops, names.values(), strict=True):
        booked(session, shop, cad, "claude-opus-5-5", basis="bound")
    reported = {(day, "claude-opus-5-5"): Tokens(input=tokens)}
    reconcile.book(session, reconcile.compare(session, reported, day, day, POLICY))
    again = reconcile.compare(session, reported, day, day, POLICY)
    assert again.corrections == []
    left = [ledger.total_cad(session, shop.uuid) for shop in shops]
    assert (sum(left), min(left) >= 0) == (again.models[0].cad, True)


def cut_off(session, project, cad, model, subtype="claude_api"):
    """A call whose gateway was killed, settled by the reaper."""
    made = budgets.reserve(
        session, project_uuid=project.uuid, amount_cad=Decimal(cad), holder="call", purpose=budgets.AI_CALL,
        expires_at=datetime.now(UTC) - DAY, metadata={"model": model, "subtype": subtype},
    )  # fmt: skip
    budgets.reap(session)
    return made


def test_a_call_to_another_provider_is_not_paid_back_because_this_one_knows_nothing_of_it(session, day):
    shop = projects.create(session, "shop", budget_cad=Decimal(100))
    cut_off(session, shop, 3, "gpt-x", "openai_api")
    assert reconcile.compare(session, {}, day, day, POLICY).corrections == []
    assert ledger.total_cad(session, shop.uuid) == 3


def test_what_others_used_with_the_same_model_is_not_put_on_a_call_beyond_its_bound(session, day):
    shop, payer = (projects.create(session, name, budget_cad=Decimal(100)) for name in ("shop", "payer"))
    cut_off(session, shop, 3, "claude-opus-5-5")
    booked(session, shop, 2, "claude-opus-5-5", basis="bound")
    reported = {(day, "claude-opus-5-5"): Tokens(input=10 * 10**6), (day, "claude-unheard-of"): Tokens(output=1)}
    found = reconcile.compare(session, reported, day, day, POLICY)
    others = found.models[1].cad
    assert (found.corrections, found.unexplained_cad) == ([], 45 + others)
    for _ in range(2):
        reconcile.book(session, reconcile.compare(session, reported, day, day, POLICY, payer.uuid))
    assert (ledger.total_cad(session, shop.uuid), ledger.total_cad(session, payer.uuid)) == (5, 45 + others)
    assert allocations.get(session, shop.uuid).frozen_at is None


def test_what_the_report_had_not_yet_comes_back_with_it_and_a_settled_call_is_no_part_of_it(session, day):
    shop = projects.create(session, "shop", budget_cad=Decimal(100))
    cut_off(session, shop, 3, "claude-opus-5-5")
    late = cut_off(session, shop, 9, "claude-opus-5-5")
    exact = {"model": "claude-opus-5-5", "basis": "usage", "tokens": {"input": 10**6}}
    line = UsageLine("money", "claude_api", amount=Decimal(5), cost_cad=Decimal(5), metadata=exact)
    budgets.settle(session, late.uuid, lines=[line])
    for tokens, cad in ((1, 5), (int(1.2 * 10**6), 6), (2 * 10**6, 8), (int(1.4 * 10**6), 7)):
        reported = {(day, "claude-opus-5-5"): Tokens(input=tokens)}
        for _ in range(2):
            reconcile.book(session, reconcile.compare(session, reported, day, day, POLICY))
        assert ledger.total_cad(session, shop.uuid) == cad


def test_a_month_that_was_put_away_is_not_corrected_again(session):
    rates.set_manual(session, "USD", "CAD", Decimal("1.25"), date(2026, 1, 31))
    shop = projects.create(session, "shop", budget_cad=Decimal(100))
    cut_off(session, shop, 3, "claude-opus-5-5")
    late = cut_off(session, shop, 9, "claude-opus-5-5")
    budgets.settle(session, late.uuid, lines=[UsageLine("money", "claude_api", metadata={"basis": "usage"})])
    days = date(2026, 1, 1), date(2026, 1, 31)

    def moved_to_january():
        session.execute(sa.text("ALTER TABLE resource_usage DISABLE TRIGGER refuse_usage_change"))
        session.execute(
            sa.text("UPDATE resource_usage SET recorded_at = '2026-01-10 12:00+00' WHERE recorded_at > '2026-02-01'")
        )
        session.execute(sa.text("ALTER TABLE resource_usage ENABLE TRIGGER refuse_usage_change"))
        session.execute(sa.text("SELECT ensure_usage_partitions(1)"))

    moved_to_january()
    reported = {(date(2026, 1, 10), "claude-opus-5-5"): Tokens(input=2 * 10**5)}
    reconcile.book(session, reconcile.compare(session, reported, *days, POLICY))
    moved_to_january()
    assert ledger.total_cad(session, shop.uuid) == 1
    assert months.detach(session, date(2026, 1, 1))["lines"] == 5
    found = reconcile.compare(session, reported, *days, POLICY)
    assert (found.corrections, found.unexplained_cad, ledger.total_cad(session, shop.uuid)) == ([], 0, 1)


def test_a_ledger_that_has_more_than_the_report_is_shown_and_not_touched(session, day):
    shop = projects.create(session, "shop", budget_cad=Decimal(100))
    booked(session, shop, 5, "claude-opus-5-5", basis="usage", tokens={"input": 10**6})
    found = reconcile.compare(session, {}, day, day, POLICY)
    assert (found.corrections, found.unexplained_cad, found.models[0].missing["input"]) == ([], 0, -(10**6))
    with pytest.raises(Invalid, match="before it begins"):
        reconcile.compare(session, {}, day, day - DAY, POLICY)


@pytest.mark.parametrize(
    "page",
    [
        None,
        {},
        {"data": [{}]},
        {"data": [{"starting_at": "soon", "results": []}]},
        {"data": [{"starting_at": "2026-11-01T00:00:00Z", "results": [{"model": "m", "output_tokens": -1}]}]},
        {"data": [{"starting_at": "2026-11-01T00:00:00Z", "results": [{"model": 7}]}]},
    ],
)
def test_a_report_that_is_not_understood_is_one_line(page):
    with pytest.raises(reconcile.ReportFailed, match="not understood"):
        reconcile._read(page, {})
