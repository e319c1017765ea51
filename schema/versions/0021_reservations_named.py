"""Reservations say what they are for, alerts come again when a budget was raised, balance lines can be reconciled."""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(RESERVE)
    op.execute(CALLS)
    op.execute(END)
    op.execute(ALERTS)
    op.execute(CONDENSE)
    op.execute(MACHINES)


RESERVE = """
-- `p_metadata` stays with the reservation: what it is for.
DROP FUNCTION reserve_budgets(UUID, UUID, UUID, TIMESTAMPTZ, TEXT[], NUMERIC[], JSONB, TEXT, TEXT, TIMESTAMPTZ);
CREATE FUNCTION reserve_budgets(p_uuid uuid, p_project uuid, p_machine uuid, p_at timestamp with time zone, p_types text[], p_amounts numeric[], p_counts jsonb, p_holder text, p_purpose text, p_expires_at timestamp with time zone,
    p_metadata jsonb DEFAULT '{}') RETURNS SETOF reservations
    LANGUAGE plpgsql
    AS $$
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
        (uuid, project_uuid, machine_uuid, day, amounts, amount_cad, holder, purpose, expires_at, metadata)
    VALUES (p_uuid, p_project, p_machine, today, p_counts, (wanted ->> 'money')::NUMERIC, p_holder, p_purpose,
            p_expires_at, p_metadata)
    RETURNING *;
END;
$$;
"""

CALLS = """
-- What the reaper writes of a call whose gateway is gone names its model, and whose bill it is on (`p_subtypes`).
DROP FUNCTION reserve_calls(
    UUID[], UUID[], INTEGER[], NUMERIC[], TEXT[], TEXT[], TEXT[], BOOLEAN[], TIMESTAMPTZ, INTEGER, INTEGER);
CREATE FUNCTION reserve_calls(p_uuids uuid[], p_machines uuid[], p_generations integer[], p_amounts numeric[], p_holders text[], p_models text[], p_priced_as text[],
    p_subtypes text[], p_anyway boolean[], p_expires_at timestamp with time zone, p_per_minute integer, p_at_once integer) RETURNS TABLE(outcome text, project_uuid uuid, models text[], seconds integer)
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    machine RECORD;
    since TIMESTAMPTZ;
BEGIN
    IF cardinality(p_uuids) > 1 THEN
        -- All that any of them will need, in the order in which everybody takes them.
        LOCK TABLE resource_budgets IN ROW EXCLUSIVE MODE;
        PERFORM FROM resource_budgets b JOIN projects p ON p.uuid = b.project_uuid
        WHERE b.removed_at IS NULL AND b.resource_type IN ('money', 'api_calls')
            AND p.uuid IN (SELECT m.project_uuid FROM intelligent_machines m WHERE m.uuid = ANY (p_machines))
            AND b.period_start <= (now() AT TIME ZONE p.time_zone)::DATE
            AND b.period_end > (now() AT TIME ZONE p.time_zone)::DATE
        ORDER BY b.uuid FOR NO KEY UPDATE OF b;
    END IF;
    FOR n IN 1 .. cardinality(p_uuids) LOOP
        SELECT m.project_uuid, m.status, m.generation, p.models INTO machine
        FROM intelligent_machines m JOIN projects p ON p.uuid = m.project_uuid WHERE m.uuid = p_machines[n];
        project_uuid := machine.project_uuid;
        models := machine.models;
        seconds := NULL;
        outcome := CASE
            WHEN machine.status IS NULL OR machine.status = 'terminated' THEN 'ended'
            WHEN machine.generation <> p_generations[n] THEN 'old'
            WHEN machine.models IS NOT NULL AND NOT model_matches(machine.models, ARRAY[p_models[n], p_priced_as[n]]) THEN 'model'
            WHEN machine.status = 'checkpointing' AND NOT p_anyway[n] THEN 'checkpointing'
        END;
        IF outcome IS NULL AND p_at_once > 0 AND p_at_once <= (
            SELECT count(*) FROM reservations r
            WHERE r.machine_uuid = p_machines[n] AND r.status = 'held' AND r.purpose = 'ai_call'
        ) THEN
            outcome := 'busy';
            seconds := 1;
        END IF;
        IF outcome IS NULL AND p_per_minute > 0 THEN
            SELECT r.created_at INTO since FROM reservations r
            WHERE r.machine_uuid = p_machines[n] AND r.purpose = 'ai_call' AND r.created_at > now() - INTERVAL '1 minute'
            ORDER BY r.created_at DESC OFFSET p_per_minute - 1 LIMIT 1;
            IF FOUND THEN
                outcome := 'fast';
                seconds := ceil(extract(epoch FROM since + INTERVAL '1 minute' - now()));
            END IF;
        END IF;
        IF outcome IS NULL THEN
            PERFORM FROM reserve_budgets(
                p_uuids[n], machine.project_uuid, p_machines[n], now(), ARRAY['money', 'api_calls'],
                ARRAY[p_amounts[n], 1], '{"api_calls": "1"}', p_holders[n], 'ai_call', p_expires_at,
                jsonb_build_object('model', p_priced_as[n], 'subtype', p_subtypes[n]));
            outcome := CASE WHEN FOUND THEN 'held' ELSE 'short' END;
        END IF;
        RETURN NEXT;
    END LOOP;
END;
$$;
"""

