"""Budgets of every resource in daily, weekly, monthly and total periods, and the alerts that they raise."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(PROJECTS)
    op.execute(BUDGETS)
    op.execute(RESERVATIONS)
    op.execute(LEDGER)
    op.execute(ALERTS)
    op.execute(PERIODS)
    op.execute(MOVES)


PROJECTS = """
-- Days, weeks and months of its budgets begin at midnight there.
ALTER TABLE projects ADD COLUMN time_zone TEXT NOT NULL DEFAULT 'UTC';
"""

BUDGETS = """
-- What the next period begins with: a top-up holds for its own period only.
ALTER TABLE resource_budgets ADD COLUMN base_amount NUMERIC(24,9);
UPDATE resource_budgets SET base_amount = allocated_amount;
ALTER TABLE resource_budgets ALTER COLUMN base_amount SET NOT NULL;
ALTER TABLE resource_budgets ADD CHECK (base_amount >= 0 AND base_amount <> 'NaN');
-- A hard one is never overspent; one that cannot be held (storage) counts, warns and throttles.
ALTER TABLE resource_budgets ADD COLUMN hard BOOLEAN NOT NULL DEFAULT true;
ALTER TABLE resource_budgets ADD COLUMN soft_percent SMALLINT NOT NULL DEFAULT 80 CHECK (soft_percent BETWEEN 1 AND 100);
ALTER TABLE resource_budgets ADD COLUMN removed_at TIMESTAMPTZ;
-- A total budget counts all that ever was.
UPDATE resource_budgets SET period_start = '1970-01-01' WHERE budget_period = 'total';
ALTER TABLE resource_budgets DROP CONSTRAINT resource_budgets_check2;
ALTER TABLE resource_budgets ADD CHECK (overrun_amount = 0 OR frozen_at IS NOT NULL OR NOT hard);
"""

RESERVATIONS = """
-- A reservation belongs to the periods that its day lies in, whenever it ends.
ALTER TABLE reservations ADD COLUMN day DATE;
UPDATE reservations SET day = (created_at AT TIME ZONE 'UTC')::DATE;
ALTER TABLE reservations ALTER COLUMN day SET NOT NULL;
-- What it holds beside money, by resource type.
ALTER TABLE reservations ADD COLUMN amounts JSONB NOT NULL DEFAULT '{}';
DROP INDEX idx_reservations_budget;
ALTER TABLE reservations DROP COLUMN budget_uuid;
CREATE INDEX idx_reservations_project ON reservations (project_uuid) WHERE status = 'held';
"""

LEDGER = """
-- Every line says to which day it counts. Those that are there were counted in UTC; no other column is touched.
ALTER TABLE resource_usage DISABLE TRIGGER refuse_usage_change;
UPDATE resource_usage SET billing_period_start = (recorded_at AT TIME ZONE 'UTC')::DATE,
                          billing_period_end = (recorded_at AT TIME ZONE 'UTC')::DATE + 1
WHERE billing_period_start IS NULL;
ALTER TABLE resource_usage ENABLE TRIGGER refuse_usage_change;
CREATE INDEX idx_resource_project_day ON resource_usage (project_uuid, billing_period_start);
"""

ALERTS = """
CREATE TABLE budget_alerts (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    budget_uuid UUID NOT NULL REFERENCES resource_budgets (uuid),
    percent SMALLINT NOT NULL,
    used_amount NUMERIC(24,9) NOT NULL,
    allocated_amount NUMERIC(24,9) NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- the webhook
    delivered_at TIMESTAMPTZ,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_attempt_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_error TEXT,
    -- once per period
    UNIQUE (budget_uuid, percent)
);
CREATE INDEX idx_budget_alerts_due ON budget_alerts (next_attempt_at) WHERE delivered_at IS NULL;

CREATE FUNCTION raise_budget_alerts() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO budget_alerts (budget_uuid, percent, used_amount, allocated_amount)
    SELECT NEW.uuid, level, NEW.used_amount, NEW.allocated_amount
    FROM unnest(ARRAY[75, NEW.soft_percent, 90, 100]) AS level
    WHERE NEW.used_amount * 100 >= NEW.allocated_amount * level
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END;
$$;
CREATE TRIGGER raise_budget_alerts AFTER UPDATE OF used_amount ON resource_budgets FOR EACH ROW
    WHEN (NEW.used_amount > OLD.used_amount
          AND NEW.used_amount * 100 >= NEW.allocated_amount * least(75, NEW.soft_percent))
    EXECUTE FUNCTION raise_budget_alerts();
"""

# Functions, because their plans are kept: planning these statements anew takes longer than running them.
PERIODS = """
-- The day on which a project is at a time.
CREATE FUNCTION project_day(p_project UUID, p_at TIMESTAMPTZ) RETURNS DATE LANGUAGE sql STABLE AS $$
    SELECT (p_at AT TIME ZONE time_zone)::DATE FROM projects WHERE uuid = p_project
$$;

-- What the ledger says of a resource on the days from p_start until before p_end.
CREATE FUNCTION used_on(p_project UUID, p_type TEXT, p_start DATE, p_end DATE)
RETURNS NUMERIC LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(CASE WHEN p_type = 'money' THEN cost_cad ELSE amount END), 0) FROM resource_usage
    WHERE project_uuid = p_project AND billing_period_start >= p_start AND billing_period_start < p_end
      AND (p_type = 'money' OR resource_type = p_type)
