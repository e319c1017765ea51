"""Lists of machines come out of an index in their order: all, those that have not ended, those of a project."""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(INDEXES)


INDEXES = """
DROP INDEX idx_machines_spawn_time;
CREATE INDEX idx_machines_listed ON intelligent_machines (spawned_at DESC, uuid DESC);
-- What is asked for mostly, and a small part of all there ever were.
CREATE INDEX idx_machines_living ON intelligent_machines (spawned_at DESC, uuid DESC) WHERE status <> 'terminated';
DROP INDEX idx_machines_project;
CREATE INDEX idx_machines_project ON intelligent_machines (project_uuid, spawned_at DESC, uuid DESC);
"""
