"""Who may do what: users, grants, keys, logins; the audit log; answers that are given twice; live events."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(USERS)
    op.execute(AUDIT)
    op.execute(REPLAYS)
    op.execute(EVENTS)


USERS = """
-- An admin may do everything; the others what they are granted, project by project.
CREATE TABLE users (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name VARCHAR(63) NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9]([a-z0-9._@-]{0,61}[a-z0-9])?$'),
    role VARCHAR(20) NOT NULL CHECK (role IN ('admin', 'operator', 'viewer')),
    -- argon2; none: no login, keys only
    password_hash TEXT,
    disabled_at TIMESTAMPTZ,
    last_login_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

CREATE TABLE project_grants (
    user_uuid UUID NOT NULL REFERENCES users (uuid),
    project_uuid UUID NOT NULL REFERENCES projects (uuid),
    role VARCHAR(20) NOT NULL CHECK (role IN ('operator', 'viewer')),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (user_uuid, project_uuid)
);
CREATE INDEX idx_project_grants_project ON project_grants (project_uuid);

-- The key itself is shown once; here is its SHA-256 (it is 256 random bits) and what people know it by.
CREATE TABLE api_keys (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    user_uuid UUID NOT NULL REFERENCES users (uuid),
    name VARCHAR(100) NOT NULL CHECK (name <> ''),
    prefix VARCHAR(16) NOT NULL UNIQUE,
    key_hash VARCHAR(64) NOT NULL,
    scope VARCHAR(20) NOT NULL CHECK (scope IN ('metrics', 'read', 'operate', 'admin')),
    -- none: all that its user may see
    project_uuid UUID REFERENCES projects (uuid),
    expires_at TIMESTAMPTZ,
    last_used_at TIMESTAMPTZ,
    revoked_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX idx_api_keys_user ON api_keys (user_uuid);

-- One login. Its refresh token is good once: the one before it, shown again, ends the session.
CREATE TABLE login_sessions (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    user_uuid UUID NOT NULL REFERENCES users (uuid),
    refresh_hash VARCHAR(64) NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    refreshed_at TIMESTAMPTZ,
    expires_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ
);
CREATE INDEX idx_login_sessions_user ON login_sessions (user_uuid) WHERE revoked_at IS NULL;

-- Whoever guesses waits, longer each time. By the name that was tried, whether there is such a user or not.
CREATE TABLE login_failures (
    name VARCHAR(63) NOT NULL,
    address VARCHAR(64) NOT NULL,
    failures INTEGER NOT NULL DEFAULT 1,
    locked_until TIMESTAMPTZ,
    last_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (name, address)
);

-- What a process remembers of who may do what is forgotten at once.
CREATE FUNCTION notify_access() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY autovibe_access;
    RETURN NULL;
END;
$$;
CREATE TRIGGER notify_access AFTER UPDATE OF role, disabled_at, password_hash OR DELETE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION notify_access();
CREATE TRIGGER notify_access AFTER INSERT OR UPDATE OR DELETE ON project_grants
    FOR EACH STATEMENT EXECUTE FUNCTION notify_access();
CREATE TRIGGER notify_access AFTER UPDATE OF revoked_at, expires_at OR DELETE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION notify_access();
CREATE TRIGGER notify_access AFTER UPDATE OF revoked_at, expires_at OR DELETE ON login_sessions
    FOR EACH STATEMENT EXECUTE FUNCTION notify_access();
"""

AUDIT = """
-- Every change that a person asked for: who, what, before, after. Written with the change, never changed, never deleted.
CREATE TABLE audit_log (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- a user's name, or `local` for who owns the hub's state folder
    actor TEXT NOT NULL,
    user_uuid UUID REFERENCES users (uuid),
    key_uuid UUID REFERENCES api_keys (uuid),
    address TEXT,
    request_id TEXT NOT NULL,
    action TEXT NOT NULL,
    object_type TEXT NOT NULL,
    object_uuid UUID,
    object_name TEXT,
    project_uuid UUID REFERENCES projects (uuid),
    before JSONB,
    after JSONB
);
CREATE INDEX idx_audit_object ON audit_log (object_uuid, id);
CREATE INDEX idx_audit_project ON audit_log (project_uuid, id);

CREATE FUNCTION refuse_audit_change() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: % refused', TG_OP USING ERRCODE = 'restrict_violation';
END;
$$;
CREATE TRIGGER refuse_audit_change BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER refuse_audit_truncate BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();
"""

REPLAYS = """
-- What a POST with an Idempotency-Key was answered; written in the transaction of the change itself.
CREATE TABLE request_replays (
    caller TEXT NOT NULL,
    idempotency_key VARCHAR(255) NOT NULL,
    fingerprint VARCHAR(64) NOT NULL,
    -- as it was written: JSONB would sort its fields
    answer JSON,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (caller, idempotency_key)
);
CREATE INDEX idx_request_replays_created ON request_replays (created_at);
"""

EVENTS = """
-- Who follows a machine is woken; what has happened is read from the tables. One notification for each transaction.
CREATE FUNCTION notify_machine_lines() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('autovibe_machines', machine_uuid::TEXT) FROM (SELECT DISTINCT machine_uuid FROM new_lines) AS m;
    RETURN NULL;
END;
$$;
CREATE TRIGGER notify_machine_lines AFTER INSERT ON machine_events REFERENCING NEW TABLE AS new_lines
    FOR EACH STATEMENT EXECUTE FUNCTION notify_machine_lines();

CREATE FUNCTION notify_machine_status() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('autovibe_machines', NEW.uuid::TEXT);
    RETURN NULL;
END;
$$;
CREATE TRIGGER notify_machine_status AFTER UPDATE OF status, outcome ON intelligent_machines FOR EACH ROW
    WHEN (NEW.status IS DISTINCT FROM OLD.status OR NEW.outcome IS DISTINCT FROM OLD.outcome)
    EXECUTE FUNCTION notify_machine_status();
"""
