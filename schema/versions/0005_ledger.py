"""The ledger in bulk: lines of many projects at once, sums of each day, and months that are condensed."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(LINES)
    op.execute(SUMS)
    op.execute(PARTITIONS)
    op.execute(EXISTING)
    op.execute(BULK)
    op.execute(CONDENSE)


LINES = """
-- A line for a machine belongs to that machine's project.
ALTER TABLE intelligent_machines ADD CONSTRAINT intelligent_machines_uuid_project_uuid_key UNIQUE (uuid, project_uuid);
ALTER TABLE resource_usage DROP CONSTRAINT resource_usage_machine_uuid_fkey;
ALTER TABLE resource_usage ADD CONSTRAINT resource_usage_machine_of_project
    FOREIGN KEY (machine_uuid, project_uuid) REFERENCES intelligent_machines (uuid, project_uuid);

-- Only a correction takes back.
ALTER TABLE resource_usage ADD CONSTRAINT resource_usage_negative_is_correction
    CHECK (resource_subtype IS NOT DISTINCT FROM 'correction' OR (amount >= 0 AND coalesce(cost_cad, 0) >= 0 AND coalesce(cost, 0) >= 0));

-- Sums by day come from usage_sums now. What is left: the newest lines, and what a machine had used by a time.
DROP INDEX idx_resource_type;
DROP INDEX idx_resource_project_day;
DROP INDEX idx_resource_machine;
CREATE INDEX idx_resource_machine ON resource_usage (machine_uuid, recorded_at);
"""

SUMS = """
-- The ledger by day, kept by a trigger in the transaction that writes the lines: reports never read the lines.
-- `lines` counts what was written once, also after a month was condensed. `usd` is what was billed in USD.
CREATE TABLE usage_sums (
    project_uuid UUID NOT NULL,
    day DATE NOT NULL,
    machine_uuid UUID,
    resource_type VARCHAR(50) NOT NULL,
    resource_subtype VARCHAR(100),
    model TEXT,
    lines BIGINT NOT NULL,
    amount NUMERIC NOT NULL,
    cad NUMERIC NOT NULL,
    usd NUMERIC NOT NULL,
    input_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    CONSTRAINT usage_sums_key UNIQUE NULLS NOT DISTINCT
        (project_uuid, day, machine_uuid, resource_type, resource_subtype, model)
);
-- What was written since they were last added up. Writers only ever append, so that none waits for another.
CREATE TABLE usage_sums_new (LIKE usage_sums);
CREATE INDEX idx_usage_sums_new ON usage_sums_new (project_uuid, day);
CREATE VIEW usage_by_day AS SELECT * FROM usage_sums UNION ALL SELECT * FROM usage_sums_new;

