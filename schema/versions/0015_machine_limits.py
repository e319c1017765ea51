"""A machine's own limit of money, held with the budgets'."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(LIMIT)
    op.execute(RESERVE)


LIMIT = """
-- NULL: its project's budgets are the only limit
ALTER TABLE intelligent_machines ADD COLUMN max_cad NUMERIC(24,9) CHECK (max_cad > 0 AND max_cad <> 'NaN');

-- What a machine has cost so far, and what is held for it.
CREATE FUNCTION machine_money(p_machine UUID) RETURNS NUMERIC LANGUAGE sql STABLE AS $$
    SELECT coalesce((
        SELECT sum(u.cost_cad) FROM resource_usage u
        WHERE u.machine_uuid = m.uuid AND u.recorded_at >= m.spawned_at
    ), 0) + coalesce((
        SELECT sum(r.amount_cad) FROM reservations r
        WHERE r.project_uuid = m.project_uuid AND r.machine_uuid = m.uuid AND r.status = 'held'
    ), 0)
    FROM intelligent_machines m WHERE m.uuid = p_machine
$$;
"""

RESERVE = """
-- Hold an amount of each type in every budget that applies, and in the machine's own limit of money; no row when one of
-- them lacks it. Nothing is locked while a period's row is missing, for another transaction may be making it.
-- The limit is one of what runs: of a machine that is paused, or has ended, only its disk costs, and that cannot be stopped.
CREATE OR REPLACE FUNCTION reserve_budgets(
    p_uuid UUID, p_project UUID, p_machine UUID, p_at TIMESTAMPTZ, p_types TEXT[], p_amounts NUMERIC[], p_counts JSONB,
    p_holder TEXT, p_purpose TEXT, p_expires_at TIMESTAMPTZ
) RETURNS SETOF reservations LANGUAGE plpgsql AS $$
DECLARE
    today DATE := project_day(p_project, p_at);
    wanted JSONB := (SELECT jsonb_object_agg(t, a) FROM unnest(p_types, p_amounts) AS w (t, a));
    row resource_budgets;
    found UUID[] := '{}';
    has_money BOOLEAN := false;
    most NUMERIC;
BEGIN
    LOCK TABLE resource_budgets IN ROW EXCLUSIVE MODE;
    IF today IS NULL OR EXISTS (SELECT FROM missing_periods(p_project, p_types, today)) THEN
        RETURN;
    END IF;
    FOR row IN SELECT * FROM lock_budgets(p_project, p_types, today) LOOP
        IF row.frozen_at IS NOT NULL OR (row.hard AND row.used_amount + row.reserved_amount
                                         + (wanted ->> row.resource_type)::NUMERIC > row.allocated_amount) THEN
            RETURN;
        END IF;
        found := found || row.uuid;
        has_money := has_money OR row.resource_type = 'money';
    END LOOP;
    IF NOT has_money THEN
        RETURN;
    END IF;
    SELECT m.max_cad INTO most FROM intelligent_machines m
    WHERE m.uuid = p_machine AND m.status NOT IN ('paused', 'terminated');
    IF most IS NOT NULL THEN
        -- One at a time, also of two days, whose budgets are others; after the budgets, as everybody does.
        PERFORM pg_advisory_xact_lock(hashtextextended('machine_money ' || p_machine, 0));
        IF machine_money(p_machine) + (wanted ->> 'money')::NUMERIC > most THEN
            RETURN;
        END IF;
    END IF;
    UPDATE resource_budgets b SET reserved_amount = b.reserved_amount + (wanted ->> b.resource_type)::NUMERIC
    WHERE b.uuid = ANY (found);
    RETURN QUERY INSERT INTO reservations
        (uuid, project_uuid, machine_uuid, day, amounts, amount_cad, holder, purpose, expires_at)
    VALUES (p_uuid, p_project, p_machine, today, p_counts, (wanted ->> 'money')::NUMERIC, p_holder, p_purpose,
            p_expires_at)
    RETURNING *;
END;
$$;
"""
