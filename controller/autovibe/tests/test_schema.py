"""The schema keeps the rules, on both versions of PostgreSQL; its classes and its dump say the same."""

import contextlib
import json
import select
import threading
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import psycopg2
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from autovibe import allocations, backup, budgets, db, projects, schema
from autovibe.errors import DatabaseNotMigrated, DatabaseUnreachable
from autovibe.ledger import UsageLine
from autovibe.models import Base, Checkpoint, Machine, Operation, Project, Run, Usage
from autovibe.settings import Settings
from sqlalchemy.exc import DBAPIError, IntegrityError


@pytest.fixture
def session(any_settings):
    with db.session_scope(any_settings) as open_session:
        yield open_session


@pytest.fixture
def project(session):
    return projects.create(session, "shop", budget_cad=Decimal(5))


@pytest.fixture
def machine(session, project):
    made = Machine(name="first", machine_type="command", project_uuid=project.uuid, vm_id=10000)
    session.add(made)
    session.flush()
    return made


def refused(session, statement, match=None, **values):
    with pytest.raises(DBAPIError, match=match), session.begin_nested():
        session.execute(sa.text(statement) if isinstance(statement, str) else statement, values)


def test_the_code_expects_the_newest_migration():
    assert ScriptDirectory(str(Settings().schema_dir)).get_current_head() == db.SCHEMA_REVISION


def test_schema_sql_is_what_the_migrations_make(settings):
    assert schema.dump(settings) == (Settings().schema_dir / "schema.sql").read_text(), "stale: run `make schema`"


def test_the_classes_are_the_tables(any_settings):
    with db.engine(any_settings).connect() as connection:
        options = {"compare_type": True, "compare_server_default": False, "include_object": _ours}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
    assert differences == []


def _ours(thing, name, kind, reflected, compare_to):
    # Indexes and partitions stand in the migrations only.
    return kind != "index" and not str(name).startswith(("resource_usage_", "alembic_version"))


def test_a_database_that_is_not_migrated_says_so(empty_database):
    with pytest.raises(DatabaseNotMigrated, match="autovibe db upgrade"):
        db.engine(empty_database)


def test_a_database_of_a_newer_autovibe_says_so(any_settings):
    with db.session_scope(any_settings) as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    db.dispose()
    with pytest.raises(DatabaseNotMigrated, match="newer than this"):
        db.engine(any_settings)
    with pytest.raises(DatabaseNotMigrated, match="not known here"):
        db.upgrade(any_settings)


def test_a_database_that_is_not_there_says_so_without_the_password(tmp_path):
    nowhere = Settings(state_dir=tmp_path, database_url="postgresql://u:geheim@127.0.0.1:1/x")
    with pytest.raises(DatabaseUnreachable, match="127.0.0.1 cannot be reached") as error:
        db.engine(nowhere)
    assert "geheim" not in str(error.value)
    assert "\n" not in str(error.value)


def test_upgrades_at_the_same_time_make_one_schema(empty_database):
    results = []

    def upgrade():
        results.append(db.upgrade(empty_database))

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = db.SCHEMA_REVISION
    assert sorted(results, key=str) == [(newest, newest)] * 3 + [(None, newest)]
    assert db.upgrade(empty_database) == (newest, newest)


@contextlib.contextmanager
def migrated_to(settings, revision, monkeypatch):
    """A connection to a database that was last migrated long ago; afterwards `db.upgrade` goes on from there."""
    monkeypatch.setattr(command, "upgrade", lambda config, _, upgrade=command.upgrade: upgrade(config, revision))
    engine = db.make_engine(db.url(settings))
    with engine.begin() as connection:
        db.migrate(connection, settings)
        yield connection
    engine.dispose()
    monkeypatch.undo()


def test_manifests_that_were_kept_as_json_are_packed(empty_database, monkeypatch):
    file = {"path": "a/é", "size": 1, "sha256": "0" * 64, "mode": "0644"}
    manifest = {"files": [file, {**file, "path": "b", "sha256": None}], "truncated": True}
    with migrated_to(empty_database, "0004", monkeypatch) as connection:
        values = {"manifest": json.dumps(manifest), "project": uuid4(), "machine": uuid4(), "some": uuid4()}
        connection.execute(sa.text("INSERT INTO projects (uuid, name) VALUES (:project, 'old')"), values)
        connection.execute(
            sa.text(
                "INSERT INTO intelligent_machines (uuid, name, machine_type, project_uuid, file_modifications) "
                "VALUES (:machine, 'old', 'command', :project, :manifest)"
            ),
            values,
        )
        insert = "INSERT INTO checkpoints (uuid, project_uuid, checkpoint_type, file_manifest) VALUES "
        insert += "(:some, :project, 'manual', :manifest), (gen_random_uuid(), :project, 'genesis', DEFAULT)"
        connection.execute(sa.text(insert), values)
    assert db.upgrade(empty_database) == ("0004", db.SCHEMA_REVISION)
    with db.session_scope(empty_database) as session:
        some = session.get_one(Checkpoint, values["some"])
        assert (some.file_manifest, some.file_count) == (manifest, 2)
        assert session.get_one(Machine, values["machine"]).manifest == manifest
        (other,) = session.scalars(sa.select(Checkpoint).where(Checkpoint.uuid != some.uuid))
        assert (other.file_manifest, other.file_count) == ({}, 0)