CREATE FUNCTION sum_usage() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO usage_sums_new
    SELECT project_uuid, coalesce(billing_period_start, (recorded_at AT TIME ZONE 'UTC')::DATE), machine_uuid,
           resource_type, resource_subtype, metadata ->> 'model',
           sum(CASE WHEN metadata ? 'balance' THEN (metadata ->> 'lines')::BIGINT ELSE 1 END), sum(amount),
           coalesce(sum(cost_cad), 0), coalesce(sum(cost) FILTER (WHERE currency = 'USD'), 0),
           coalesce(sum((metadata #>> '{tokens,input}')::BIGINT), 0),
           coalesce(sum((metadata #>> '{tokens,cache_read}')::BIGINT), 0),
           coalesce(sum(coalesce((metadata #>> '{tokens,cache_write_5m}')::BIGINT, 0)
                      + coalesce((metadata #>> '{tokens,cache_write_1h}')::BIGINT, 0)), 0),
           coalesce(sum((metadata #>> '{tokens,output}')::BIGINT), 0)
    FROM written GROUP BY 1, 2, 3, 4, 5, 6;
    RETURN NULL;
END;
$$;
CREATE TRIGGER sum_usage AFTER INSERT ON resource_usage REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION sum_usage();

-- Add up what was appended; returns how many rows it was. One at a time: who comes second leaves it to the first.
CREATE FUNCTION compact_usage_sums() RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    added BIGINT;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('autovibe usage sums')) THEN
        RETURN 0;
    END IF;
    WITH taken AS (DELETE FROM usage_sums_new RETURNING *), summed AS (
        INSERT INTO usage_sums AS s
        SELECT project_uuid, day, machine_uuid, resource_type, resource_subtype, model, sum(lines), sum(amount),
               sum(cad), sum(usd), sum(input_tokens), sum(cache_read_tokens), sum(cache_write_tokens),
               sum(output_tokens)
        FROM taken GROUP BY 1, 2, 3, 4, 5, 6
        ON CONFLICT ON CONSTRAINT usage_sums_key DO UPDATE SET
            lines = s.lines + excluded.lines, amount = s.amount + excluded.amount, cad = s.cad + excluded.cad,
            usd = s.usd + excluded.usd, input_tokens = s.input_tokens + excluded.input_tokens,
            cache_read_tokens = s.cache_read_tokens + excluded.cache_read_tokens,
            cache_write_tokens = s.cache_write_tokens + excluded.cache_write_tokens,
            output_tokens = s.output_tokens + excluded.output_tokens
    )
    SELECT count(*) INTO added FROM taken;
    RETURN added;
END;
$$;

CREATE OR REPLACE FUNCTION used_on(p_project UUID, p_type TEXT, p_start DATE, p_end DATE)
RETURNS NUMERIC LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(CASE WHEN p_type = 'money' THEN cad ELSE amount END), 0) FROM usage_by_day
    WHERE project_uuid = p_project AND day >= p_start AND day < p_end AND (p_type = 'money' OR resource_type = p_type)
$$;
"""

PARTITIONS = """
-- A statement that names a partition fires none of the parent's statement triggers, so each has its own.
CREATE FUNCTION guard_usage_partition(name TEXT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON %I
                    FOR EACH STATEMENT EXECUTE FUNCTION refuse_usage_change()', name);
    EXECUTE format('CREATE OR REPLACE TRIGGER sum_usage AFTER INSERT ON %I REFERENCING NEW TABLE AS written
                    FOR EACH STATEMENT EXECUTE FUNCTION sum_usage()', name);
END;
$$;

CREATE OR REPLACE FUNCTION make_usage_partition(name TEXT, bounds TEXT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I PARTITION OF resource_usage %s', name, bounds);
    PERFORM guard_usage_partition(name);
END;
$$;

CREATE FUNCTION usage_month_bounds(month DATE) RETURNS TEXT LANGUAGE sql IMMUTABLE AS $$
    SELECT format('FOR VALUES FROM (%L) TO (%L)', month::TEXT || ' 00:00:00+00',
                  (month + INTERVAL '1 month')::DATE::TEXT || ' 00:00:00+00')
$$;

-- Makes the partitions of this month and the next ones, in UTC; returns how many were made. Lines that the default
-- partition caught meanwhile (nobody made partitions in time) go to a partition of their own month.
CREATE OR REPLACE FUNCTION ensure_usage_partitions(months_ahead INTEGER DEFAULT 3) RETURNS INTEGER LANGUAGE plpgsql AS $$
DECLARE
    this_month DATE := date_trunc('month', now() AT TIME ZONE 'UTC');
    months DATE[];
    month DATE;
    caught BOOLEAN;
    made INTEGER := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('autovibe usage partitions'));
    SELECT array_agg(m ORDER BY m) INTO months FROM (
        SELECT (this_month + make_interval(months => i))::DATE AS m FROM generate_series(0, months_ahead) AS i
        UNION
        SELECT date_trunc('month', recorded_at AT TIME ZONE 'UTC')::DATE FROM resource_usage_default
    ) AS wanted WHERE to_regclass(format('resource_usage_%s', to_char(m, 'YYYY_MM'))) IS NULL;
    IF months IS NULL THEN
        RETURN 0;
    END IF;

    LOCK TABLE resource_usage IN ACCESS EXCLUSIVE MODE;
    SELECT EXISTS (SELECT FROM resource_usage_default) INTO caught;
    IF caught THEN
        ALTER TABLE resource_usage DETACH PARTITION resource_usage_default;
        ALTER TABLE resource_usage_default RENAME TO resource_usage_caught;
    END IF;
    FOREACH month IN ARRAY months LOOP
        PERFORM make_usage_partition(format('resource_usage_%s', to_char(month, 'YYYY_MM')), usage_month_bounds(month));
        made := made + 1;
    END LOOP;
    IF caught THEN
        -- These lines are in the sums already.
        ALTER TABLE resource_usage DISABLE TRIGGER sum_usage;
        INSERT INTO resource_usage SELECT * FROM resource_usage_caught;
        ALTER TABLE resource_usage ENABLE TRIGGER sum_usage;
        DROP TABLE resource_usage_caught;
        PERFORM make_usage_partition('resource_usage_default', 'DEFAULT');
    END IF;
    RETURN made;
END;
$$;
"""

EXISTING = """
SELECT guard_usage_partition(inhrelid::regclass::TEXT) FROM pg_inherits WHERE inhparent = 'resource_usage'::regclass;
-- The lines that are there, by the same words as the trigger's.
CREATE TEMPORARY TABLE usage_before (LIKE resource_usage) ON COMMIT DROP;
CREATE TRIGGER sum_usage AFTER INSERT ON usage_before REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION sum_usage();
INSERT INTO usage_before SELECT * FROM resource_usage;
DROP TABLE usage_before;
SELECT compact_usage_sums();
"""

BULK = """
-- Put what was used without a reservation into the budgets of many projects and days, each row once; all of them are
-- locked in the order in which everybody takes them. Beyond a hard allocation it is an overrun, which freezes.
CREATE FUNCTION charge_budgets(p_projects UUID[], p_days DATE[], p_types TEXT[], p_spent NUMERIC[])
RETURNS TABLE (uuid UUID, project_uuid UUID, resource_type VARCHAR, budget_period VARCHAR, froze BOOLEAN)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    LOCK TABLE resource_budgets IN ROW EXCLUSIVE MODE;
    RETURN QUERY WITH wanted AS MATERIALIZED (
        SELECT * FROM unnest(p_projects, p_days, p_types, p_spent) AS w (project_uuid, day, resource_type, spent)
    ), mine AS MATERIALIZED (
        SELECT b.* FROM resource_budgets b
        WHERE b.removed_at IS NULL AND EXISTS (
            SELECT FROM wanted w WHERE w.project_uuid = b.project_uuid AND w.resource_type = b.resource_type
                AND b.period_start <= w.day AND w.day < b.period_end)
        ORDER BY b.uuid FOR NO KEY UPDATE
    ), sums AS (
        SELECT mine.uuid, sum(w.spent) AS spent FROM mine JOIN wanted w
            ON w.project_uuid = mine.project_uuid AND w.resource_type = mine.resource_type
            AND mine.period_start <= w.day AND w.day < mine.period_end
        GROUP BY mine.uuid
    ), moved AS (
        SELECT mine.uuid, sums.spent, mine.frozen_at AS frozen_before,
               used_amount + sums.spent + reserved_amount - allocated_amount AS short,
               hard AND used_amount + sums.spent + reserved_amount - allocated_amount > overrun_amount AS freezes
        FROM mine JOIN sums USING (uuid)
    )
    UPDATE resource_budgets b SET
        used_amount = b.used_amount + moved.spent,
        overrun_amount = greatest(b.overrun_amount, short),
        frozen_at = CASE WHEN freezes THEN coalesce(b.frozen_at, now()) ELSE b.frozen_at END,
        freeze_reason = CASE WHEN freezes THEN coalesce(b.freeze_reason, trim_scale(moved.spent)
            || CASE b.resource_type WHEN 'money' THEN ' CAD were billed' ELSE ' ' || b.unit || ' were used' END
            || ' that nobody had reserved') ELSE b.freeze_reason END
    FROM moved WHERE b.uuid = moved.uuid
    RETURNING b.uuid, b.project_uuid, b.resource_type, b.budget_period, b.frozen_at IS NOT NULL AND frozen_before IS NULL;
END;
$$;

-- Write many lines, those whose key is new, and take them from the budgets of their days. The periods' rows are there.
-- p_lines: an array of objects with the columns' names, and `key`. Returns a row for each project.
CREATE FUNCTION write_usage(p_lines JSON)
RETURNS TABLE (project_uuid UUID, lines BIGINT, cad NUMERIC, has_money BOOLEAN, froze TEXT[]) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    projects UUID[];
    days DATE[];
    types TEXT[];
    spent NUMERIC[];
    counts BIGINT[];
BEGIN
    WITH incoming AS MATERIALIZED (
        SELECT gen_random_uuid() AS uuid, * FROM json_to_recordset(p_lines) AS l (
            key TEXT, project_uuid UUID, machine_uuid UUID, checkpoint_uuid UUID, operation_uuid UUID,
            resource_type TEXT, resource_subtype TEXT, amount NUMERIC, unit TEXT, cost_cad NUMERIC, cost NUMERIC,
            currency TEXT, exchange_rate NUMERIC, exchange_rate_date DATE, price_uuid UUID, day DATE, metadata JSONB)
    ), claimed AS (
        -- In one order everywhere: two reports with the same keys wait for each other instead of deadlocking.
        INSERT INTO usage_keys (idempotency_key, usage_uuid, recorded_at)
        SELECT DISTINCT ON (key) key, uuid, now() FROM incoming WHERE key IS NOT NULL ORDER BY key
        ON CONFLICT DO NOTHING RETURNING usage_uuid
    ), written AS (
        INSERT INTO resource_usage (uuid, project_uuid, machine_uuid, checkpoint_uuid, operation_uuid, resource_type,
            resource_subtype, amount, unit, cost_cad, cost, currency, exchange_rate, exchange_rate_date, price_uuid,
            billing_period_start, billing_period_end, metadata)
        SELECT uuid, project_uuid, machine_uuid, checkpoint_uuid, operation_uuid, resource_type, resource_subtype,
            amount, unit, cost_cad, cost, currency, exchange_rate, exchange_rate_date, price_uuid, day, day + 1,
            coalesce(metadata, '{}')
        FROM incoming WHERE key IS NULL OR uuid IN (SELECT usage_uuid FROM claimed)
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

CONDENSE = """
-- Replace a month's lines by balance lines that add up to the same: by project, machine, day, type, model and so on,
-- and by the machine's checkpoint that came next, so that what a checkpoint cost to reach holds as well. The month's
-- own lines are kept in the table whose name is returned, which belongs to the ledger no longer.
CREATE FUNCTION condense_usage_month(month DATE) RETURNS TEXT LANGUAGE plpgsql AS $$
DECLARE
    name TEXT := format('resource_usage_%s', to_char(month, 'YYYY_MM'));
    old TEXT := name || '_lines';
BEGIN
    EXECUTE format('ALTER TABLE resource_usage DETACH PARTITION %I', name);
    EXECUTE format('ALTER TABLE %I RENAME TO %I', name, old);
    EXECUTE format('DROP TRIGGER sum_usage ON %I', old);
    -- Detaching took this one away.
    EXECUTE format('CREATE TRIGGER refuse_usage_change BEFORE UPDATE OR DELETE ON %I
                    FOR EACH ROW EXECUTE FUNCTION refuse_usage_change()', old);
    PERFORM make_usage_partition(name, usage_month_bounds(month));
    -- These lines are in the sums already.
    ALTER TABLE resource_usage DISABLE TRIGGER sum_usage;
    EXECUTE format($statement$
        INSERT INTO resource_usage (recorded_at, project_uuid, machine_uuid, checkpoint_uuid, resource_type,
            resource_subtype, amount, unit, cost_cad, cost, currency, billing_period_start, billing_period_end, metadata)
        SELECT max(u.recorded_at), u.project_uuid, u.machine_uuid, u.checkpoint_uuid, u.resource_type,
            u.resource_subtype, sum(u.amount), u.unit, sum(u.cost_cad), sum(u.cost), u.currency,
            u.billing_period_start, u.billing_period_end,
            jsonb_strip_nulls(jsonb_build_object(
                'balance', true, 'lines', count(*),
                'model', u.metadata ->> 'model', 'basis', u.metadata ->> 'basis',
                'tokens', CASE WHEN bool_or(u.metadata ? 'tokens') THEN jsonb_build_object(
                    'input', sum((u.metadata #>> '{tokens,input}')::BIGINT),
                    'output', sum((u.metadata #>> '{tokens,output}')::BIGINT),
                    'cache_read', sum((u.metadata #>> '{tokens,cache_read}')::BIGINT),
                    'cache_write_5m', sum((u.metadata #>> '{tokens,cache_write_5m}')::BIGINT),
                    'cache_write_1h', sum((u.metadata #>> '{tokens,cache_write_1h}')::BIGINT)) END))
        FROM %I u LEFT JOIN LATERAL (
            SELECT min(c.created_at) AS at FROM checkpoints c
            WHERE c.creating_machine_uuid = u.machine_uuid AND c.created_at >= u.recorded_at
        ) AS next ON true
        GROUP BY u.project_uuid, u.machine_uuid, u.checkpoint_uuid, u.resource_type, u.resource_subtype, u.unit,
            u.currency, u.billing_period_start, u.billing_period_end, u.metadata ->> 'model', u.metadata ->> 'basis',
            next.at
    $statement$, old);
    ALTER TABLE resource_usage ENABLE TRIGGER sum_usage;
    RETURN old;
END;
$$;
"""
