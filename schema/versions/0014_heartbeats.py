"""A machine's heartbeat by one statement."""

from alembic import op

revision = "0014"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(NOTE_HEARTBEAT)


NOTE_HEARTBEAT = """
-- Note that a machine lives; {"outcome": "noted", …} with all that the answer to it follows from. "ended" and "old": its
-- token is of no more use. What is under way is asked for once the row is held: nobody begins a checkpoint meanwhile.
CREATE FUNCTION note_heartbeat(p_machine UUID, p_generation INTEGER, p_progress TEXT) RETURNS JSONB
LANGUAGE plpgsql AS $$
DECLARE
    machine RECORD;
    noted JSONB;
BEGIN
    SELECT m.status, m.generation, m.project_uuid INTO machine
    FROM intelligent_machines m WHERE m.uuid = p_machine FOR NO KEY UPDATE;
    IF NOT FOUND OR machine.status = 'terminated' THEN
        RETURN '{"outcome": "ended"}';
    ELSIF machine.generation <> p_generation THEN
        RETURN '{"outcome": "old"}';
    END IF;
    UPDATE intelligent_machines m SET
        last_heartbeat_at = clock_timestamp(),
        current_progress = coalesce(p_progress, m.current_progress),
        status = CASE WHEN m.status = 'paused' THEN 'paused' WHEN EXISTS (
            SELECT FROM operations o
            WHERE o.machine_uuid = p_machine AND o.kind = 'checkpoint' AND o.status IN ('queued', 'running')
        ) THEN 'checkpointing' ELSE 'working' END
    WHERE m.uuid = p_machine
    RETURNING jsonb_build_object(
        'outcome', 'noted', 'status', m.status, 'api_calls', m.api_calls, 'spawned_at', m.spawned_at,
        'enrolled_at', m.enrolled_at, 'stop_requested_at', m.stop_requested_at, 'stop_reason', m.stop_reason,
        'limits', m.assignment -> 'limits', 'constraints', m.resource_constraints,
        'own_policy', m.assignment -> 'checkpoints', 'checkpointed', m.metadata -> 'checkpointed') INTO noted;
    -- A budget whose period has no row yet is used by nobody.
    RETURN noted || (
        SELECT jsonb_build_object(
            'when_exhausted', p.when_exhausted, 'policy', p.checkpoint_policy, 'smallest', min(b.allocated_amount),
            'fraction', max(CASE WHEN b.allocated_amount = 0 THEN 1 ELSE b.used_amount / b.allocated_amount END))
        FROM projects p LEFT JOIN resource_budgets b ON b.project_uuid = p.uuid AND b.resource_type = 'money'
            AND b.removed_at IS NULL AND b.period_start <= (now() AT TIME ZONE p.time_zone)::DATE
            AND b.period_end > (now() AT TIME ZONE p.time_zone)::DATE
        WHERE p.uuid = machine.project_uuid GROUP BY p.uuid);
END;
$$;
"""
