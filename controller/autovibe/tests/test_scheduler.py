"""Each job is done at its interval, once when it was missed, by one process."""

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from autovibe import db, fleet, jobs, machines, metering, readings
from autovibe.models import SchedulerJob, VmMeter
from autovibe.scheduler import Job, Scheduler
from autovibe.tests import world


def wait_for(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


@pytest.fixture
def running():
    """Starts schedulers in threads, and ends them."""
    started = []

    def start(scheduler):
        thread = threading.Thread(target=scheduler.run)
        thread.start()
        started.append((scheduler, thread))
        return scheduler

    yield start
    for scheduler, thread in started:
        scheduler.stop()
        thread.join(120)
        assert not thread.is_alive()


def views(settings):
    with db.session_scope(settings) as session:
        return {job["name"]: job for job in jobs.views(session)}


def with_jobs(settings, *made):
    scheduler = Scheduler(settings)
    scheduler.jobs = list(made)
    return scheduler


def test_a_job_that_was_missed_is_run_once_and_others_wait_for_their_time(settings, running):
    done = []
    now = datetime.now(UTC)
    with db.session_scope(settings) as session:
        for name, ago in (
            ("missed", timedelta(days=21)),
            ("done", timedelta(seconds=1)),
            ("to come", -timedelta(days=1)),
        ):
            session.add(SchedulerJob(name=name, every_seconds=3600, last_success_at=now - ago))
    made = [Job(name, 3600, lambda _, name=name: done.append(name)) for name in ("missed", "done", "new", "to come")]
    running(with_jobs(settings, *made))
    wait_for(
        lambda: views(settings).get("to come", {}).get("last_success_at", now) <= datetime.now(UTC), "the last job"
    )
    assert done == ["missed", "new", "to come"]


def test_a_job_that_fails_says_so_and_the_others_go_on(settings, running):
    def fail(_session):
        raise RuntimeError("no such thing")

    def fail_apart():
        raise fleet.NoReading("Proxmox is away")

    def refused(session):
        session.execute(sa.text("UPDATE scheduler_jobs SET name = NULL"))

    running(
        with_jobs(
            settings,
            Job("bad", 3600, fail),
            Job("apart", 3600, fail_apart, True),
            Job("refused", 3600, refused),
            Job("good", 3600, lambda _: 1),
        )
    )
    wait_for(lambda: len(views(settings)) == 4, "all jobs")
    found = views(settings)
    assert (found["bad"]["error"], found["bad"]["overdue"]) == ("RuntimeError: no such thing", True)
    assert "Proxmox is away" in found["apart"]["error"]
    assert "null value" in found["refused"]["error"]
    assert (found["good"]["error"], found["good"]["overdue"]) == (None, False)


def test_only_one_of_two_schedulers_leads(settings, running):
    led = []
    for number in range(2):
        running(with_jobs(settings, Job("which", 0.1, lambda _, number=number: led.append(number))))
    wait_for(lambda: len(led) > 5, "some turns")
    assert len(set(led)) == 1


def test_a_job_is_overdue_after_three_of_its_intervals(settings):
    now = datetime.now(UTC)
    with db.session_scope(settings) as session:
        jobs.succeeded(session, "meter", 60)
        assert [job["overdue"] for job in jobs.views(session, now + timedelta(seconds=170))] == [False]
        assert [job["overdue"] for job in jobs.views(session, now + timedelta(seconds=190))] == [True]


def test_every_job_of_the_scheduler_runs(settings, running):
    scheduler = running(Scheduler(settings))
    names = {job.name for job in scheduler.jobs}
    wait_for(lambda: {name for name, job in views(settings).items() if job["last_success_at"]} == names, "every job")
    assert not any(job["overdue"] or job["error"] for job in views(settings).values())


def test_one_vm_that_cannot_be_booked_holds_up_no_other(settings, monkeypatch):
    with db.session_scope(settings) as session:
        world.template(session)
        project = world.project(session)
        made = [machines.spawn(session, settings, project=project, prompt="x") for _ in range(3)]
        world.do(session, settings)
        ids = [machine.vm_id for machine in made]
        for meter in session.query(VmMeter):
            meter.metered_to -= timedelta(minutes=2)
    at = datetime.now(UTC)
    seen = {vm_id: readings.Seen(vm_id, None, "running", timedelta(days=1), 1, 1, 1, 0) for vm_id in ids}
    monkeypatch.setattr(fleet, "read", lambda _: readings.Reading(at, seen))

    def book(session, settings, vm_id, reading, take=metering.take):
        if vm_id == ids[1]:
            raise fleet.NoReading("broken")
        return take(session, settings, vm_id, reading)

    monkeypatch.setattr(metering, "take", book)
    with pytest.raises(fleet.NoReading, match="broken"):
        fleet.meter(settings)
    with db.session_scope(settings) as session:
        booked = {meter.vm_id: meter.metered_to == at for meter in session.query(VmMeter)}
    assert booked == {ids[0]: True, ids[1]: False, ids[2]: True}
    monkeypatch.undo()