def test_money_that_was_spent_before_budgets_had_days_still_counts(empty_database, monkeypatch):
    with migrated_to(empty_database, "0003", monkeypatch) as connection:
        project = connection.scalar(sa.text("INSERT INTO projects (name) VALUES ('old') RETURNING uuid"))
        budget = """INSERT INTO resource_budgets
            (project_uuid, resource_type, budget_period, period_start, period_end, allocated_amount, used_amount, unit)
            VALUES (:project, 'money', 'total', '2026-01-01', '9999-12-31', 5, 2, 'CAD')"""
        line = """INSERT INTO resource_usage (project_uuid, resource_type, amount, unit, cost_cad)
            VALUES (:project, 'money', 2, 'CAD', 2)"""
        for statement in (budget, line):
            connection.execute(sa.text(statement), {"project": project})
    assert db.upgrade(empty_database) == ("0003", db.SCHEMA_REVISION)
    with db.session_scope(empty_database) as session:
        assert allocations.set_budget(session, project, Decimal(4), period="daily").used_amount == 2
        assert allocations.set_budget(session, project, Decimal(9)).used_amount == 2
        allocations.remove(session, project, resource="money", period="total")
        assert allocations.set_budget(session, project, Decimal(9)).used_amount == 2
        with pytest.raises(DBAPIError, match="append-only"):
            session.execute(sa.text("UPDATE resource_usage SET amount = 0"))
        session.rollback()


CHECKED = {
    "projects": {"status": "lost", "greediness": Decimal("1.01"), "name": " shop"},
    "intelligent_machines": {"status": "lost", "machine_type": "a cat", "outcome": "fun", "name": "A b", "vm_id": 1},
    "checkpoints": {"checkpoint_type": "odd", "verification_status": "odd", "carrier": "odd", "size_bytes": -1},
    "operations": {"kind": "odd", "status": "odd", "attempts": -1},
    "runs": {"kind": "odd", "status": "odd"},
    "resource_budgets": {"resource_type": "odd", "budget_period": "odd", "unit": "USD", "overrun_amount": 1},
}


@pytest.mark.parametrize(("table", "column"), [(t, c) for t, columns in CHECKED.items() for c in columns])
def test_a_wrong_value_is_refused(session, machine, table, column):
    session.add(Checkpoint(project_uuid=machine.project_uuid, checkpoint_type="genesis"))
    session.add(Operation(kind="spawn", machine_uuid=machine.uuid))
    session.add(Run(kind="spawn", worker="w", hostname="h"))
    session.flush()
    refused(session, f"UPDATE {table} SET {column} = :value", value=CHECKED[table][column])  # noqa: S608


def test_greediness_is_a_number(session, project):
    refused(session, "UPDATE projects SET greediness = 'NaN'")


def test_a_machine_has_one_running_operation(session, machine):
    def operation(status, **more):
        lease = {"lease_owner": "w", "lease_expires_at": datetime.now(UTC)} if status == "running" else {}
        return Operation(kind="spawn", status=status, machine_uuid=machine.uuid, **lease, **more)

    session.add_all([operation("running"), operation("queued"), operation("queued")])
    session.flush()
    session.add(operation("running"))
    with pytest.raises(IntegrityError, match="one_running"):
        session.flush()
    session.rollback()


def test_an_operation_does_not_depend_on_itself(session, machine):
    session.add(operation := Operation(kind="spawn", machine_uuid=machine.uuid))
    session.flush()
    refused(session, "UPDATE operations SET depends_on_uuid = uuid", "operations_depends_on_check")
    refused(session, "UPDATE operations SET machine_uuid = NULL", "operations_machine_check")
    operation.kind = "verify"
    session.flush()
    session.execute(sa.text("UPDATE operations SET machine_uuid = NULL"))


