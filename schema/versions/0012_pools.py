"""Pools: an amount of a period that the projects share in proportion to their greediness."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(POOLS)
    op.execute(PERIODS)


POOLS = """
CREATE TABLE budget_pools (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    -- of what is held before it is used: of anything else a share could not be kept
    resource_type VARCHAR(50) NOT NULL CHECK (resource_type IN ('money', 'api_calls')),
    budget_period VARCHAR(20) NOT NULL CHECK (budget_period IN ('daily', 'weekly', 'monthly')),
    amount NUMERIC(24,9) NOT NULL CHECK (amount > 0 AND amount <> 'NaN'),
    unit VARCHAR(20) NOT NULL,
    week_start SMALLINT NOT NULL DEFAULT 1 CHECK (week_start BETWEEN 1 AND 7),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    removed_at TIMESTAMPTZ
);
CREATE UNIQUE INDEX budget_pools_one_that_holds ON budget_pools (resource_type, budget_period) WHERE removed_at IS NULL;

CREATE TABLE pool_limits (
    pool_uuid UUID NOT NULL REFERENCES budget_pools (uuid),
    project_uuid UUID NOT NULL REFERENCES projects (uuid),
    -- never lent to others
    floor_amount NUMERIC(24,9) NOT NULL DEFAULT 0 CHECK (floor_amount >= 0 AND floor_amount <> 'NaN'),
    cap_amount NUMERIC(24,9) CHECK (cap_amount >= floor_amount AND cap_amount <> 'NaN'),
    PRIMARY KEY (pool_uuid, project_uuid)
);

-- A project's share of a pool is a budget like the others: all of them hold at once. Only sharing changes its allocation.
ALTER TABLE resource_budgets ADD COLUMN pooled BOOLEAN NOT NULL DEFAULT false;
ALTER TABLE resource_budgets ADD CHECK (NOT pooled OR (hard AND budget_period <> 'total'));
ALTER TABLE resource_budgets DROP CONSTRAINT resource_budgets_project_uuid_resource_type_budget_period_p_key;
ALTER TABLE resource_budgets ADD CONSTRAINT resource_budgets_one_of_a_period
    UNIQUE (project_uuid, resource_type, budget_period, period_start, pooled);
CREATE INDEX idx_budgets_pooled ON resource_budgets (resource_type, budget_period, period_start) WHERE pooled;
"""

PERIODS = """
-- The first day of the pool's period that a day lies in.
CREATE FUNCTION pool_period_start(p_period TEXT, p_week_start INTEGER, p_day DATE) RETURNS DATE
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE p_period
        WHEN 'daily' THEN p_day
        WHEN 'weekly' THEN p_day - (extract(isodow FROM p_day)::INTEGER - p_week_start + 7) % 7
        ELSE date_trunc('month', p_day::TIMESTAMP)::DATE END
$$;

-- The periods of a project, resource by resource, that lack a row for the day: of its own budgets, and of the pools.
CREATE OR REPLACE FUNCTION missing_periods(p_project UUID, p_types TEXT[], p_day DATE)
RETURNS TABLE (resource_type VARCHAR, budget_period VARCHAR) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT b.resource_type, b.budget_period FROM resource_budgets b
    WHERE b.project_uuid = p_project AND b.resource_type = ANY (p_types) AND b.removed_at IS NULL AND NOT b.pooled
    GROUP BY b.resource_type, b.budget_period
    HAVING NOT bool_or(b.period_start <= p_day AND p_day < b.period_end)
    UNION ALL SELECT p.resource_type, p.budget_period FROM budget_pools p
    WHERE p.resource_type = ANY (p_types) AND p.removed_at IS NULL AND NOT EXISTS (
        SELECT FROM resource_budgets b
        WHERE b.project_uuid = p_project AND b.resource_type = p.resource_type AND b.budget_period = p.budget_period
          AND b.pooled AND b.removed_at IS NULL AND b.period_start <= p_day AND p_day < b.period_end);
END;
$$;

-- Make a project's rows of the pools' periods of a day; returns how many. A new row has no more than what is used and
-- held already: all else comes by sharing.
CREATE FUNCTION roll_pools(p_project UUID, p_day DATE) RETURNS INTEGER LANGUAGE plpgsql AS $$
DECLARE
    made INTEGER;
BEGIN
    WITH spans AS (
        SELECT p.resource_type, p.budget_period, p.unit, s AS start, CASE p.budget_period
            WHEN 'daily' THEN s + 1 WHEN 'weekly' THEN s + 7 ELSE (s + INTERVAL '1 month')::DATE END AS until
        FROM budget_pools p, LATERAL pool_period_start(p.budget_period, p.week_start, p_day) AS s
        WHERE p.removed_at IS NULL
    ), next AS (
        SELECT *, used_on(p_project, resource_type, start, until) AS used,
               held_on(p_project, resource_type, start, until) AS held FROM spans
    )
    INSERT INTO resource_budgets (project_uuid, resource_type, budget_period, period_start, period_end,
                                  allocated_amount, base_amount, used_amount, reserved_amount, unit, pooled)
    SELECT p_project, resource_type, budget_period, start, until, used + held, 0, used, held, unit, true
    FROM next ORDER BY resource_type, budget_period
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS made = ROW_COUNT;
    RETURN made;
END;
$$;
"""