END = """
-- A call that was reaped, and was not billed as its gateway says later, costs nothing after all.
CREATE OR REPLACE FUNCTION end_reservations(p_ends jsonb) RETURNS TABLE(reservation uuid, was character varying, billed numeric, froze text[])
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    mine reservations[];
    booked JSONB;
    frozen JSONB;
BEGIN
    -- In everybody's order (autovibe/periods.py): the machines whose calls are counted; the budgets' lock; reservations;
    -- budgets. A budget that comes late waits for what is held here.
    PERFORM FROM intelligent_machines m WHERE m.uuid IN (
        SELECT r.machine_uuid FROM reservations r JOIN jsonb_array_elements(p_ends) e ON r.uuid = (e ->> 'reservation')::UUID
        WHERE jsonb_array_length(e -> 'lines') > 0 OR r.status = 'reaped'
    ) ORDER BY m.uuid FOR NO KEY UPDATE;
    LOCK TABLE resource_budgets IN ROW EXCLUSIVE MODE;
    p_ends := (SELECT jsonb_agg(e) FROM (
        SELECT DISTINCT ON (e ->> 'reservation') e FROM jsonb_array_elements(p_ends) AS e) AS once);
    SELECT array_agg(r) INTO mine FROM (
        SELECT r.* FROM reservations r JOIN jsonb_array_elements(p_ends) e ON r.uuid = (e ->> 'reservation')::UUID
        WHERE r.status = 'held' OR (e ->> 'status' = 'settled' AND r.status <> 'settled')
            OR (e ->> 'status' = 'released' AND r.status = 'reaped')
        ORDER BY r.uuid FOR UPDATE OF r
    ) AS r;
    IF mine IS NULL THEN
        RETURN;
    END IF;

    WITH given AS MATERIALIZED (
        SELECT gen_random_uuid() AS uuid, r.uuid AS reservation, r.project_uuid, r.machine_uuid, r.day, l.*
        FROM jsonb_array_elements(p_ends) e JOIN unnest(mine) r ON r.uuid = (e ->> 'reservation')::UUID,
            jsonb_to_recordset(e -> 'lines') AS l (
                key TEXT, checkpoint_uuid UUID, operation_uuid UUID, resource_type TEXT, resource_subtype TEXT,
                amount NUMERIC, unit TEXT, cost_cad NUMERIC, cost NUMERIC, currency TEXT, exchange_rate NUMERIC,
                exchange_rate_date DATE, price_uuid UUID, metadata JSONB)
        UNION ALL
        SELECT gen_random_uuid(), r.uuid, r.project_uuid, r.machine_uuid, r.day, NULL, NULL, NULL, c.key, 'correction',
            -c.value::NUMERIC, CASE c.key WHEN 'money' THEN 'CAD' ELSE 'count' END,
            CASE c.key WHEN 'money' THEN -c.value::NUMERIC END, CASE c.key WHEN 'money' THEN -c.value::NUMERIC END,
            CASE c.key WHEN 'money' THEN 'CAD' END, NULL, NULL, NULL,
            jsonb_build_object('corrects', 'settled_at_bound', 'reservation', r.uuid)
        FROM unnest(mine) r, jsonb_each_text(r.amounts || jsonb_build_object('money', r.settled_cad)) c
        WHERE r.status = 'reaped' AND r.settled_cad > 0
    ), claimed AS (
        -- In one order everywhere: two reports with the same keys wait for each other instead of deadlocking.
        INSERT INTO usage_keys (idempotency_key, usage_uuid, recorded_at)
        SELECT DISTINCT ON (key) key, uuid, now() FROM given WHERE key IS NOT NULL ORDER BY key
        ON CONFLICT DO NOTHING RETURNING usage_uuid
    ), written AS (
        INSERT INTO resource_usage (uuid, project_uuid, machine_uuid, checkpoint_uuid, operation_uuid, reservation_uuid,
            resource_type, resource_subtype, amount, unit, cost_cad, cost, currency, exchange_rate, exchange_rate_date,
            price_uuid, billing_period_start, billing_period_end, metadata)
        SELECT uuid, project_uuid, machine_uuid, checkpoint_uuid, operation_uuid, reservation, resource_type,
            resource_subtype, amount, unit, cost_cad, cost, currency, exchange_rate, exchange_rate_date, price_uuid,
            day, day + 1, coalesce(metadata, '{}')
        FROM given WHERE key IS NULL OR uuid IN (SELECT usage_uuid FROM claimed)
        RETURNING reservation_uuid, resource_type, amount, cost_cad
    ), sums AS (
        SELECT reservation_uuid, 'money' AS resource_type, coalesce(sum(cost_cad), 0) AS spent FROM written GROUP BY 1
        UNION ALL
        SELECT reservation_uuid, resource_type, sum(amount) FROM written WHERE resource_type <> 'money' GROUP BY 1, 2
    )
    SELECT jsonb_object_agg(s.reservation_uuid, s.types) INTO booked FROM (
        SELECT reservation_uuid, jsonb_object_agg(resource_type, spent) AS types FROM sums GROUP BY 1
    ) AS s;
    booked := coalesce(booked, '{}');

    UPDATE intelligent_machines m SET api_calls = m.api_calls + c.calls FROM (
        SELECT r.machine_uuid, sum((booked #>> ARRAY[r.uuid::TEXT, 'api_calls'])::NUMERIC)::INTEGER AS calls
        FROM unnest(mine) r GROUP BY 1
    ) AS c WHERE m.uuid = c.machine_uuid AND c.calls <> 0;

    -- Every budget once, whatever the number of reservations in it.
    WITH ended AS MATERIALIZED (
        SELECT r.uuid, r.project_uuid, r.day, m.resource_type,
               CASE WHEN r.status = 'held' THEN m.held ELSE 0 END AS held, coalesce(m.spent, 0) AS spent,
               m.resource_type = 'money' AND (booked #>> ARRAY[r.uuid::TEXT, 'money'])::NUMERIC
                   + CASE WHEN r.status = 'reaped' THEN r.settled_cad ELSE 0 END > r.amount_cad AS above
        FROM unnest(mine) r, LATERAL (
            SELECT coalesce(h.key, s.key) AS resource_type, coalesce(h.value::NUMERIC, 0) AS held, s.value::NUMERIC AS spent
            FROM jsonb_each_text(r.amounts || jsonb_build_object('money', r.amount_cad)) h
            FULL JOIN jsonb_each_text(booked -> r.uuid::TEXT) s ON s.key = h.key
        ) AS m
    ), budgets AS MATERIALIZED (
        SELECT b.* FROM resource_budgets b WHERE b.removed_at IS NULL AND EXISTS (
            SELECT FROM ended e WHERE e.project_uuid = b.project_uuid AND e.resource_type = b.resource_type
                AND b.period_start <= e.day AND e.day < b.period_end)
        ORDER BY b.uuid FOR NO KEY UPDATE
    ), moved AS (
        SELECT b.uuid, b.frozen_at AS frozen_before, sum(e.held) AS held, sum(e.spent) AS spent,
               array_agg(e.uuid) AS reservations, (array_agg(e.uuid) FILTER (WHERE e.above))[1] AS above
        FROM budgets b JOIN ended e ON e.project_uuid = b.project_uuid AND e.resource_type = b.resource_type
            AND b.period_start <= e.day AND e.day < b.period_end
        GROUP BY b.uuid, b.frozen_at
    ), judged AS (
        SELECT m.*, b.used_amount + m.spent + b.reserved_amount - m.held - b.allocated_amount AS short,
               b.hard AND (b.used_amount + m.spent + b.reserved_amount - m.held - b.allocated_amount > b.overrun_amount
                   OR m.above IS NOT NULL AND row_number() OVER (
                       PARTITION BY b.project_uuid, b.resource_type ORDER BY b.period_end - b.period_start DESC) = 1
               ) AS freezes
        FROM moved m JOIN budgets b USING (uuid)
    ), updated AS (
        UPDATE resource_budgets b SET
            used_amount = b.used_amount + j.spent,
            reserved_amount = b.reserved_amount - j.held,
            overrun_amount = greatest(b.overrun_amount, j.short),
            frozen_at = CASE WHEN j.freezes THEN coalesce(b.frozen_at, now()) ELSE b.frozen_at END,
            freeze_reason = CASE WHEN j.freezes THEN coalesce(b.freeze_reason, CASE
                WHEN j.above IS NOT NULL THEN 'reservation ' || j.above || ' was billed more than it held'
                ELSE trim_scale(j.spent) || ' ' || b.unit || ' were billed that nobody had reserved' END)
                ELSE b.freeze_reason END
        FROM judged j WHERE b.uuid = j.uuid
        RETURNING b.budget_period || ' budget of ' || b.resource_type AS name, j.reservations,
            b.frozen_at IS NOT NULL AND j.frozen_before IS NULL AS froze
    )
    SELECT jsonb_object_agg(f.uuid, f.names) INTO frozen FROM (
        SELECT uuid, jsonb_agg(name ORDER BY name) AS names FROM updated, unnest(reservations) AS uuid
        WHERE froze GROUP BY 1
    ) AS f;

    RETURN QUERY WITH bills AS (
        SELECT r.uuid, r.status AS was, coalesce((booked #>> ARRAY[r.uuid::TEXT, 'money'])::NUMERIC, 0)
                   + CASE WHEN r.status = 'reaped' THEN r.settled_cad ELSE 0 END AS billed,
               e ->> 'status' AS status, coalesce(e -> 'metadata', '{}') AS metadata
        FROM unnest(mine) r JOIN jsonb_array_elements(p_ends) e ON r.uuid = (e ->> 'reservation')::UUID
    )
    UPDATE reservations r SET
        status = b.status,
        settled_cad = CASE WHEN b.status <> 'released' THEN b.billed END,
        ended_at = clock_timestamp(),
        metadata = r.metadata || b.metadata || CASE WHEN b.billed > r.amount_cad
            THEN jsonb_build_object('above_bound_cad', (b.billed - r.amount_cad)::TEXT) ELSE '{}' END
    FROM bills b WHERE r.uuid = b.uuid
    RETURNING r.uuid, b.was, b.billed, ARRAY(SELECT jsonb_array_elements_text(frozen -> r.uuid::TEXT));
END;
$$;
"""

