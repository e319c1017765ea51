"""Money: budgets, reservations, the ledger, prices, exchange rates."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(PRICES)
    op.execute(BUDGETS)
    op.execute(LEDGER)
    op.execute(PARTITIONS)


PRICES = """
CREATE TABLE prices (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    provider VARCHAR(50) NOT NULL,
    model VARCHAR(100) NOT NULL,
    effective_from DATE NOT NULL,
    -- for prompts longer than this; the price holds for every token of the call
    tier_above_tokens INTEGER NOT NULL DEFAULT 0 CHECK (tier_above_tokens >= 0),
    -- USD per million tokens
    usd_input NUMERIC(24,9) NOT NULL CHECK (usd_input >= 0 AND usd_input <> 'NaN'),
    usd_output NUMERIC(24,9) NOT NULL CHECK (usd_output >= 0 AND usd_output <> 'NaN'),
    usd_cache_read NUMERIC(24,9) NOT NULL CHECK (usd_cache_read >= 0 AND usd_cache_read <> 'NaN'),
    usd_cache_write_5m NUMERIC(24,9) NOT NULL CHECK (usd_cache_write_5m >= 0 AND usd_cache_write_5m <> 'NaN'),
    usd_cache_write_1h NUMERIC(24,9) NOT NULL CHECK (usd_cache_write_1h >= 0 AND usd_cache_write_1h <> 'NaN'),
    source TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    UNIQUE (provider, model, effective_from, tier_above_tokens)
);

CREATE TABLE exchange_rates (
    base VARCHAR(3) NOT NULL CHECK (base ~ '^[A-Z]{3}$'),
    quote VARCHAR(3) NOT NULL CHECK (quote ~ '^[A-Z]{3}$'),
    rate_date DATE NOT NULL,
    source VARCHAR(50) NOT NULL,
    rate NUMERIC(24,9) NOT NULL CHECK (rate > 0 AND rate <> 'NaN'),
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (base, quote, rate_date, source)
);
"""

BUDGETS = """
CREATE TABLE resource_budgets (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    project_uuid UUID NOT NULL REFERENCES projects (uuid),
    resource_type VARCHAR(50) NOT NULL
        CHECK (resource_type IN ('money', 'time', 'api_calls', 'cpu', 'memory', 'storage', 'network')),
    budget_period VARCHAR(20) NOT NULL CHECK (budget_period IN ('daily', 'weekly', 'monthly', 'total')),
    -- half-open: period_start is in it, period_end is not
    period_start DATE NOT NULL,
    period_end DATE NOT NULL,
    allocated_amount NUMERIC(24,9) NOT NULL CHECK (allocated_amount >= 0 AND allocated_amount <> 'NaN'),
    used_amount NUMERIC(24,9) NOT NULL DEFAULT 0 CHECK (used_amount >= 0 AND used_amount <> 'NaN'),
    reserved_amount NUMERIC(24,9) NOT NULL DEFAULT 0 CHECK (reserved_amount >= 0 AND reserved_amount <> 'NaN'),
    -- what was billed beyond a proven bound; recorded, never lent
    overrun_amount NUMERIC(24,9) NOT NULL DEFAULT 0 CHECK (overrun_amount >= 0 AND overrun_amount <> 'NaN'),
    unit VARCHAR(20) NOT NULL,
    auto_reset BOOLEAN NOT NULL DEFAULT true,
    frozen_at TIMESTAMPTZ,
    freeze_reason TEXT,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    UNIQUE (project_uuid, resource_type, budget_period, period_start),
    CHECK (period_end > period_start),
    CHECK (resource_type <> 'money' OR unit = 'CAD'),
    CHECK (overrun_amount = 0 OR frozen_at IS NOT NULL),
    CONSTRAINT resource_budgets_never_overspent
        CHECK (used_amount + reserved_amount <= allocated_amount + overrun_amount)
);
CREATE UNIQUE INDEX resource_budgets_one_total ON resource_budgets (project_uuid, resource_type)
    WHERE budget_period = 'total';
CREATE TRIGGER update_budgets_updated_at BEFORE UPDATE ON resource_budgets
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

