"""The queue: each operation once, in order, by one worker."""

import threading

import pytest
from autovibe import db, machines, operations, records
from autovibe.models import Machine, Operation
from autovibe.tests import world


@pytest.fixture
def session(settings):
    with db.session_scope(settings) as session:
        world.template(session)
        yield session


@pytest.fixture
def project(session):
    return world.project(session)


def spawn(session, settings, project, **asked):
    return machines.spawn(session, settings, project=project, prompt="work", **asked)


def test_asking_twice_with_one_key_is_asking_once(session):
    first = operations.enqueue(session, "template", params={"vars": {"template_name": "a"}}, idempotency_key="k")
    again = operations.enqueue(session, "template", params={"vars": {"template_name": "b"}}, idempotency_key="k")
    assert first is again
    assert first.params["vars"]["template_name"] == "a"


def test_a_run_serves_all_that_wait_of_one_kind(session, settings, project):
    made = [spawn(session, settings, project) for _ in range(3)]
    operations.enqueue(session, "template", params={"vars": {}})
    claimed = world.claim(session)
    assert [operation.machine_uuid for operation in claimed] == [machine.uuid for machine in made]
    assert {operation.run_uuid for operation in claimed} == {claimed[0].run_uuid}
    assert [operation.kind for operation in world.claim(session)] == ["template"]
    assert world.claim(session) == []


def test_a_run_takes_no_more_than_the_batch(session, settings, project):
    for _ in range(3):
        spawn(session, settings, project)
    assert [len(world.claim(session, limit=2)) for _ in range(3)] == [2, 1, 0]


def test_a_machines_operations_are_done_one_after_the_other(session, settings, project):
    machine = spawn(session, settings, project)
    machines.checkpoint(session, settings, machine)
    (first,) = world.claim(session)
    assert first.kind == "spawn"
    assert world.claim(session) == []
    records.end(session, settings, first.uuid, run_uuid=first.run_uuid, result=world.made(first))
    assert [operation.kind for operation in world.claim(session)] == ["checkpoint"]


def test_what_depends_on_another_waits_for_it_and_fails_with_it(session, settings):
    before = operations.enqueue(session, "template", params={"vars": {}})
    after = operations.enqueue(session, "template", params={"vars": {}}, depends_on_uuid=before.uuid)
    assert world.claim(session) == [before]
    assert operations.hopeless(session) == []
    operations.finish(session, before.uuid, error="no disk space")
    ((found, reason),) = operations.hopeless(session)
    assert found is after
    assert "no disk space" in reason
    assert world.claim(session) == []


def test_an_operation_ends_once_and_only_for_the_run_that_holds_it(session, settings, project):
    spawn(session, settings, project)
    (operation,) = world.claim(session)
    first_run = operation.run_uuid
    operations.put_back(session, [operation], "Its worker died")
    (again,) = world.claim(session)
    assert again is operation
    assert operation.attempts == 2
    assert operations.finish(session, operation.uuid, run_uuid=first_run, result={}) is None
    assert operations.finish(session, operation.uuid, run_uuid=operation.run_uuid, result={}) is operation
    assert operations.finish(session, operation.uuid, run_uuid=operation.run_uuid, error="late") is None
    assert operation.status == "succeeded"


def test_an_operation_is_not_tried_for_ever(session, settings, project):
    spawn(session, settings, project)
    for _ in range(operations.MAX_ATTEMPTS - 1):
        (operation,) = world.claim(session)
        assert operations.put_back(session, [operation], "Its worker died") == []
    (operation,) = world.claim(session)
    assert operations.put_back(session, [operation], "Its worker died") == [operation]


def test_workers_side_by_side_never_get_the_same_operation(any_settings):
    settings, amount, taken = any_settings, 40, []
    with db.session_scope(settings) as session:
        world.template(session)
        project = world.project(session)
        for _ in range(amount):
            machine = spawn(session, settings, project)
            machines.checkpoint(session, settings, machine)

    def work(name):
        while True:
            with db.session_scope(settings) as session:
                claimed = world.claim(session, limit=3, worker=name)
                for operation in claimed:
                    operations.finish(session, operation.uuid, run_uuid=operation.run_uuid, result={})
                taken.extend(operation.uuid for operation in claimed)
            with db.session_scope(settings) as session:
                if not session.query(Operation).filter(Operation.status != "succeeded").count():
                    return

    threads = [threading.Thread(target=work, args=(f"here/boot/{number}/1.0",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == len(set(taken)) == 2 * amount
    with db.session_scope(settings) as session:
        for machine in session.query(Machine):
            ends = session.query(Operation).filter_by(machine_uuid=machine.uuid).order_by(Operation.finished_at)
            assert [operation.kind for operation in ends] == ["spawn", "checkpoint"]


def test_leases_are_extended_for_their_owner_only(session, settings, project):
    spawn(session, settings, project)
    (operation,) = world.claim(session)
    assert operations.extend(session, "another", world.LEASE) == set()
    assert operations.extend(session, world.WORKER, world.LEASE) == {operation.run_uuid}
