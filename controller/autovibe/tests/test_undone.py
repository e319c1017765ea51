"""A transaction that Postgres undid for the sake of others is done again, whole, and nobody hears of it."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from autovibe import budgets, db, projects
from autovibe.gateway.database import Link
from sqlalchemy.exc import DBAPIError

#: `nextval` is not undone with the rest: it counts the tries.
UNDONE_AT_FIRST = """
CREATE SEQUENCE tries;
CREATE FUNCTION undone_before(n INTEGER, state TEXT) RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE tried BIGINT := nextval('tries');
BEGIN
    IF tried < n THEN RAISE EXCEPTION 'undone' USING ERRCODE = state; END IF;
    RETURN tried;
END;
$$;
"""


@pytest.fixture
def undone(settings):
    with db.engine(settings).begin() as connection:
        connection.execute(sa.text(UNDONE_AT_FIRST))
    return settings


@pytest.mark.parametrize("state", db.UNDONE)
def test_what_was_undone_is_done_again_from_its_beginning_and_once(undone, state):
    begun = []

    def work(session):
        begun.append(session)
        projects.create(session, "shop", budget_cad=Decimal(5))
        return session.scalar(sa.text(f"SELECT undone_before(3, '{state}')"))

    assert db.transact(undone, work) == 3
    assert len(set(begun)) == 3
    with db.session_scope(undone) as session:
        assert [one.name for one in projects.all_of(session)] == ["shop"]


def test_what_is_undone_each_time_is_given_up_and_other_errors_at_once(undone, monkeypatch):
    monkeypatch.setattr(db, "pause", lambda tried: 0)
    with pytest.raises(DBAPIError, match="undone"):
        db.transact(undone, lambda session: session.execute(sa.text("SELECT undone_before(1000, '40P01')")))
    with pytest.raises(DBAPIError, match="division by zero"):
        db.transact(undone, lambda session: session.execute(sa.text("SELECT nextval('tries') / 0")))
    with db.session_scope(undone) as session:
        assert session.scalar(sa.text("SELECT last_value FROM tries")) == db.TRIES + 1


def test_a_statement_of_the_gateway_is_done_again(undone):
    async def fetch():
        link = Link(undone)
        try:
            return await link.fetch("SELECT undone_before(3, '40P01') AS tried")
        finally:
            await link.close()

    assert asyncio.run(fetch())[0]["tried"] == 3


def test_of_two_that_wait_for_each_other_both_are_done(any_settings):
    with db.session_scope(any_settings) as session:
        owners = [projects.create(session, name, budget_cad=Decimal(5)).uuid for name in ("one", "two")]
    met, done = threading.Barrier(2), []

    def both(first, second):
        tried = []

        def work(session):
            tried.append(1)
            reserve(session, first)
            if len(tried) == 1 and not done:
                met.wait(30)
            reserve(session, second)

        db.transact(any_settings, work)
        done.append(len(tried))

    threads = [threading.Thread(target=both, args=pair) for pair in (owners, owners[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == [1, 2]
    with db.session_scope(any_settings) as session:
        assert [budgets.available(session, owner) for owner in owners] == [3, 3]


def reserve(session, owner):
    budgets.reserve(
        session, project_uuid=owner, amount_cad=Decimal(1), holder="test", purpose="runtime",
        expires_at=datetime.now(UTC) + timedelta(minutes=5),
    )  # fmt: skip
