"""Checkpoints: packed manifests, tags and milestones, policies, and operations that verify and prune them."""

import json
import zlib

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(MANIFESTS)
    pack_all("checkpoints", "file_manifest_json", "file_manifest")
    pack_all("intelligent_machines", "file_modifications", "manifest")
    op.execute(UNPACKED)
    op.execute(TREE)
    op.execute(OPERATIONS)


MANIFESTS = """
-- Compressed JSON, as `autovibe.manifests` packs it; Postgres need not try to make it smaller.
ALTER TABLE checkpoints RENAME COLUMN file_manifest TO file_manifest_json;
ALTER TABLE checkpoints ADD COLUMN file_manifest BYTEA;
ALTER TABLE checkpoints ALTER COLUMN file_manifest SET STORAGE EXTERNAL;
ALTER TABLE checkpoints ADD COLUMN file_count INTEGER NOT NULL DEFAULT 0 CHECK (file_count >= 0);
-- what its agent has reported of its workspace at its end
ALTER TABLE intelligent_machines ADD COLUMN manifest BYTEA;
ALTER TABLE intelligent_machines ALTER COLUMN manifest SET STORAGE EXTERNAL;
"""

UNPACKED = """
UPDATE checkpoints SET file_count = jsonb_array_length(file_manifest_json -> 'files')
WHERE jsonb_typeof(file_manifest_json -> 'files') = 'array';
ALTER TABLE checkpoints DROP COLUMN file_manifest_json;
UPDATE intelligent_machines SET file_modifications = '{}' WHERE manifest IS NOT NULL;
"""

TREE = """
ALTER TABLE checkpoints ADD COLUMN tags TEXT[] NOT NULL DEFAULT '{}';
-- kept for ever
ALTER TABLE checkpoints ADD COLUMN milestone BOOLEAN NOT NULL DEFAULT false;
ALTER TABLE checkpoints DROP CONSTRAINT checkpoints_verification_status_check;
-- missing: it was there, and Proxmox has it no more. pruning: it is being removed; nothing starts from it.
ALTER TABLE checkpoints ADD CONSTRAINT checkpoints_verification_status_check
    CHECK (verification_status IN ('pending', 'verified', 'failed', 'missing', 'pruning', 'pruned'));
ALTER TABLE projects ADD COLUMN checkpoint_policy JSONB NOT NULL DEFAULT '{}';
ALTER TABLE projects ADD COLUMN retention JSONB NOT NULL DEFAULT '{}';
"""

OPERATIONS = """
ALTER TABLE runs DROP CONSTRAINT runs_kind_check;
ALTER TABLE runs ADD CONSTRAINT runs_kind_check
    CHECK (kind IN ('spawn', 'checkpoint', 'restore', 'promote', 'terminate', 'template', 'verify', 'prune'));
ALTER TABLE operations DROP CONSTRAINT operations_kind_check;
ALTER TABLE operations ADD CONSTRAINT operations_kind_check
    CHECK (kind IN ('spawn', 'checkpoint', 'restore', 'promote', 'terminate', 'template', 'verify', 'prune'));
ALTER TABLE operations RENAME CONSTRAINT operations_check TO operations_depends_on_check;
ALTER TABLE operations DROP CONSTRAINT operations_check1;
ALTER TABLE operations ADD CONSTRAINT operations_machine_check
    CHECK (machine_uuid IS NOT NULL OR kind IN ('template', 'promote', 'verify', 'prune'));
-- A checkpoint that is asked for while a model call is under way waits a little for its end.
ALTER TABLE operations ADD COLUMN not_before TIMESTAMPTZ;
DROP TRIGGER notify_operations ON operations;
CREATE TRIGGER notify_operations AFTER INSERT OR UPDATE OF status, not_before ON operations
    FOR EACH ROW EXECUTE FUNCTION notify_operations();
"""


def pack_all(table, source, target):
    """The manifests that stand in a JSONB column, packed into another one; a few at a time."""
    connection = op.get_bind()
    keys = connection.scalars(sa.text(f"SELECT uuid FROM {table} WHERE jsonb_typeof({source} -> 'files') = 'array'"))
    for key in keys.all():
        manifest = connection.scalar(sa.text(f"SELECT {source} FROM {table} WHERE uuid = :key"), {"key": key})
        values = {"key": key, "packed": pack(manifest)}
        connection.execute(sa.text(f"UPDATE {table} SET {target} = :packed WHERE uuid = :key"), values)


def pack(manifest):
    """`autovibe.manifests.pack`, as it was at this migration."""
    columns = {name: [file.get(name) for file in manifest["files"]] for name in ("path", "size", "sha256", "mode")}
    packed = {"version": 1, "truncated": bool(manifest.get("truncated")), **columns}
    return zlib.compress(json.dumps(packed, separators=(",", ":"), ensure_ascii=False).encode(), 3)
