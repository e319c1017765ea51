"""A machine's own cost: compute rates, meters of VMs; paused machines; the scheduler's jobs."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(RATES)
    op.execute(METERS)
    op.execute(PAUSES)
    op.execute(JOBS)


RATES = """
-- What an hour of a core, a GB (2^30 bytes) for an hour, … costs from a day on. `multiplier` rows multiply all of them
-- for one type of machine.
CREATE TABLE compute_rates (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    item VARCHAR(20) NOT NULL CHECK (item IN ('time', 'cpu', 'memory', 'storage', 'network', 'multiplier')),
    machine_type VARCHAR(50) NOT NULL DEFAULT '',
    effective_from DATE NOT NULL,
    rate NUMERIC(24,12) NOT NULL CHECK (rate >= 0 AND rate <> 'NaN'),
    currency VARCHAR(3) CHECK (currency IN ('CAD', 'USD')),
    -- an override wins over every default
    source VARCHAR(20) NOT NULL CHECK (source IN ('default', 'override')),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    UNIQUE (item, machine_type, effective_from, source),
    CHECK ((item = 'multiplier') = (machine_type <> '')),
    CHECK ((item = 'multiplier') = (currency IS NULL))
);

CREATE FUNCTION refuse_rate_change() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a compute rate is never changed: % on % refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', HINT = 'Add a rate with a later date.';
END;
$$;
CREATE TRIGGER refuse_rate_change BEFORE UPDATE OR DELETE ON compute_rates
    FOR EACH ROW EXECUTE FUNCTION refuse_rate_change();
CREATE TRIGGER refuse_rate_truncate BEFORE TRUNCATE ON compute_rates
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_rate_change();
"""

METERS = """
-- One VM that is counted: a machine's, or a checkpoint's template. All before `metered_to` is in the ledger; the runtime
-- until `held_to` is reserved.
CREATE TABLE vm_meters (
    vm_id INTEGER PRIMARY KEY CHECK (vm_id >= 100),
    project_uuid UUID NOT NULL REFERENCES projects (uuid),
    machine_uuid UUID NOT NULL REFERENCES intelligent_machines (uuid),
    -- waiting: asked for, has not run; stored: it holds checkpoints only; ended: there is no such VM any more
    state VARCHAR(20) NOT NULL CHECK (state IN ('waiting', 'running', 'stopped', 'stored', 'ended')),
    changed_at TIMESTAMPTZ NOT NULL,
    metered_to TIMESTAMPTZ NOT NULL,
    held_to TIMESTAMPTZ,
    cores INTEGER NOT NULL CHECK (cores >= 0),
    memory_mib INTEGER NOT NULL CHECK (memory_mib >= 0),
    disk_mib BIGINT NOT NULL CHECK (disk_mib >= 0),
    -- the counters of its network card when it was read last; they begin anew with the VM
    net_bytes BIGINT CHECK (net_bytes >= 0),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX idx_vm_meters_machine ON vm_meters (machine_uuid);
CREATE INDEX idx_vm_meters_due ON vm_meters (metered_to) WHERE state <> 'ended';
CREATE INDEX idx_reservations_holder ON reservations (holder) WHERE status = 'held';
"""

PAUSES = """
ALTER TABLE intelligent_machines DROP CONSTRAINT intelligent_machines_status_check;
ALTER TABLE intelligent_machines ADD CONSTRAINT intelligent_machines_status_check
    CHECK (status IN ('spawning', 'active', 'working', 'checkpointing', 'paused', 'terminated'));
ALTER TABLE intelligent_machines ADD COLUMN pause_reason VARCHAR(20)
    CHECK (pause_reason IN ('budget', 'person', 'circuit_breaker'));
ALTER TABLE intelligent_machines ADD COLUMN paused_at TIMESTAMPTZ;

ALTER TABLE operations DROP CONSTRAINT operations_kind_check;
ALTER TABLE operations ADD CONSTRAINT operations_kind_check
    CHECK (kind IN ('spawn', 'checkpoint', 'restore', 'promote', 'terminate', 'template', 'verify', 'prune', 'pause',
                    'resume'));
ALTER TABLE runs DROP CONSTRAINT runs_kind_check;
ALTER TABLE runs ADD CONSTRAINT runs_kind_check
    CHECK (kind IN ('spawn', 'checkpoint', 'restore', 'promote', 'terminate', 'template', 'verify', 'prune', 'pause',
                    'resume'));

-- What happens to its machines when its budget is used up.
ALTER TABLE projects ADD COLUMN when_exhausted VARCHAR(10) NOT NULL DEFAULT 'pause'
    CHECK (when_exhausted IN ('pause', 'end'));
-- Failures before that no longer count for its circuit breaker.
ALTER TABLE projects ADD COLUMN breaker_reset_at TIMESTAMPTZ;
"""

JOBS = """
CREATE TABLE scheduler_jobs (
    name VARCHAR(50) PRIMARY KEY,
    every_seconds DOUBLE PRECISION NOT NULL CHECK (every_seconds > 0),
    last_success_at TIMESTAMPTZ,
    last_failure_at TIMESTAMPTZ,
    last_error TEXT
);
"""
