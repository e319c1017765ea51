"""What a machine itself costs: rates by resource, type and date, from the defaults and a file of the user's."""

from datetime import date
from decimal import Decimal

import pytest
import sqlalchemy as sa
from autovibe import compute, db, rates
from autovibe.models import ComputeRate
from sqlalchemy.exc import DBAPIError

LONG_AGO, SPRING = date(2025, 1, 1), date(2026, 4, 1)


@pytest.fixture
def session(settings):
    with db.session_scope(settings) as session:
        yield session


@pytest.fixture
def own(settings, tmp_path):
    """Settings with a file of rates, which `own(text)` writes and loads."""

    def load(session, text):
        (tmp_path / "rates.toml").write_text(text)
        settings.compute_rates_file = tmp_path / "rates.toml"
        return compute.load(session, settings)

    return load


def test_the_defaults_are_there_and_loading_them_again_adds_nothing(session, settings):
    by = compute.tariff(session, "claude_code", LONG_AGO)
    assert set(by.rates) == {"time", "cpu", "memory", "storage", "network"}
    assert by.cost("cpu", Decimal(2)) == (Decimal("0.01"), Decimal("0.01"))
    assert compute.load(session, settings) == 0


def test_a_month_of_a_gb_is_730_hours(session):
    cost, cad = compute.tariff(session, "command", LONG_AGO).cost("storage", Decimal(730))
    assert cost == cad
    assert abs(cad - Decimal("0.05")) < Decimal("1e-8")


def test_a_file_wins_over_the_defaults_from_its_date_on(session, own):
    assert own(session, '[[rates]]\nfrom = 2026-04-01\ncore_hour = "1"\n') == 1
    assert compute.tariff(session, "command", SPRING).cost("cpu", Decimal(1))[1] == 1
    assert compute.tariff(session, "command", date(2026, 3, 31)).cost("cpu", Decimal(1))[1] == Decimal("0.005")
    assert own(session, '[[rates]]\nfrom = 2026-05-01\ncore_hour = "2"\n') == 1
    assert compute.tariff(session, "command", SPRING).cost("cpu", Decimal(1))[1] == 1


def test_us_dollars_become_canadian_at_the_days_rate(session, own):
    rates.set_manual(session, "USD", "CAD", Decimal("1.5"), SPRING)
    own(session, '[[rates]]\nfrom = 2026-04-01\ncurrency = "USD"\nmemory_gb_hour = "0.02"\n')
    line = compute.tariff(session, "command", SPRING).line("memory", "vm_memory", Decimal(3), None)
    assert (line.cost, line.currency, line.cost_cad) == (Decimal("0.06"), "USD", Decimal("0.09"))
    assert (line.exchange_rate, line.exchange_rate_date) == (Decimal("1.5"), SPRING)


def test_a_type_can_cost_a_multiple(session, own):
    own(session, '[[multipliers]]\nfrom = 2026-04-01\naider = "2.5"\n')
    assert compute.tariff(session, "aider", SPRING).cost("cpu", Decimal(2))[1] == Decimal("0.025")
    assert compute.tariff(session, "command", SPRING).cost("cpu", Decimal(2))[1] == Decimal("0.01")


def test_a_cost_is_rounded_up_never_away(session):
    assert compute.tariff(session, "command", LONG_AGO).cost("storage", Decimal("1e-9"))[1] == Decimal("1e-9")


def test_a_rate_is_never_changed(session, own):
    with pytest.raises(DBAPIError, match="never changed"), session.begin_nested():
        session.execute(sa.update(ComputeRate).values(rate=0))
    own(session, '[[rates]]\nfrom = 2026-04-01\ncore_hour = "1"\n')
    with pytest.raises(compute.InvalidRates, match="of 2026-04-01 is 1 CAD already"):
        own(session, '[[rates]]\nfrom = 2026-04-01\ncore_hour = "2"\n')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rates = 1", r"write \[\[rates\]\]"),
        ("[[rate]]", "no table 'rate'"),
        ("[[rates]]\ncore_hour = 1", "needs the date"),
        ("[[rates]]\nfrom = 2026-01-01\ncore_hour = 0.5", "with quotation marks"),
        ('[[rates]]\nfrom = 2026-01-01\ncore_hour = "-1"', "at least 0"),
        ('[[rates]]\nfrom = 2026-01-01\ncore_hour = "NaN"', "not a number"),
        ('[[rates]]\nfrom = 2026-01-01\ncore_hour = "1e99"', "too large"),
        ('[[rates]]\nfrom = 2026-01-01\ncpu = "1"', "no rate 'cpu'"),
        ('[[rates]]\nfrom = 2026-01-01\ncurrency = "EUR"\ncore_hour = "1"', "CAD or USD"),
        ('[[rates]]\nfrom = 2026-01-01\nstorage_gb_hour = "1"\nstorage_gb_month = "1"', "two rates for storage"),
        ("", "no rates in it"),
        ("[[", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_clear_line(text, says):
    with pytest.raises(compute.InvalidRates, match=says) as refused:
        compute.parse(text, "override", "mine.toml")
    assert "mine.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_one_clear_line(session, settings, tmp_path):
    settings.compute_rates_file = tmp_path / "none.toml"
    with pytest.raises(compute.InvalidRates, match=r"none\.toml, which cannot be read: No such file"):
        compute.load(session, settings)
