"""Lines in bulk by arrays, their keys without asking for each first."""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(SUMS)
    op.execute(BULK)


SUMS = """
-- Most lines are of machines, and have no tokens to look for.
CREATE OR REPLACE FUNCTION sum_usage() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO usage_sums_new
    SELECT project_uuid, coalesce(billing_period_start, (recorded_at AT TIME ZONE 'UTC')::DATE), machine_uuid,
           resource_type, resource_subtype, metadata ->> 'model',
           sum(CASE WHEN metadata ? 'balance' THEN (metadata ->> 'lines')::BIGINT ELSE 1 END), sum(amount),
           coalesce(sum(cost_cad), 0), coalesce(sum(cost) FILTER (WHERE currency = 'USD'), 0),
           coalesce(sum((metadata #>> '{tokens,input}')::BIGINT) FILTER (WHERE metadata ? 'tokens'), 0),
           coalesce(sum((metadata #>> '{tokens,cache_read}')::BIGINT) FILTER (WHERE metadata ? 'tokens'), 0),
           coalesce(sum(coalesce((metadata #>> '{tokens,cache_write_5m}')::BIGINT, 0)
                      + coalesce((metadata #>> '{tokens,cache_write_1h}')::BIGINT, 0))
                    FILTER (WHERE metadata ? 'tokens'), 0),
           coalesce(sum((metadata #>> '{tokens,output}')::BIGINT) FILTER (WHERE metadata ? 'tokens'), 0)
    FROM written GROUP BY 1, 2, 3, 4, 5, 6;
    RETURN NULL;
END;
$$;
"""

BULK = """
DROP FUNCTION write_usage(JSON);

-- Write many lines, those whose key is new, and take them from the budgets of their days. The periods' rows are there.
-- Each array has a value for each line, or is empty: NULL for each. Returns a row for each project.
CREATE FUNCTION write_usage(
    p_keys TEXT[], p_projects UUID[], p_machines UUID[], p_checkpoints UUID[], p_operations UUID[], p_types TEXT[],
    p_subtypes TEXT[], p_amounts NUMERIC[], p_units TEXT[], p_cads NUMERIC[], p_costs NUMERIC[], p_currencies TEXT[],
    p_rates NUMERIC[], p_rate_dates DATE[], p_prices UUID[], p_days DATE[], p_metadata JSONB[]
) RETURNS TABLE (project_uuid UUID, lines BIGINT, cad NUMERIC, has_money BOOLEAN, froze TEXT[]) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    -- Numbered from one random beginning: each random number is a call of the operating system.
    prefix TEXT := left(gen_random_uuid()::TEXT, 28);
    uuids UUID[] := ARRAY(
        SELECT (prefix || lpad(to_hex(n), 8, '0'))::UUID FROM generate_series(1, cardinality(p_projects)) AS n ORDER BY n);
    all_new BOOLEAN := true;
    claimed UUID[];
    projects UUID[];
    days DATE[];
    types TEXT[];
    spent NUMERIC[];
    counts BIGINT[];
BEGIN
    -- Keys in one order everywhere: two reports with the same keys wait for each other instead of deadlocking. Almost
    -- always all of them are new; only where one is not, each is asked for before it is written, which costs twice.
    BEGIN
        INSERT INTO usage_keys (idempotency_key, usage_uuid, recorded_at)
        SELECT key, uuid, now() FROM unnest(p_keys, uuids) AS k (key, uuid) WHERE key IS NOT NULL ORDER BY key;
    EXCEPTION WHEN unique_violation THEN
        all_new := false;
        WITH taken AS (
            INSERT INTO usage_keys (idempotency_key, usage_uuid, recorded_at)
            SELECT DISTINCT ON (key) key, uuid, now() FROM unnest(p_keys, uuids) AS k (key, uuid)
            WHERE key IS NOT NULL ORDER BY key
            ON CONFLICT DO NOTHING RETURNING usage_uuid
        )
        SELECT array_agg(usage_uuid) INTO claimed FROM taken;
    END;
    WITH written AS (
        INSERT INTO resource_usage (uuid, project_uuid, machine_uuid, checkpoint_uuid, operation_uuid, resource_type,
            resource_subtype, amount, unit, cost_cad, cost, currency, exchange_rate, exchange_rate_date, price_uuid,
            billing_period_start, billing_period_end, metadata)
        SELECT uuid, project_uuid, machine_uuid, checkpoint_uuid, operation_uuid, resource_type, resource_subtype,
            amount, unit, cost_cad, cost, currency, exchange_rate, exchange_rate_date, price_uuid, day, day + 1,
            coalesce(metadata, '{}')
        FROM unnest(
            uuids, p_keys, p_projects, p_machines, p_checkpoints, p_operations, p_types, p_subtypes, p_amounts, p_units,
            p_cads, p_costs, p_currencies, p_rates, p_rate_dates, p_prices, p_days, p_metadata
        ) AS l (
            uuid, key, project_uuid, machine_uuid, checkpoint_uuid, operation_uuid, resource_type, resource_subtype,
            amount, unit, cost_cad, cost, currency, exchange_rate, exchange_rate_date, price_uuid, day, metadata)
        WHERE all_new OR key IS NULL OR uuid IN (SELECT unnest(claimed))
        RETURNING project_uuid, billing_period_start AS day, resource_type, amount, cost_cad
    ), sums AS (
        SELECT project_uuid, day, 'money' AS resource_type, coalesce(sum(cost_cad), 0) AS spent, count(*) AS lines
        FROM written GROUP BY 1, 2
        UNION ALL
        SELECT project_uuid, day, resource_type, sum(amount), 0 FROM written WHERE resource_type <> 'money'
        GROUP BY 1, 2, 3
    )
    SELECT array_agg(s.project_uuid), array_agg(s.day), array_agg(s.resource_type), array_agg(s.spent),
           array_agg(s.lines) INTO projects, days, types, spent, counts FROM sums s;
    RETURN QUERY WITH moved AS MATERIALIZED (
        SELECT * FROM charge_budgets(projects, days, types, spent)
    ), booked AS (
        SELECT b.project_uuid, sum(b.lines)::BIGINT AS lines, sum(b.spent) FILTER (WHERE b.resource_type = 'money') AS cad
        FROM unnest(projects, types, spent, counts) AS b (project_uuid, resource_type, spent, lines) GROUP BY 1
    )
    SELECT booked.project_uuid, booked.lines, booked.cad,
           EXISTS (SELECT FROM moved m WHERE m.project_uuid = booked.project_uuid AND m.resource_type = 'money'),
           ARRAY(SELECT m.budget_period || ' budget of ' || m.resource_type FROM moved m
                 WHERE m.project_uuid = booked.project_uuid AND m.froze ORDER BY 1)
    FROM booked;
END;
$$;
"""
