"""The hub's own VM is a machine, of which nothing but checkpoints may be made."""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(SQL)


SQL = """
ALTER TABLE operations DROP CONSTRAINT operations_kind_check;
ALTER TABLE operations ADD CONSTRAINT operations_kind_check
    CHECK (kind IN ('spawn', 'checkpoint', 'restore', 'promote', 'terminate', 'template', 'verify', 'prune', 'pause',
                    'resume', 'adopt', 'hub_checkpoint'));
ALTER TABLE runs DROP CONSTRAINT runs_kind_check;
ALTER TABLE runs ADD CONSTRAINT runs_kind_check
    CHECK (kind IN ('spawn', 'checkpoint', 'restore', 'promote', 'terminate', 'template', 'verify', 'prune', 'pause',
                    'resume', 'adopt', 'hub_checkpoint'));
-- An adoption's machine is there once it has succeeded.
ALTER TABLE operations DROP CONSTRAINT operations_machine_check;
ALTER TABLE operations ADD CONSTRAINT operations_machine_check
    CHECK (machine_uuid IS NOT NULL OR kind IN ('template', 'promote', 'verify', 'prune', 'adopt'));

-- The hub cannot stop itself and go on: whatever asks for it is refused, here at last.
ALTER TABLE intelligent_machines ADD CONSTRAINT intelligent_machines_hub_is_active
    CHECK (machine_type <> 'hub' OR (status = 'active' AND stop_requested_at IS NULL));
CREATE FUNCTION only_checkpoints_of_hubs() RETURNS TRIGGER LANGUAGE plpgsql AS $$
DECLARE
    is_hub BOOLEAN := EXISTS (
        SELECT FROM intelligent_machines m WHERE m.uuid = NEW.machine_uuid AND m.machine_type = 'hub'
    );
BEGIN
    IF is_hub AND NEW.kind NOT IN ('hub_checkpoint', 'prune', 'verify') THEN
        RAISE EXCEPTION 'a hub gets no % operation', NEW.kind USING ERRCODE = 'check_violation';
    ELSIF NEW.kind = 'hub_checkpoint' AND NOT is_hub THEN
        RAISE EXCEPTION 'only a hub gets a hub_checkpoint operation' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER only_checkpoints_of_hubs BEFORE INSERT ON operations
    FOR EACH ROW WHEN (NEW.machine_uuid IS NOT NULL) EXECUTE FUNCTION only_checkpoints_of_hubs();
"""