CREATE TABLE reservations (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    budget_uuid UUID NOT NULL REFERENCES resource_budgets (uuid),
    project_uuid UUID NOT NULL REFERENCES projects (uuid),
    machine_uuid UUID REFERENCES intelligent_machines (uuid),
    amount_cad NUMERIC(24,9) NOT NULL CHECK (amount_cad > 0 AND amount_cad <> 'NaN'),
    settled_cad NUMERIC(24,9) CHECK (settled_cad >= 0 AND settled_cad <> 'NaN'),
    holder TEXT NOT NULL,
    purpose VARCHAR(50) NOT NULL,
    status VARCHAR(20) NOT NULL DEFAULT 'held' CHECK (status IN ('held', 'settled', 'released', 'reaped')),
    expires_at TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    ended_at TIMESTAMPTZ,
    metadata JSONB NOT NULL DEFAULT '{}',
    CHECK ((status = 'held') = (ended_at IS NULL)),
    CHECK ((status IN ('settled', 'reaped')) = (settled_cad IS NOT NULL))
);
CREATE INDEX idx_reservations_held ON reservations (expires_at) WHERE status = 'held';
CREATE INDEX idx_reservations_budget ON reservations (budget_uuid) WHERE status = 'held';
CREATE INDEX idx_reservations_machine ON reservations (machine_uuid);
"""

LEDGER = """
CREATE TABLE resource_usage (
    uuid UUID NOT NULL DEFAULT gen_random_uuid(),
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    project_uuid UUID NOT NULL REFERENCES projects (uuid),
    machine_uuid UUID REFERENCES intelligent_machines (uuid),
    checkpoint_uuid UUID REFERENCES checkpoints (uuid),
    operation_uuid UUID REFERENCES operations (uuid),
    reservation_uuid UUID REFERENCES reservations (uuid),
    resource_type VARCHAR(50) NOT NULL
        CHECK (resource_type IN ('money', 'time', 'api_calls', 'cpu', 'memory', 'storage', 'network')),
    resource_subtype VARCHAR(100),
    amount NUMERIC(24,9) NOT NULL CHECK (amount <> 'NaN'),
    unit VARCHAR(20) NOT NULL,
    -- a correction is a line with a negative cost
    cost_cad NUMERIC(24,9) CHECK (cost_cad <> 'NaN'),
    cost NUMERIC(24,9) CHECK (cost <> 'NaN'),
    currency VARCHAR(3) CHECK (currency ~ '^[A-Z]{3}$'),
    exchange_rate NUMERIC(24,9) CHECK (exchange_rate > 0 AND exchange_rate <> 'NaN'),
    exchange_rate_date DATE,
    price_uuid UUID REFERENCES prices (uuid),
    billing_period_start DATE,
    billing_period_end DATE,
    metadata JSONB NOT NULL DEFAULT '{}',
    PRIMARY KEY (uuid, recorded_at),
    CHECK (billing_period_end >= billing_period_start)
) PARTITION BY RANGE (recorded_at);

CREATE INDEX idx_resource_project_period ON resource_usage (project_uuid, recorded_at);
CREATE INDEX idx_resource_machine ON resource_usage (machine_uuid);
CREATE INDEX idx_resource_type ON resource_usage (resource_type);

CREATE FUNCTION refuse_usage_change() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on % refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', HINT = 'Record a correction as a new line.';
END;
$$;
CREATE TRIGGER refuse_usage_change BEFORE UPDATE OR DELETE ON resource_usage
    FOR EACH ROW EXECUTE FUNCTION refuse_usage_change();
CREATE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON resource_usage
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_usage_change();

-- Unique over all months, which a key of the partitioned table cannot be.
CREATE TABLE usage_keys (
    idempotency_key TEXT PRIMARY KEY,
    usage_uuid UUID NOT NULL,
    recorded_at TIMESTAMPTZ NOT NULL
);
CREATE TRIGGER refuse_usage_change BEFORE UPDATE OR DELETE ON usage_keys
    FOR EACH ROW EXECUTE FUNCTION refuse_usage_change();
CREATE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON usage_keys
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_usage_change();
"""

PARTITIONS = """
-- TRUNCATE of a partition does not fire the parent's trigger, so each has its own.
CREATE FUNCTION make_usage_partition(name TEXT, bounds TEXT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I PARTITION OF resource_usage %s', name, bounds);
    EXECUTE format('CREATE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON %I
                    FOR EACH STATEMENT EXECUTE FUNCTION refuse_usage_change()', name);
END;
$$;

-- Makes the partitions of this month and the next ones, in UTC; returns how many were made. Lines that the default
-- partition caught meanwhile (nobody made partitions in time) go to a partition of their own month.
CREATE FUNCTION ensure_usage_partitions(months_ahead INTEGER DEFAULT 3) RETURNS INTEGER LANGUAGE plpgsql AS $$
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
        PERFORM make_usage_partition(
            format('resource_usage_%s', to_char(month, 'YYYY_MM')),
            format('FOR VALUES FROM (%L) TO (%L)', month::TEXT || ' 00:00:00+00',
                   (month + INTERVAL '1 month')::DATE::TEXT || ' 00:00:00+00'));
        made := made + 1;
    END LOOP;
    IF caught THEN
        INSERT INTO resource_usage SELECT * FROM resource_usage_caught;
        DROP TABLE resource_usage_caught;
        PERFORM make_usage_partition('resource_usage_default', 'DEFAULT');
    END IF;
    RETURN made;
END;
$$;

SELECT make_usage_partition('resource_usage_default', 'DEFAULT');
"""
