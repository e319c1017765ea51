"""Agents: types that packages bring, messages that are kept once, and files that machines leave behind."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(TYPES)
    op.execute(EVENTS)
    op.execute(FILES)


TYPES = """
-- Packages bring types of their own; their names are those of modules.
ALTER TABLE intelligent_machines DROP CONSTRAINT intelligent_machines_machine_type_check;
ALTER TABLE intelligent_machines ADD CONSTRAINT intelligent_machines_machine_type_check
    CHECK (machine_type ~ '^[a-z][a-z0-9_]{0,40}$');
"""

EVENTS = """
-- An agent that did not hear the hub's answer says the same again: its spool and the place in it name a message.
ALTER TABLE machine_events ADD COLUMN spool TEXT;
ALTER TABLE machine_events ADD COLUMN spool_seq BIGINT CHECK (spool_seq >= 0);
ALTER TABLE machine_events ADD CHECK ((spool IS NULL) = (spool_seq IS NULL));
CREATE UNIQUE INDEX machine_events_once ON machine_events (machine_uuid, spool, spool_seq) WHERE spool IS NOT NULL;
"""

FILES = """
-- What a machine has left behind, by its content: the bytes stand in the state folder, once for each hash.
CREATE TABLE machine_files (
    machine_uuid UUID NOT NULL REFERENCES intelligent_machines(uuid),
    kind VARCHAR(20) NOT NULL CHECK (kind IN ('artifact', 'workspace', 'patch')),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 1024),
    sha256 VARCHAR(64) NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    size_bytes BIGINT NOT NULL CHECK (size_bytes >= 0),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (machine_uuid, kind, name)
);
CREATE INDEX idx_machine_files_sha256 ON machine_files (sha256);
"""