ALERTS = """
-- A level that a raised budget is below again may be reached again, and a budget be used up again.
ALTER TABLE budget_alerts ADD COLUMN passed_at TIMESTAMPTZ;
ALTER TABLE budget_alerts DROP CONSTRAINT budget_alerts_budget_uuid_percent_key;
CREATE UNIQUE INDEX budget_alerts_one_of_a_level ON budget_alerts (budget_uuid, percent)
    WHERE kind = 'level' AND passed_at IS NULL;
CREATE UNIQUE INDEX budget_alerts_one_exhausted ON budget_alerts (budget_uuid)
    WHERE kind = 'exhausted' AND passed_at IS NULL;
ALTER TABLE budget_alerts DROP CONSTRAINT budget_alerts_kind_check;
ALTER TABLE budget_alerts ADD CONSTRAINT budget_alerts_kind_check CHECK (kind IN ('level', 'frozen', 'exhausted'));
ALTER TABLE budget_alerts DROP CONSTRAINT budget_alerts_check1;
ALTER TABLE budget_alerts ADD CONSTRAINT budget_alerts_check1 CHECK ((kind = 'level') = (reason IS NULL));

-- A share of a pool moves all the time: there a level is told once in a period.
CREATE FUNCTION pass_budget_alerts() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    UPDATE budget_alerts SET passed_at = now() WHERE budget_uuid = NEW.uuid AND passed_at IS NULL
        AND (kind = 'exhausted' OR kind = 'level' AND NEW.used_amount * 100 < NEW.allocated_amount * percent);
    RETURN NULL;
END;
$$;
CREATE TRIGGER pass_budget_alerts AFTER UPDATE OF allocated_amount ON resource_budgets
    FOR EACH ROW WHEN (NOT NEW.pooled AND NEW.allocated_amount > OLD.allocated_amount)
    EXECUTE FUNCTION pass_budget_alerts();
"""

