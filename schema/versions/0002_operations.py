"""The queue: operations, the runs that serve them, what their tasks returned."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(SQL)


SQL = """
CREATE TABLE runs (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    kind VARCHAR(20) NOT NULL
        CHECK (kind IN ('spawn', 'checkpoint', 'restore', 'promote', 'terminate', 'template')),
    worker TEXT NOT NULL,
    hostname TEXT NOT NULL,
    status VARCHAR(20) NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'succeeded', 'failed', 'lost')),
    artifact_dir TEXT,
    -- the run's processes, [{"pid": …, "started": …}]: they outlive a killed worker
    pids JSONB NOT NULL DEFAULT '[]',
    return_code INTEGER,
    started_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    ended_at TIMESTAMPTZ,
    CHECK ((status = 'running') = (ended_at IS NULL))
);

CREATE TABLE operations (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    -- the order of asking: one machine's operations are done first in, first out
    seq BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    kind VARCHAR(20) NOT NULL
        CHECK (kind IN ('spawn', 'checkpoint', 'restore', 'promote', 'terminate', 'template')),
    status VARCHAR(20) NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'running', 'succeeded', 'failed')),
    machine_uuid UUID REFERENCES intelligent_machines (uuid),
    project_uuid UUID REFERENCES projects (uuid),
    checkpoint_uuid UUID REFERENCES checkpoints (uuid),
    template_uuid UUID REFERENCES templates (uuid),
    depends_on_uuid UUID REFERENCES operations (uuid) CHECK (depends_on_uuid <> uuid),
    -- asking twice with one key is asking once
    idempotency_key TEXT UNIQUE,
    params JSONB NOT NULL DEFAULT '{}',
    result JSONB,
    error TEXT,
    error_class VARCHAR(100),
    attempts INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    lease_owner TEXT,
    lease_expires_at TIMESTAMPTZ,
    run_uuid UUID REFERENCES runs (uuid),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    claimed_at TIMESTAMPTZ,
    started_at TIMESTAMPTZ,
    finished_at TIMESTAMPTZ,
    CHECK (machine_uuid IS NOT NULL OR kind IN ('template', 'promote')),
    CHECK (status <> 'running' OR (lease_owner IS NOT NULL AND lease_expires_at IS NOT NULL)),
    CHECK ((status IN ('succeeded', 'failed')) = (finished_at IS NOT NULL))
);
CREATE UNIQUE INDEX operations_one_running_per_machine ON operations (machine_uuid) WHERE status = 'running';
CREATE INDEX idx_operations_queued ON operations (kind, seq) WHERE status = 'queued';
CREATE INDEX idx_operations_unfinished_machine ON operations (machine_uuid, seq)
    WHERE status IN ('queued', 'running');
CREATE INDEX idx_operations_lease ON operations (lease_expires_at) WHERE status = 'running';
CREATE INDEX idx_operations_machine ON operations (machine_uuid, seq);
CREATE INDEX idx_operations_run ON operations (run_uuid);

-- Wakes a worker when there is something new, or when what an operation waited for has ended.
CREATE FUNCTION notify_operations() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('autovibe_operations', NEW.kind);
    RETURN NULL;
END;
$$;
CREATE TRIGGER notify_operations AFTER INSERT OR UPDATE OF status ON operations
    FOR EACH ROW EXECUTE FUNCTION notify_operations();

CREATE TABLE task_results (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_uuid UUID NOT NULL REFERENCES runs (uuid),
    operation_uuid UUID REFERENCES operations (uuid),
    host TEXT NOT NULL,
    task TEXT NOT NULL,
    action TEXT NOT NULL,
    status VARCHAR(20) NOT NULL CHECK (status IN ('ok', 'failed', 'skipped', 'unreachable')),
    changed BOOLEAN NOT NULL DEFAULT false,
    duration DOUBLE PRECISION,
    result JSONB,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX idx_task_results_run ON task_results (run_uuid, id);
CREATE INDEX idx_task_results_operation ON task_results (operation_uuid, id);
"""
