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
    op.execute(ALERTS)


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