CONDENSE = """
-- Balance lines keep apart what `reconcile` tells apart.
CREATE OR REPLACE FUNCTION condense_usage_month(month date) RETURNS text
    LANGUAGE plpgsql
    AS $$
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
        INSERT INTO resource_usage (recorded_at, project_uuid, machine_uuid, checkpoint_uuid, reservation_uuid, resource_type,
            resource_subtype, amount, unit, cost_cad, cost, currency, billing_period_start, billing_period_end, metadata)
        SELECT max(u.recorded_at), u.project_uuid, u.machine_uuid, u.checkpoint_uuid, corrected.reservation_uuid, u.resource_type,
            u.resource_subtype, sum(u.amount), u.unit, sum(u.cost_cad), sum(u.cost), u.currency,
            u.billing_period_start, u.billing_period_end,
            jsonb_strip_nulls(jsonb_build_object(
                'balance', true, 'lines', count(*),
                'model', u.metadata ->> 'model', 'basis', u.metadata ->> 'basis',
                'settled_at_bound', u.metadata -> 'settled_at_bound', 'reaped', u.metadata -> 'reaped',
                'corrects', u.metadata ->> 'corrects', 'corrected_model', u.metadata ->> 'corrected_model',
                'corrected_day', u.metadata ->> 'corrected_day', 'charged', u.metadata -> 'charged',
                'tokens', CASE WHEN bool_or(u.metadata ? 'tokens') THEN jsonb_build_object(
                    'input', sum((u.metadata #>> '{tokens,input}')::BIGINT),
                    'output', sum((u.metadata #>> '{tokens,output}')::BIGINT),
                    'cache_read', sum((u.metadata #>> '{tokens,cache_read}')::BIGINT),
                    'cache_write_5m', sum((u.metadata #>> '{tokens,cache_write_5m}')::BIGINT),
                    'cache_write_1h', sum((u.metadata #>> '{tokens,cache_write_1h}')::BIGINT),
                    'web_searches', sum((u.metadata #>> '{tokens,web_searches}')::BIGINT)) END))
        FROM %I u LEFT JOIN LATERAL (
            SELECT min(c.created_at) AS at FROM checkpoints c
            WHERE c.creating_machine_uuid = u.machine_uuid AND c.created_at >= u.recorded_at
        ) AS next ON true, LATERAL (
            SELECT CASE WHEN u.metadata ? 'reaped' OR u.metadata ? 'settled_at_bound' OR u.metadata ? 'corrects'
                THEN u.reservation_uuid END AS reservation_uuid
        ) AS corrected
        GROUP BY u.project_uuid, u.machine_uuid, u.checkpoint_uuid, u.resource_type, u.resource_subtype, u.unit,
            u.currency, u.billing_period_start, u.billing_period_end, u.metadata ->> 'model', u.metadata ->> 'basis',
            u.metadata -> 'settled_at_bound', u.metadata -> 'reaped', u.metadata ->> 'corrects',
            u.metadata ->> 'corrected_model', u.metadata ->> 'corrected_day', u.metadata -> 'charged',
            corrected.reservation_uuid, next.at
    $statement$, old);
    ALTER TABLE resource_usage ENABLE TRIGGER sum_usage;
    RETURN old;
END;
$$;
"""

MACHINES = """
-- By the sums, for each call of a machine with a limit asks, and holds its budgets meanwhile: a machine that has run for
-- a week has some 50,000 lines. Nothing of it counts to a day before it was asked for, in whatever time zone.
CREATE OR REPLACE FUNCTION machine_money(p_machine UUID) RETURNS NUMERIC LANGUAGE sql STABLE AS $$
    SELECT coalesce((
        SELECT sum(u.cad) FROM usage_by_day u
        WHERE u.project_uuid = m.project_uuid AND u.machine_uuid = m.uuid AND u.day >= m.spawned_at::DATE - 2
    ), 0) + coalesce((
        SELECT sum(r.amount_cad) FROM reservations r
        WHERE r.project_uuid = m.project_uuid AND r.machine_uuid = m.uuid AND r.status = 'held'
    ), 0)
    FROM intelligent_machines m WHERE m.uuid = p_machine
$$;
"""