$$;

-- What is held of it by the reservations of these days.
CREATE FUNCTION held_on(p_project UUID, p_type TEXT, p_start DATE, p_end DATE)
RETURNS NUMERIC LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(CASE WHEN p_type = 'money' THEN amount_cad ELSE (amounts ->> p_type)::NUMERIC END), 0)
    FROM reservations WHERE project_uuid = p_project AND status = 'held' AND day >= p_start AND day < p_end
$$;

-- The periods of a project, resource by resource, that lack a row for the day.
CREATE FUNCTION missing_periods(p_project UUID, p_types TEXT[], p_day DATE)
RETURNS TABLE (resource_type VARCHAR, budget_period VARCHAR) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT b.resource_type, b.budget_period FROM resource_budgets b
    WHERE b.project_uuid = p_project AND b.resource_type = ANY (p_types) AND b.removed_at IS NULL
    GROUP BY b.resource_type, b.budget_period
    HAVING NOT bool_or(b.period_start <= p_day AND p_day < b.period_end);
END;
$$;

-- The rows that apply on the day, locked: in one order everywhere, so that no two transactions wait for each other.
-- The table's lock keeps a new budget from coming in between: it would miss what is under way.
CREATE FUNCTION lock_budgets(p_project UUID, p_types TEXT[], p_day DATE)
RETURNS SETOF resource_budgets LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE resource_budgets IN ROW EXCLUSIVE MODE;
    RETURN QUERY SELECT b.* FROM resource_budgets b
    WHERE b.project_uuid = p_project AND b.resource_type = ANY (p_types) AND b.removed_at IS NULL
      AND b.period_start <= p_day AND p_day < b.period_end
    ORDER BY b.uuid FOR NO KEY UPDATE;
END;
$$;
"""

MOVES = """
-- Hold an amount of each type in every budget that applies; no row when one of them lacks it. Nothing is locked while a
-- period's row is missing, for another transaction may be making it.
CREATE FUNCTION reserve_budgets(
    p_project UUID, p_machine UUID, p_at TIMESTAMPTZ, p_types TEXT[], p_amounts NUMERIC[], p_counts JSONB,
    p_holder TEXT, p_purpose TEXT, p_expires_at TIMESTAMPTZ
) RETURNS SETOF reservations LANGUAGE plpgsql AS $$
DECLARE
    today DATE := project_day(p_project, p_at);
    wanted JSONB := (SELECT jsonb_object_agg(t, a) FROM unnest(p_types, p_amounts) AS w (t, a));
    row resource_budgets;
    found UUID[] := '{}';
    has_money BOOLEAN := false;
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
    UPDATE resource_budgets b SET reserved_amount = b.reserved_amount + (wanted ->> b.resource_type)::NUMERIC
    WHERE b.uuid = ANY (found);
    RETURN QUERY INSERT INTO reservations
        (project_uuid, machine_uuid, day, amounts, amount_cad, holder, purpose, expires_at)
    VALUES (p_project, p_machine, today, p_counts, (wanted ->> 'money')::NUMERIC, p_holder, p_purpose, p_expires_at)
    RETURNING *;
END;
$$;

-- Take what was held from reserved and put what was spent into used, in every budget of the day. Beyond a hard
-- allocation it is an overrun, which freezes the budget; with `p_freeze` the longest one of money is frozen anyway.
CREATE FUNCTION move_budgets(
    p_project UUID, p_day DATE, p_types TEXT[], p_held NUMERIC[], p_spent NUMERIC[], p_freeze BOOLEAN, p_reason TEXT
) RETURNS TABLE (uuid UUID, resource_type VARCHAR, budget_period VARCHAR, froze BOOLEAN) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH mine AS MATERIALIZED (
        SELECT * FROM lock_budgets(p_project, p_types, p_day)
    ), moved AS (
        SELECT mine.uuid, held, spent, mine.frozen_at AS frozen_before,
               used_amount + spent + reserved_amount - held - allocated_amount AS short,
               hard AND (used_amount + spent + reserved_amount - held - allocated_amount > overrun_amount
                         OR p_freeze AND mine.resource_type = 'money' AND row_number() OVER (
                             PARTITION BY mine.resource_type ORDER BY period_end - period_start DESC) = 1) AS freezes
        FROM mine JOIN unnest(p_types, p_held, p_spent) AS w (resource_type, held, spent)
             ON w.resource_type = mine.resource_type
    )
    UPDATE resource_budgets b SET
        used_amount = b.used_amount + spent,
        reserved_amount = b.reserved_amount - held,
        overrun_amount = greatest(b.overrun_amount, short),
        frozen_at = CASE WHEN freezes THEN coalesce(b.frozen_at, now()) ELSE b.frozen_at END,
        freeze_reason = CASE WHEN freezes THEN coalesce(b.freeze_reason, p_reason) ELSE b.freeze_reason END
    FROM moved WHERE b.uuid = moved.uuid
    RETURNING b.uuid, b.resource_type, b.budget_period, b.frozen_at IS NOT NULL AND frozen_before IS NULL;
END;
$$;
"""