def test_an_idempotency_key_is_used_once(session, machine):
    session.add(Operation(kind="spawn", machine_uuid=machine.uuid, idempotency_key="k"))
    session.flush()
    session.add(Operation(kind="spawn", machine_uuid=machine.uuid, idempotency_key="k"))
    with pytest.raises(IntegrityError, match="idempotency_key"):
        session.flush()
    session.rollback()


def test_a_new_operation_wakes_who_listens(any_settings):
    url = db.url(any_settings).replace("+psycopg2", "")
    listener = psycopg2.connect(url)
    try:
        listener.autocommit = True
        listener.cursor().execute("LISTEN autovibe_operations")
        with db.session_scope(any_settings) as session:
            session.add(Operation(kind="template"))
        while not listener.notifies:
            assert select.select([listener], [], [], 30)[0], "nobody was woken"
            listener.poll()
        assert [notice.payload for notice in listener.notifies] == ["template"]
    finally:
        listener.close()


def test_a_cycle_is_checked_at_commit(any_settings):
    project, checkpoint = uuid4(), uuid4()
    with db.session_scope(any_settings) as session:
        session.add(Project(uuid=project, name="loop", initial_checkpoint_uuid=checkpoint))
        session.flush()
        session.add(Checkpoint(uuid=checkpoint, project_uuid=project, checkpoint_type="genesis"))
    with pytest.raises(IntegrityError), db.session_scope(any_settings) as session:
        session.add(Project(name="dangling", initial_checkpoint_uuid=uuid4()))


@pytest.mark.parametrize("statement", ["UPDATE {} SET amount = 0", "DELETE FROM {}", "TRUNCATE {}"])
def test_the_ledger_is_append_only(session, project, statement):
    budgets.charge(session, project_uuid=project.uuid, lines=[UsageLine("time", amount=Decimal(1), unit="hours")])
    partition = session.scalar(sa.text("SELECT tableoid::regclass::text FROM resource_usage"))
    for table in ("resource_usage", partition):
        refused(session, statement.format(table), match="append-only")
    refused(session, "TRUNCATE usage_keys", match="append-only")


def test_a_line_of_any_month_has_a_place_and_moves_to_its_own_partition(session, project):
    for month in ("2031-05-31 23:59:59.999999+00", "2031-06-01 00:00+00", "2019-02-28 12:00+00"):
        line = Usage(project_uuid=project.uuid, resource_type="time", amount=1, unit="hours")
        line.recorded_at = datetime.fromisoformat(month)
        session.add(line)
    session.flush()
    where = "SELECT tableoid::regclass::text FROM resource_usage ORDER BY recorded_at"
    assert set(session.scalars(sa.text(where))) == {"resource_usage_default"}
    assert session.scalar(sa.text("SELECT ensure_usage_partitions(3)")) == 3
    expected = ["resource_usage_2019_02", "resource_usage_2031_05", "resource_usage_2031_06"]
    assert list(session.scalars(sa.text(where))) == expected
    assert session.scalar(sa.text("SELECT ensure_usage_partitions(3)")) == 0
    refused(session, "TRUNCATE resource_usage_2031_05", match="append-only")
    refused(session, "TRUNCATE resource_usage_default", match="append-only")


def test_a_backup_restores_everything_into_an_empty_database(any_settings, empty_database, tmp_path):
    with db.session_scope(any_settings) as session:
        project = projects.create(session, "shop", budget_cad=Decimal(5))
        budgets.charge(session, project_uuid=project.uuid, lines=[UsageLine("money", cost_cad=Decimal("1.5"))])
    file = tmp_path / "autovibe.dump"
    assert backup.backup(any_settings, file) == file.stat().st_size
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(backup.BackupFailed, match="exists already"):
        backup.backup(any_settings, file)

    assert backup.restore(empty_database, file) == db.SCHEMA_REVISION
    with db.session_scope(empty_database) as session:
        assert budgets.available(session, projects.get(session, "shop").uuid) == Decimal("3.5")
    with pytest.raises(backup.RestoreFailed, match="not empty"):
        backup.restore(empty_database, file)


def test_a_restore_that_fails_changes_nothing(any_settings, tmp_path):
    with db.session_scope(any_settings) as session:
        projects.create(session, "shop", budget_cad=Decimal(5))
    file = tmp_path / "not-a-backup"
    file.write_text("no")
    with pytest.raises(backup.RestoreFailed, match="not a backup"):
        backup.restore(any_settings, file, force=True)
    with db.session_scope(any_settings) as session:
        assert projects.get(session, "shop")
