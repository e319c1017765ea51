-- Generated from the migrations in versions/ by `make schema` (PostgreSQL 18). Do not edit.

CREATE FUNCTION public.charge_budgets(p_projects uuid[], p_days date[], p_types text[], p_spent numeric[]) RETURNS TABLE(uuid uuid, project_uuid uuid, resource_type character varying, budget_period character varying, froze boolean)
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.compact_usage_sums() RETURNS bigint
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.condense_usage_month(month date) RETURNS text
    LANGUAGE plpgsql
    AS $_$
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
$_$;

CREATE FUNCTION public.end_reservations(p_ends jsonb) RETURNS TABLE(reservation uuid, was character varying, billed numeric, froze text[])
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

CREATE FUNCTION public.ensure_usage_partitions(months_ahead integer DEFAULT 3) RETURNS integer
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.guard_usage_partition(name text) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON %I
                    FOR EACH STATEMENT EXECUTE FUNCTION refuse_usage_change()', name);
    EXECUTE format('CREATE OR REPLACE TRIGGER sum_usage AFTER INSERT ON %I REFERENCING NEW TABLE AS written
                    FOR EACH STATEMENT EXECUTE FUNCTION sum_usage()', name);
END;
$$;

CREATE FUNCTION public.held_on(p_project uuid, p_type text, p_start date, p_end date) RETURNS numeric
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce(sum(CASE WHEN p_type = 'money' THEN amount_cad ELSE (amounts ->> p_type)::NUMERIC END), 0)
    FROM reservations WHERE project_uuid = p_project AND status = 'held' AND day >= p_start AND day < p_end
$$;

CREATE TABLE public.resource_budgets (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    project_uuid uuid NOT NULL,
    resource_type character varying(50) NOT NULL,
    budget_period character varying(20) NOT NULL,
    period_start date NOT NULL,
    period_end date NOT NULL,
    allocated_amount numeric(24,9) NOT NULL,
    used_amount numeric(24,9) DEFAULT 0 NOT NULL,
    reserved_amount numeric(24,9) DEFAULT 0 NOT NULL,
    overrun_amount numeric(24,9) DEFAULT 0 NOT NULL,
    unit character varying(20) NOT NULL,
    auto_reset boolean DEFAULT true NOT NULL,
    frozen_at timestamp with time zone,
    freeze_reason text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    base_amount numeric(24,9) NOT NULL,
    hard boolean DEFAULT true NOT NULL,
    soft_percent smallint DEFAULT 80 NOT NULL,
    removed_at timestamp with time zone,
    pooled boolean DEFAULT false NOT NULL,
    since date NOT NULL,
    CONSTRAINT resource_budgets_allocated_amount_check CHECK (((allocated_amount >= (0)::numeric) AND (allocated_amount <> 'NaN'::numeric))),
    CONSTRAINT resource_budgets_base_amount_check CHECK (((base_amount >= (0)::numeric) AND (base_amount <> 'NaN'::numeric))),
    CONSTRAINT resource_budgets_budget_period_check CHECK (((budget_period)::text = ANY ((ARRAY['daily'::character varying, 'weekly'::character varying, 'monthly'::character varying, 'total'::character varying])::text[]))),
    CONSTRAINT resource_budgets_check CHECK ((period_end > period_start)),
    CONSTRAINT resource_budgets_check1 CHECK ((((resource_type)::text <> 'money'::text) OR ((unit)::text = 'CAD'::text))),
    CONSTRAINT resource_budgets_check2 CHECK (((overrun_amount = (0)::numeric) OR (frozen_at IS NOT NULL) OR (NOT hard))),
    CONSTRAINT resource_budgets_check3 CHECK (((NOT pooled) OR (hard AND ((budget_period)::text <> 'total'::text)))),
    CONSTRAINT resource_budgets_check4 CHECK ((since <= period_start)),
    CONSTRAINT resource_budgets_never_overspent CHECK (((used_amount + reserved_amount) <= (allocated_amount + overrun_amount))),
    CONSTRAINT resource_budgets_overrun_amount_check CHECK (((overrun_amount >= (0)::numeric) AND (overrun_amount <> 'NaN'::numeric))),
    CONSTRAINT resource_budgets_reserved_amount_check CHECK (((reserved_amount >= (0)::numeric) AND (reserved_amount <> 'NaN'::numeric))),
    CONSTRAINT resource_budgets_resource_type_check CHECK (((resource_type)::text = ANY ((ARRAY['money'::character varying, 'time'::character varying, 'api_calls'::character varying, 'cpu'::character varying, 'memory'::character varying, 'storage'::character varying, 'network'::character varying])::text[]))),
    CONSTRAINT resource_budgets_soft_percent_check CHECK (((soft_percent >= 1) AND (soft_percent <= 100))),
    CONSTRAINT resource_budgets_used_amount_check CHECK (((used_amount >= (0)::numeric) AND (used_amount <> 'NaN'::numeric)))
);

CREATE FUNCTION public.lock_budgets(p_project uuid, p_types text[], p_day date) RETURNS SETOF public.resource_budgets
    LANGUAGE plpgsql
    AS $$
BEGIN
    LOCK TABLE resource_budgets IN ROW EXCLUSIVE MODE;
    RETURN QUERY SELECT b.* FROM resource_budgets b
    WHERE b.project_uuid = p_project AND b.resource_type = ANY (p_types) AND b.removed_at IS NULL
      AND b.period_start <= p_day AND p_day < b.period_end
    ORDER BY b.uuid FOR NO KEY UPDATE;
END;
$$;

CREATE FUNCTION public.machine_money(p_machine uuid) RETURNS numeric
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce((
        SELECT sum(u.cad) FROM usage_by_day u
        WHERE u.project_uuid = m.project_uuid AND u.machine_uuid = m.uuid AND u.day >= m.spawned_at::DATE - 2
    ), 0) + coalesce((
        SELECT sum(r.amount_cad) FROM reservations r
        WHERE r.project_uuid = m.project_uuid AND r.machine_uuid = m.uuid AND r.status = 'held'
    ), 0)
    FROM intelligent_machines m WHERE m.uuid = p_machine
$$;

CREATE FUNCTION public.make_usage_partition(name text, bounds text) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I PARTITION OF resource_usage %s', name, bounds);
    PERFORM guard_usage_partition(name);
END;
$$;

CREATE FUNCTION public.missing_periods(p_project uuid, p_types text[], p_day date) RETURNS TABLE(resource_type character varying, budget_period character varying)
    LANGUAGE plpgsql STABLE
    AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT b.resource_type, b.budget_period FROM resource_budgets b
    WHERE b.project_uuid = p_project AND b.resource_type = ANY (p_types) AND b.removed_at IS NULL AND NOT b.pooled
    GROUP BY b.resource_type, b.budget_period
    HAVING NOT bool_or(b.period_start <= p_day AND p_day < b.period_end) AND p_day >= max(b.since)
    UNION ALL SELECT p.resource_type, p.budget_period FROM budget_pools p
    WHERE p.resource_type = ANY (p_types) AND p.removed_at IS NULL
      AND p_day >= pool_period_start(p.budget_period, p.week_start, project_day(p_project, p.created_at))
      AND NOT EXISTS (
        SELECT FROM resource_budgets b
        WHERE b.project_uuid = p_project AND b.resource_type = p.resource_type AND b.budget_period = p.budget_period
          AND b.pooled AND b.removed_at IS NULL AND b.period_start <= p_day AND p_day < b.period_end);
END;
$$;

CREATE FUNCTION public.model_matches(p_patterns text[], p_names text[]) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT EXISTS (
        SELECT FROM unnest(p_patterns) AS pattern, unnest(p_names) AS name
        WHERE name LIKE replace(regexp_replace(pattern, '([\\%_])', '\\\1', 'g'), '*', '%'))
$$;

CREATE FUNCTION public.move_budgets(p_project uuid, p_day date, p_types text[], p_held numeric[], p_spent numeric[], p_freeze boolean, p_reason text) RETURNS TABLE(uuid uuid, resource_type character varying, budget_period character varying, froze boolean)
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.note_heartbeat(p_machine uuid, p_generation integer, p_progress text) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.notify_access() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NOTIFY autovibe_access;
    RETURN NULL;
END;
$$;

CREATE FUNCTION public.notify_machine_lines() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('autovibe_machines', machine_uuid::TEXT) FROM (SELECT DISTINCT machine_uuid FROM new_lines) AS m;
    RETURN NULL;
END;
$$;

CREATE FUNCTION public.notify_machine_status() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('autovibe_machines', NEW.uuid::TEXT);
    RETURN NULL;
END;
$$;

CREATE FUNCTION public.notify_operations() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('autovibe_operations', NEW.kind);
    RETURN NULL;
END;
$$;

CREATE FUNCTION public.only_checkpoints_of_hubs() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.pass_budget_alerts() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE budget_alerts SET passed_at = now() WHERE budget_uuid = NEW.uuid AND passed_at IS NULL
        AND (kind = 'exhausted' OR kind = 'level' AND NEW.used_amount * 100 < NEW.allocated_amount * percent);
    RETURN NULL;
END;
$$;

CREATE FUNCTION public.pool_period_start(p_period text, p_week_start integer, p_day date) RETURNS date
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT CASE p_period
        WHEN 'daily' THEN p_day
        WHEN 'weekly' THEN p_day - (extract(isodow FROM p_day)::INTEGER - p_week_start + 7) % 7
        ELSE date_trunc('month', p_day::TIMESTAMP)::DATE END
$$;

CREATE FUNCTION public.project_day(p_project uuid, p_at timestamp with time zone) RETURNS date
    LANGUAGE sql STABLE
    AS $$
    SELECT (p_at AT TIME ZONE time_zone)::DATE FROM projects WHERE uuid = p_project
$$;

CREATE FUNCTION public.raise_budget_alerts() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO budget_alerts (budget_uuid, percent, used_amount, allocated_amount)
    SELECT NEW.uuid, level, NEW.used_amount, NEW.allocated_amount
    FROM unnest(ARRAY[75, NEW.soft_percent, 90, 100]) AS level
    WHERE NEW.used_amount * 100 >= NEW.allocated_amount * level
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END;
$$;

CREATE FUNCTION public.raise_frozen_alarm() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO budget_alerts (budget_uuid, kind, used_amount, allocated_amount, overrun_amount, reason)
    VALUES (NEW.uuid, 'frozen', NEW.used_amount, NEW.allocated_amount, NEW.overrun_amount,
            coalesce(NEW.freeze_reason, 'no reason was given'));
    RETURN NULL;
END;
$$;

CREATE FUNCTION public.refuse_audit_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: % refused', TG_OP USING ERRCODE = 'restrict_violation';
END;
$$;

CREATE FUNCTION public.refuse_price_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND (to_jsonb(NEW) - 'retired_at') = (to_jsonb(OLD) - 'retired_at') THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'a price is never changed: % refused', TG_OP
        USING ERRCODE = 'restrict_violation', HINT = 'Retire it and add a new one.';
END;
$$;

CREATE FUNCTION public.refuse_rate_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'a compute rate is never changed: % on % refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', HINT = 'Add a rate with a later date.';
END;
$$;

CREATE FUNCTION public.refuse_usage_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on % refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', HINT = 'Record a correction as a new line.';
END;
$$;

CREATE TABLE public.reservations (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    project_uuid uuid NOT NULL,
    machine_uuid uuid,
    amount_cad numeric(24,9) NOT NULL,
    settled_cad numeric(24,9),
    holder text NOT NULL,
    purpose character varying(50) NOT NULL,
    status character varying(20) DEFAULT 'held'::character varying NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    day date NOT NULL,
    amounts jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT reservations_amount_cad_check CHECK (((amount_cad > (0)::numeric) AND (amount_cad <> 'NaN'::numeric))),
    CONSTRAINT reservations_check CHECK ((((status)::text = 'held'::text) = (ended_at IS NULL))),
    CONSTRAINT reservations_check1 CHECK ((((status)::text = ANY ((ARRAY['settled'::character varying, 'reaped'::character varying])::text[])) = (settled_cad IS NOT NULL))),
    CONSTRAINT reservations_settled_cad_check CHECK (((settled_cad >= (0)::numeric) AND (settled_cad <> 'NaN'::numeric))),
    CONSTRAINT reservations_status_check CHECK (((status)::text = ANY ((ARRAY['held'::character varying, 'settled'::character varying, 'released'::character varying, 'reaped'::character varying])::text[])))
);

CREATE FUNCTION public.reserve_budgets(p_uuid uuid, p_project uuid, p_machine uuid, p_at timestamp with time zone, p_types text[], p_amounts numeric[], p_counts jsonb, p_holder text, p_purpose text, p_expires_at timestamp with time zone, p_metadata jsonb DEFAULT '{}'::jsonb) RETURNS SETOF public.reservations
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

CREATE FUNCTION public.reserve_calls(p_uuids uuid[], p_machines uuid[], p_generations integer[], p_amounts numeric[], p_holders text[], p_models text[], p_priced_as text[], p_subtypes text[], p_anyway boolean[], p_expires_at timestamp with time zone, p_per_minute integer, p_at_once integer) RETURNS TABLE(outcome text, project_uuid uuid, models text[], seconds integer)
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

CREATE FUNCTION public.roll_pools(p_project uuid, p_day date) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    made INTEGER;
BEGIN
    WITH spans AS (
        SELECT p.resource_type, p.budget_period, p.unit, s AS start, CASE p.budget_period
                WHEN 'daily' THEN s + 1 WHEN 'weekly' THEN s + 7 ELSE (s + INTERVAL '1 month')::DATE END AS until,
            pool_period_start(p.budget_period, p.week_start, project_day(p_project, p.created_at)) AS since
        FROM budget_pools p, LATERAL pool_period_start(p.budget_period, p.week_start, p_day) AS s
        WHERE p.removed_at IS NULL
    ), next AS (
        SELECT *, used_on(p_project, resource_type, start, until) AS used,
               held_on(p_project, resource_type, start, until) AS held FROM spans WHERE start >= since
    )
    INSERT INTO resource_budgets (project_uuid, resource_type, budget_period, period_start, period_end, since,
                                  allocated_amount, base_amount, used_amount, reserved_amount, unit, pooled)
    SELECT p_project, resource_type, budget_period, start, until, since, used + held, 0, used, held, unit, true
    FROM next ORDER BY resource_type, budget_period
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS made = ROW_COUNT;
    RETURN made;
END;
$$;

CREATE FUNCTION public.sum_usage() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.update_updated_at_column() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END;
$$;

CREATE FUNCTION public.usage_month_bounds(month date) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT format('FOR VALUES FROM (%L) TO (%L)', month::TEXT || ' 00:00:00+00',
                  (month + INTERVAL '1 month')::DATE::TEXT || ' 00:00:00+00')
$$;

CREATE FUNCTION public.used_on(p_project uuid, p_type text, p_start date, p_end date) RETURNS numeric
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce(sum(CASE WHEN p_type = 'money' THEN cad ELSE amount END), 0) FROM usage_by_day
    WHERE project_uuid = p_project AND day >= p_start AND day < p_end AND (p_type = 'money' OR resource_type = p_type)
$$;

CREATE FUNCTION public.write_usage(p_keys text[], p_projects uuid[], p_machines uuid[], p_checkpoints uuid[], p_operations uuid[], p_types text[], p_subtypes text[], p_amounts numeric[], p_units text[], p_cads numeric[], p_costs numeric[], p_currencies text[], p_rates numeric[], p_rate_dates date[], p_prices uuid[], p_days date[], p_metadata jsonb[]) RETURNS TABLE(project_uuid uuid, lines bigint, cad numeric, has_money boolean, froze text[])
    LANGUAGE plpgsql
    AS $$
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

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE public.api_keys (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    user_uuid uuid NOT NULL,
    name character varying(100) NOT NULL,
    prefix character varying(16) NOT NULL,
    key_hash character varying(64) NOT NULL,
    scope character varying(20) NOT NULL,
    project_uuid uuid,
    expires_at timestamp with time zone,
    last_used_at timestamp with time zone,
    revoked_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT api_keys_name_check CHECK (((name)::text <> ''::text)),
    CONSTRAINT api_keys_scope_check CHECK (((scope)::text = ANY ((ARRAY['metrics'::character varying, 'read'::character varying, 'operate'::character varying, 'admin'::character varying])::text[])))
);

CREATE TABLE public.audit_log (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    actor text NOT NULL,
    user_uuid uuid,
    key_uuid uuid,
    address text,
    request_id text NOT NULL,
    action text NOT NULL,
    object_type text NOT NULL,
    object_uuid uuid,
    object_name text,
    project_uuid uuid,
    before jsonb,
    after jsonb
);

ALTER TABLE public.audit_log ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.audit_log_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.budget_alerts (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    budget_uuid uuid NOT NULL,
    percent smallint,
    used_amount numeric(24,9) NOT NULL,
    allocated_amount numeric(24,9) NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    delivered_at timestamp with time zone,
    attempts integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone DEFAULT now() NOT NULL,
    last_error text,
    kind character varying(10) DEFAULT 'level'::character varying NOT NULL,
    overrun_amount numeric(24,9) DEFAULT 0 NOT NULL,
    reason text,
    passed_at timestamp with time zone,
    CONSTRAINT budget_alerts_check CHECK ((((kind)::text = 'level'::text) = (percent IS NOT NULL))),
    CONSTRAINT budget_alerts_check1 CHECK ((((kind)::text = 'level'::text) = (reason IS NULL))),
    CONSTRAINT budget_alerts_kind_check CHECK (((kind)::text = ANY ((ARRAY['level'::character varying, 'frozen'::character varying, 'exhausted'::character varying])::text[])))
);

CREATE TABLE public.budget_pools (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    resource_type character varying(50) NOT NULL,
    budget_period character varying(20) NOT NULL,
    amount numeric(24,9) NOT NULL,
    unit character varying(20) NOT NULL,
    week_start smallint DEFAULT 1 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    removed_at timestamp with time zone,
    CONSTRAINT budget_pools_amount_check CHECK (((amount > (0)::numeric) AND (amount <> 'NaN'::numeric))),
    CONSTRAINT budget_pools_budget_period_check CHECK (((budget_period)::text = ANY ((ARRAY['daily'::character varying, 'weekly'::character varying, 'monthly'::character varying])::text[]))),
    CONSTRAINT budget_pools_resource_type_check CHECK (((resource_type)::text = ANY ((ARRAY['money'::character varying, 'api_calls'::character varying])::text[]))),
    CONSTRAINT budget_pools_week_start_check CHECK (((week_start >= 1) AND (week_start <= 7)))
);

CREATE TABLE public.checkpoints (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    project_uuid uuid NOT NULL,
    parent_checkpoint_uuid uuid,
    creating_machine_uuid uuid,
    checkpoint_type character varying(50) NOT NULL,
    proxmox_snapshot_id character varying(255),
    vm_id integer,
    node character varying(63),
    carrier character varying(20),
    template_vm_id integer,
    description text,
    creation_context text,
    size_bytes bigint,
    compression_ratio numeric(5,4),
    verification_status character varying(50) DEFAULT 'pending'::character varying NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    verified_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    file_manifest bytea,
    file_count integer DEFAULT 0 NOT NULL,
    tags text[] DEFAULT '{}'::text[] NOT NULL,
    milestone boolean DEFAULT false NOT NULL,
    CONSTRAINT checkpoints_carrier_check CHECK (((carrier)::text = ANY ((ARRAY['snapshot'::character varying, 'template'::character varying, 'backup'::character varying])::text[]))),
    CONSTRAINT checkpoints_check CHECK ((parent_checkpoint_uuid <> uuid)),
    CONSTRAINT checkpoints_check1 CHECK ((((verification_status)::text <> 'verified'::text) OR ((vm_id IS NOT NULL) AND (carrier IS NOT NULL)))),
    CONSTRAINT checkpoints_checkpoint_type_check CHECK (((checkpoint_type)::text = ANY ((ARRAY['genesis'::character varying, 'automatic'::character varying, 'manual'::character varying, 'final'::character varying, 'hub_daily'::character varying])::text[]))),
    CONSTRAINT checkpoints_compression_ratio_check CHECK (((compression_ratio >= (0)::numeric) AND (compression_ratio <> 'NaN'::numeric))),
    CONSTRAINT checkpoints_file_count_check CHECK ((file_count >= 0)),
    CONSTRAINT checkpoints_size_bytes_check CHECK ((size_bytes >= 0)),
    CONSTRAINT checkpoints_verification_status_check CHECK (((verification_status)::text = ANY ((ARRAY['pending'::character varying, 'verified'::character varying, 'failed'::character varying, 'missing'::character varying, 'pruning'::character varying, 'pruned'::character varying])::text[])))
);
ALTER TABLE ONLY public.checkpoints ALTER COLUMN file_manifest SET STORAGE EXTERNAL;

CREATE TABLE public.compute_rates (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    item character varying(20) NOT NULL,
    machine_type character varying(50) DEFAULT ''::character varying NOT NULL,
    effective_from date NOT NULL,
    rate numeric(24,12) NOT NULL,
    currency character varying(3),
    source character varying(20) NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT compute_rates_check CHECK ((((item)::text = 'multiplier'::text) = ((machine_type)::text <> ''::text))),
    CONSTRAINT compute_rates_check1 CHECK ((((item)::text = 'multiplier'::text) = (currency IS NULL))),
    CONSTRAINT compute_rates_currency_check CHECK (((currency)::text = ANY ((ARRAY['CAD'::character varying, 'USD'::character varying])::text[]))),
    CONSTRAINT compute_rates_item_check CHECK (((item)::text = ANY ((ARRAY['time'::character varying, 'cpu'::character varying, 'memory'::character varying, 'storage'::character varying, 'network'::character varying, 'multiplier'::character varying])::text[]))),
    CONSTRAINT compute_rates_rate_check CHECK (((rate >= (0)::numeric) AND (rate <> 'NaN'::numeric))),
    CONSTRAINT compute_rates_source_check CHECK (((source)::text = ANY ((ARRAY['default'::character varying, 'override'::character varying])::text[])))
);

CREATE TABLE public.exchange_rates (
    base character varying(3) NOT NULL,
    quote character varying(3) NOT NULL,
    rate_date date NOT NULL,
    source character varying(50) NOT NULL,
    rate numeric(24,9) NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT exchange_rates_base_check CHECK (((base)::text ~ '^[A-Z]{3}$'::text)),
    CONSTRAINT exchange_rates_quote_check CHECK (((quote)::text ~ '^[A-Z]{3}$'::text)),
    CONSTRAINT exchange_rates_rate_check CHECK (((rate > (0)::numeric) AND (rate <> 'NaN'::numeric)))
);

CREATE TABLE public.hub_checkpoints (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    hub_instance_uuid uuid NOT NULL,
    checkpoint_type character varying(50) NOT NULL,
    proxmox_snapshot_id character varying(255) NOT NULL,
    trigger_reason text,
    system_metrics jsonb DEFAULT '{}'::jsonb NOT NULL,
    active_machines_count integer DEFAULT 0 NOT NULL,
    active_projects_count integer DEFAULT 0 NOT NULL,
    size_gb numeric(8,4),
    verification_status character varying(50) DEFAULT 'pending'::character varying NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    verified_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT hub_checkpoints_active_machines_count_check CHECK ((active_machines_count >= 0)),
    CONSTRAINT hub_checkpoints_active_projects_count_check CHECK ((active_projects_count >= 0)),
    CONSTRAINT hub_checkpoints_checkpoint_type_check CHECK (((checkpoint_type)::text = ANY ((ARRAY['daily'::character varying, 'manual'::character varying, 'pre_experiment'::character varying, 'recovery'::character varying])::text[]))),
    CONSTRAINT hub_checkpoints_size_gb_check CHECK (((size_gb >= (0)::numeric) AND (size_gb <> 'NaN'::numeric))),
    CONSTRAINT hub_checkpoints_verification_status_check CHECK (((verification_status)::text = ANY ((ARRAY['pending'::character varying, 'verified'::character varying, 'failed'::character varying, 'pruned'::character varying])::text[])))
);

CREATE TABLE public.hub_experiments (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    experiment_name character varying(255) NOT NULL,
    description text,
    base_checkpoint_uuid uuid NOT NULL,
    original_hub_uuid uuid NOT NULL,
    experimental_hub_uuid uuid,
    config_changes jsonb DEFAULT '{}'::jsonb NOT NULL,
    success_metrics jsonb DEFAULT '{}'::jsonb NOT NULL,
    performance_data jsonb DEFAULT '{}'::jsonb NOT NULL,
    status character varying(50) NOT NULL,
    duration_days integer DEFAULT 14 NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    results character varying(50),
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT hub_experiments_duration_days_check CHECK ((duration_days > 0)),
    CONSTRAINT hub_experiments_results_check CHECK (((results)::text = ANY ((ARRAY['experimental_wins'::character varying, 'original_wins'::character varying, 'inconclusive'::character varying])::text[]))),
    CONSTRAINT hub_experiments_status_check CHECK (((status)::text = ANY ((ARRAY['planned'::character varying, 'running'::character varying, 'completed'::character varying, 'failed'::character varying])::text[])))
);

CREATE TABLE public.hub_instances (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    hub_type character varying(50) NOT NULL,
    status character varying(50) NOT NULL,
    vm_id integer,
    version character varying(50),
    config jsonb DEFAULT '{}'::jsonb NOT NULL,
    parent_hub_uuid uuid,
    experiment_uuid uuid,
    spawned_at timestamp with time zone DEFAULT now() NOT NULL,
    last_checkpoint_at timestamp with time zone,
    terminated_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT hub_instances_hub_type_check CHECK (((hub_type)::text = ANY ((ARRAY['primary'::character varying, 'development'::character varying, 'experimental'::character varying, 'domain_specific'::character varying])::text[]))),
    CONSTRAINT hub_instances_status_check CHECK (((status)::text = ANY ((ARRAY['active'::character varying, 'inactive'::character varying, 'experimental'::character varying, 'retiring'::character varying])::text[])))
);

CREATE TABLE public.installation (
    id smallint DEFAULT 1 NOT NULL,
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT installation_id_check CHECK ((id = 1))
);

CREATE TABLE public.intelligent_machines (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    name character varying(63) NOT NULL,
    machine_type character varying(50) NOT NULL,
    status character varying(50) DEFAULT 'spawning'::character varying NOT NULL,
    outcome character varying(50),
    project_uuid uuid NOT NULL,
    parent_checkpoint_uuid uuid,
    vm_id integer,
    node character varying(63),
    hub_vm_id integer,
    network_slot integer,
    original_prompt text,
    assignment jsonb DEFAULT '{}'::jsonb NOT NULL,
    file_modifications jsonb DEFAULT '{}'::jsonb NOT NULL,
    resource_constraints jsonb DEFAULT '{}'::jsonb NOT NULL,
    resource_usage jsonb DEFAULT '{}'::jsonb NOT NULL,
    current_progress text,
    error_message text,
    last_checkpoint_uuid uuid,
    checkpoint_count integer DEFAULT 0 NOT NULL,
    generation integer DEFAULT 1 NOT NULL,
    enrolled_generation integer,
    enrolled_nonce text,
    enrolled_at timestamp with time zone,
    last_heartbeat_at timestamp with time zone,
    api_calls integer DEFAULT 0 NOT NULL,
    stop_requested_at timestamp with time zone,
    stop_reason text,
    result jsonb DEFAULT '{}'::jsonb NOT NULL,
    spawned_at timestamp with time zone DEFAULT now() NOT NULL,
    terminated_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    manifest bytea,
    pause_reason character varying(20),
    paused_at timestamp with time zone,
    max_cad numeric(24,9),
    CONSTRAINT intelligent_machines_api_calls_check CHECK ((api_calls >= 0)),
    CONSTRAINT intelligent_machines_check CHECK ((enrolled_generation <= generation)),
    CONSTRAINT intelligent_machines_checkpoint_count_check CHECK ((checkpoint_count >= 0)),
    CONSTRAINT intelligent_machines_generation_check CHECK ((generation >= 1)),
    CONSTRAINT intelligent_machines_hub_is_active CHECK ((((machine_type)::text <> 'hub'::text) OR (((status)::text = 'active'::text) AND (stop_requested_at IS NULL)))),
    CONSTRAINT intelligent_machines_machine_type_check CHECK (((machine_type)::text ~ '^[a-z][a-z0-9_]{0,40}$'::text)),
    CONSTRAINT intelligent_machines_max_cad_check CHECK (((max_cad > (0)::numeric) AND (max_cad <> 'NaN'::numeric))),
    CONSTRAINT intelligent_machines_name_check CHECK (((name)::text ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'::text)),
    CONSTRAINT intelligent_machines_outcome_check CHECK (((outcome)::text = ANY ((ARRAY['succeeded'::character varying, 'failed'::character varying, 'out_of_budget'::character varying, 'stopped'::character varying])::text[]))),
    CONSTRAINT intelligent_machines_pause_reason_check CHECK (((pause_reason)::text = ANY ((ARRAY['budget'::character varying, 'person'::character varying, 'circuit_breaker'::character varying])::text[]))),
    CONSTRAINT intelligent_machines_status_check CHECK (((status)::text = ANY ((ARRAY['spawning'::character varying, 'active'::character varying, 'working'::character varying, 'checkpointing'::character varying, 'paused'::character varying, 'terminated'::character varying])::text[]))),
    CONSTRAINT intelligent_machines_vm_id_check CHECK ((vm_id >= 100))
);
ALTER TABLE ONLY public.intelligent_machines ALTER COLUMN manifest SET STORAGE EXTERNAL;

CREATE TABLE public.login_failures (
    name character varying(63) NOT NULL,
    address character varying(64) NOT NULL,
    failures integer DEFAULT 1 NOT NULL,
    locked_until timestamp with time zone,
    last_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.login_sessions (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    user_uuid uuid NOT NULL,
    refresh_hash character varying(64) NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    refreshed_at timestamp with time zone,
    expires_at timestamp with time zone NOT NULL,
    revoked_at timestamp with time zone
);

CREATE TABLE public.machine_events (
    id bigint NOT NULL,
    machine_uuid uuid NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    kind character varying(20) NOT NULL,
    text text NOT NULL,
    data jsonb,
    spool text,
    spool_seq bigint,
    CONSTRAINT machine_events_check CHECK (((spool IS NULL) = (spool_seq IS NULL))),
    CONSTRAINT machine_events_kind_check CHECK (((kind)::text = ANY ((ARRAY['text'::character varying, 'tool'::character varying, 'system'::character varying, 'error'::character varying])::text[]))),
    CONSTRAINT machine_events_spool_seq_check CHECK ((spool_seq >= 0))
);

ALTER TABLE public.machine_events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.machine_events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.machine_files (
    machine_uuid uuid NOT NULL,
    kind character varying(20) NOT NULL,
    name text NOT NULL,
    sha256 character varying(64) NOT NULL,
    size_bytes bigint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT machine_files_kind_check CHECK (((kind)::text = ANY ((ARRAY['artifact'::character varying, 'workspace'::character varying, 'patch'::character varying])::text[]))),
    CONSTRAINT machine_files_name_check CHECK (((length(name) >= 1) AND (length(name) <= 1024))),
    CONSTRAINT machine_files_sha256_check CHECK (((sha256)::text ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT machine_files_size_bytes_check CHECK ((size_bytes >= 0))
);

CREATE TABLE public.machine_slots (
    slot integer NOT NULL,
    machine_uuid uuid,
    ip text NOT NULL,
    mac text NOT NULL,
    released_at timestamp with time zone,
    CONSTRAINT machine_slots_mac_check CHECK ((mac ~ '^[0-9A-F]{2}(:[0-9A-F]{2}){5}$'::text)),
    CONSTRAINT machine_slots_slot_check CHECK ((slot >= 0))
);

CREATE TABLE public.operations (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    seq bigint NOT NULL,
    kind character varying(20) NOT NULL,
    status character varying(20) DEFAULT 'queued'::character varying NOT NULL,
    machine_uuid uuid,
    project_uuid uuid,
    checkpoint_uuid uuid,
    template_uuid uuid,
    depends_on_uuid uuid,
    idempotency_key text,
    params jsonb DEFAULT '{}'::jsonb NOT NULL,
    result jsonb,
    error text,
    error_class character varying(100),
    attempts integer DEFAULT 0 NOT NULL,
    lease_owner text,
    lease_expires_at timestamp with time zone,
    run_uuid uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    claimed_at timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    not_before timestamp with time zone,
    CONSTRAINT operations_attempts_check CHECK ((attempts >= 0)),
    CONSTRAINT operations_check2 CHECK ((((status)::text <> 'running'::text) OR ((lease_owner IS NOT NULL) AND (lease_expires_at IS NOT NULL)))),
    CONSTRAINT operations_check3 CHECK ((((status)::text = ANY ((ARRAY['succeeded'::character varying, 'failed'::character varying])::text[])) = (finished_at IS NOT NULL))),
    CONSTRAINT operations_depends_on_check CHECK ((depends_on_uuid <> uuid)),
    CONSTRAINT operations_kind_check CHECK (((kind)::text = ANY ((ARRAY['spawn'::character varying, 'checkpoint'::character varying, 'restore'::character varying, 'promote'::character varying, 'terminate'::character varying, 'template'::character varying, 'verify'::character varying, 'prune'::character varying, 'pause'::character varying, 'resume'::character varying, 'adopt'::character varying, 'hub_checkpoint'::character varying])::text[]))),
    CONSTRAINT operations_machine_check CHECK (((machine_uuid IS NOT NULL) OR ((kind)::text = ANY ((ARRAY['template'::character varying, 'promote'::character varying, 'verify'::character varying, 'prune'::character varying, 'adopt'::character varying])::text[])))),
    CONSTRAINT operations_status_check CHECK (((status)::text = ANY ((ARRAY['queued'::character varying, 'running'::character varying, 'succeeded'::character varying, 'failed'::character varying])::text[])))
);

ALTER TABLE public.operations ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.operations_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.pool_limits (
    pool_uuid uuid NOT NULL,
    project_uuid uuid NOT NULL,
    floor_amount numeric(24,9) DEFAULT 0 NOT NULL,
    cap_amount numeric(24,9),
    CONSTRAINT pool_limits_check CHECK (((cap_amount >= floor_amount) AND (cap_amount <> 'NaN'::numeric))),
    CONSTRAINT pool_limits_floor_amount_check CHECK (((floor_amount >= (0)::numeric) AND (floor_amount <> 'NaN'::numeric)))
);

CREATE TABLE public.prices (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    provider character varying(50) NOT NULL,
    model character varying(100) NOT NULL,
    effective_from date NOT NULL,
    tier_above_tokens integer DEFAULT 0 NOT NULL,
    usd_input numeric(24,9) NOT NULL,
    usd_output numeric(24,9) NOT NULL,
    usd_cache_read numeric(24,9) NOT NULL,
    usd_cache_write_5m numeric(24,9) NOT NULL,
    usd_cache_write_1h numeric(24,9) NOT NULL,
    source text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    rank smallint DEFAULT 1 NOT NULL,
    retired_at timestamp with time zone,
    usd_web_search numeric(24,9),
    CONSTRAINT prices_rank_check CHECK (((rank >= 0) AND (rank <= 2))),
    CONSTRAINT prices_tier_above_tokens_check CHECK ((tier_above_tokens >= 0)),
    CONSTRAINT prices_usd_cache_read_check CHECK (((usd_cache_read >= (0)::numeric) AND (usd_cache_read <> 'NaN'::numeric))),
    CONSTRAINT prices_usd_cache_write_1h_check CHECK (((usd_cache_write_1h >= (0)::numeric) AND (usd_cache_write_1h <> 'NaN'::numeric))),
    CONSTRAINT prices_usd_cache_write_5m_check CHECK (((usd_cache_write_5m >= (0)::numeric) AND (usd_cache_write_5m <> 'NaN'::numeric))),
    CONSTRAINT prices_usd_input_check CHECK (((usd_input >= (0)::numeric) AND (usd_input <> 'NaN'::numeric))),
    CONSTRAINT prices_usd_output_check CHECK (((usd_output >= (0)::numeric) AND (usd_output <> 'NaN'::numeric))),
    CONSTRAINT prices_usd_web_search_check CHECK (((usd_web_search >= (0)::numeric) AND (usd_web_search <> 'NaN'::numeric)))
);

CREATE TABLE public.project_grants (
    user_uuid uuid NOT NULL,
    project_uuid uuid NOT NULL,
    role character varying(20) NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT project_grants_role_check CHECK (((role)::text = ANY ((ARRAY['operator'::character varying, 'viewer'::character varying])::text[])))
);

CREATE TABLE public.projects (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    name character varying(255) NOT NULL,
    greediness numeric(3,2) DEFAULT 0.50 NOT NULL,
    status character varying(50) DEFAULT 'active'::character varying NOT NULL,
    description text,
    initial_checkpoint_uuid uuid,
    current_checkpoint_uuid uuid,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    time_zone text DEFAULT 'UTC'::text NOT NULL,
    checkpoint_policy jsonb DEFAULT '{}'::jsonb NOT NULL,
    retention jsonb DEFAULT '{}'::jsonb NOT NULL,
    when_exhausted character varying(10) DEFAULT 'pause'::character varying NOT NULL,
    breaker_reset_at timestamp with time zone,
    models text[],
    CONSTRAINT projects_greediness_check CHECK (((greediness >= (0)::numeric) AND (greediness <= (1)::numeric) AND (greediness <> 'NaN'::numeric))),
    CONSTRAINT projects_models_check CHECK ((cardinality(models) > 0)),
    CONSTRAINT projects_name_check CHECK ((((name)::text <> ''::text) AND ((name)::text = btrim((name)::text)))),
    CONSTRAINT projects_status_check CHECK (((status)::text = ANY ((ARRAY['active'::character varying, 'paused'::character varying, 'completed'::character varying, 'archived'::character varying])::text[]))),
    CONSTRAINT projects_when_exhausted_check CHECK (((when_exhausted)::text = ANY ((ARRAY['pause'::character varying, 'end'::character varying])::text[])))
);

CREATE TABLE public.request_replays (
    caller text NOT NULL,
    idempotency_key character varying(255) NOT NULL,
    fingerprint character varying(64) NOT NULL,
    answer json,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.resource_usage (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL,
    project_uuid uuid NOT NULL,
    machine_uuid uuid,
    checkpoint_uuid uuid,
    operation_uuid uuid,
    reservation_uuid uuid,
    resource_type character varying(50) NOT NULL,
    resource_subtype character varying(100),
    amount numeric(24,9) NOT NULL,
    unit character varying(20) NOT NULL,
    cost_cad numeric(24,9),
    cost numeric(24,9),
    currency character varying(3),
    exchange_rate numeric(24,9),
    exchange_rate_date date,
    price_uuid uuid,
    billing_period_start date,
    billing_period_end date,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT resource_usage_amount_check CHECK ((amount <> 'NaN'::numeric)),
    CONSTRAINT resource_usage_check CHECK ((billing_period_end >= billing_period_start)),
    CONSTRAINT resource_usage_cost_cad_check CHECK ((cost_cad <> 'NaN'::numeric)),
    CONSTRAINT resource_usage_cost_check CHECK ((cost <> 'NaN'::numeric)),
    CONSTRAINT resource_usage_currency_check CHECK (((currency)::text ~ '^[A-Z]{3}$'::text)),
    CONSTRAINT resource_usage_exchange_rate_check CHECK (((exchange_rate > (0)::numeric) AND (exchange_rate <> 'NaN'::numeric))),
    CONSTRAINT resource_usage_negative_is_correction CHECK (((NOT ((resource_subtype)::text IS DISTINCT FROM 'correction'::text)) OR ((amount >= (0)::numeric) AND (COALESCE(cost_cad, (0)::numeric) >= (0)::numeric) AND (COALESCE(cost, (0)::numeric) >= (0)::numeric)))),
    CONSTRAINT resource_usage_resource_type_check CHECK (((resource_type)::text = ANY ((ARRAY['money'::character varying, 'time'::character varying, 'api_calls'::character varying, 'cpu'::character varying, 'memory'::character varying, 'storage'::character varying, 'network'::character varying])::text[])))
)
PARTITION BY RANGE (recorded_at);

CREATE TABLE public.resource_usage_default (
    uuid uuid DEFAULT gen_random_uuid() CONSTRAINT resource_usage_uuid_not_null NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() CONSTRAINT resource_usage_recorded_at_not_null NOT NULL,
    project_uuid uuid CONSTRAINT resource_usage_project_uuid_not_null NOT NULL,
    machine_uuid uuid,
    checkpoint_uuid uuid,
    operation_uuid uuid,
    reservation_uuid uuid,
    resource_type character varying(50) CONSTRAINT resource_usage_resource_type_not_null NOT NULL,
    resource_subtype character varying(100),
    amount numeric(24,9) CONSTRAINT resource_usage_amount_not_null NOT NULL,
    unit character varying(20) CONSTRAINT resource_usage_unit_not_null NOT NULL,
    cost_cad numeric(24,9),
    cost numeric(24,9),
    currency character varying(3),
    exchange_rate numeric(24,9),
    exchange_rate_date date,
    price_uuid uuid,
    billing_period_start date,
    billing_period_end date,
    metadata jsonb DEFAULT '{}'::jsonb CONSTRAINT resource_usage_metadata_not_null NOT NULL,
    CONSTRAINT resource_usage_amount_check CHECK ((amount <> 'NaN'::numeric)),
    CONSTRAINT resource_usage_check CHECK ((billing_period_end >= billing_period_start)),
    CONSTRAINT resource_usage_cost_cad_check CHECK ((cost_cad <> 'NaN'::numeric)),
    CONSTRAINT resource_usage_cost_check CHECK ((cost <> 'NaN'::numeric)),
    CONSTRAINT resource_usage_currency_check CHECK (((currency)::text ~ '^[A-Z]{3}$'::text)),
    CONSTRAINT resource_usage_exchange_rate_check CHECK (((exchange_rate > (0)::numeric) AND (exchange_rate <> 'NaN'::numeric))),
    CONSTRAINT resource_usage_negative_is_correction CHECK (((NOT ((resource_subtype)::text IS DISTINCT FROM 'correction'::text)) OR ((amount >= (0)::numeric) AND (COALESCE(cost_cad, (0)::numeric) >= (0)::numeric) AND (COALESCE(cost, (0)::numeric) >= (0)::numeric)))),
    CONSTRAINT resource_usage_resource_type_check CHECK (((resource_type)::text = ANY ((ARRAY['money'::character varying, 'time'::character varying, 'api_calls'::character varying, 'cpu'::character varying, 'memory'::character varying, 'storage'::character varying, 'network'::character varying])::text[])))
);

CREATE TABLE public.runs (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    kind character varying(20) NOT NULL,
    worker text NOT NULL,
    hostname text NOT NULL,
    status character varying(20) DEFAULT 'running'::character varying NOT NULL,
    artifact_dir text,
    pids jsonb DEFAULT '[]'::jsonb NOT NULL,
    return_code integer,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    CONSTRAINT runs_check CHECK ((((status)::text = 'running'::text) = (ended_at IS NULL))),
    CONSTRAINT runs_kind_check CHECK (((kind)::text = ANY ((ARRAY['spawn'::character varying, 'checkpoint'::character varying, 'restore'::character varying, 'promote'::character varying, 'terminate'::character varying, 'template'::character varying, 'verify'::character varying, 'prune'::character varying, 'pause'::character varying, 'resume'::character varying, 'adopt'::character varying, 'hub_checkpoint'::character varying])::text[]))),
    CONSTRAINT runs_status_check CHECK (((status)::text = ANY ((ARRAY['running'::character varying, 'succeeded'::character varying, 'failed'::character varying, 'lost'::character varying])::text[])))
);

CREATE TABLE public.scheduler_jobs (
    name character varying(50) NOT NULL,
    every_seconds double precision NOT NULL,
    last_success_at timestamp with time zone,
    last_failure_at timestamp with time zone,
    last_error text,
    CONSTRAINT scheduler_jobs_every_seconds_check CHECK ((every_seconds > (0)::double precision))
);

CREATE TABLE public.task_results (
    id bigint NOT NULL,
    run_uuid uuid NOT NULL,
    operation_uuid uuid,
    host text NOT NULL,
    task text NOT NULL,
    action text NOT NULL,
    status character varying(20) NOT NULL,
    changed boolean DEFAULT false NOT NULL,
    duration double precision,
    result jsonb,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT task_results_status_check CHECK (((status)::text = ANY ((ARRAY['ok'::character varying, 'failed'::character varying, 'skipped'::character varying, 'unreachable'::character varying])::text[])))
);

ALTER TABLE public.task_results ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.task_results_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.templates (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    name character varying(63) NOT NULL,
    inputs character varying(64) NOT NULL,
    status character varying(20) DEFAULT 'ready'::character varying NOT NULL,
    vm_id integer,
    node character varying(63),
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT templates_name_check CHECK (((name)::text ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'::text)),
    CONSTRAINT templates_status_check CHECK (((status)::text = ANY ((ARRAY['building'::character varying, 'ready'::character varying, 'failed'::character varying, 'retired'::character varying])::text[]))),
    CONSTRAINT templates_vm_id_check CHECK ((vm_id >= 100))
);

CREATE TABLE public.usage_sums (
    project_uuid uuid NOT NULL,
    day date NOT NULL,
    machine_uuid uuid,
    resource_type character varying(50) NOT NULL,
    resource_subtype character varying(100),
    model text,
    lines bigint NOT NULL,
    amount numeric NOT NULL,
    cad numeric NOT NULL,
    usd numeric NOT NULL,
    input_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL
);

CREATE TABLE public.usage_sums_new (
    project_uuid uuid CONSTRAINT usage_sums_project_uuid_not_null NOT NULL,
    day date CONSTRAINT usage_sums_day_not_null NOT NULL,
    machine_uuid uuid,
    resource_type character varying(50) CONSTRAINT usage_sums_resource_type_not_null NOT NULL,
    resource_subtype character varying(100),
    model text,
    lines bigint CONSTRAINT usage_sums_lines_not_null NOT NULL,
    amount numeric CONSTRAINT usage_sums_amount_not_null NOT NULL,
    cad numeric CONSTRAINT usage_sums_cad_not_null NOT NULL,
    usd numeric CONSTRAINT usage_sums_usd_not_null NOT NULL,
    input_tokens bigint CONSTRAINT usage_sums_input_tokens_not_null NOT NULL,
    cache_read_tokens bigint CONSTRAINT usage_sums_cache_read_tokens_not_null NOT NULL,
    cache_write_tokens bigint CONSTRAINT usage_sums_cache_write_tokens_not_null NOT NULL,
    output_tokens bigint CONSTRAINT usage_sums_output_tokens_not_null NOT NULL
);

CREATE VIEW public.usage_by_day AS
 SELECT usage_sums.project_uuid,
    usage_sums.day,
    usage_sums.machine_uuid,
    usage_sums.resource_type,
    usage_sums.resource_subtype,
    usage_sums.model,
    usage_sums.lines,
    usage_sums.amount,
    usage_sums.cad,
    usage_sums.usd,
    usage_sums.input_tokens,
    usage_sums.cache_read_tokens,
    usage_sums.cache_write_tokens,
    usage_sums.output_tokens
   FROM public.usage_sums
UNION ALL
 SELECT usage_sums_new.project_uuid,
    usage_sums_new.day,
    usage_sums_new.machine_uuid,
    usage_sums_new.resource_type,
    usage_sums_new.resource_subtype,
    usage_sums_new.model,
    usage_sums_new.lines,
    usage_sums_new.amount,
    usage_sums_new.cad,
    usage_sums_new.usd,
    usage_sums_new.input_tokens,
    usage_sums_new.cache_read_tokens,
    usage_sums_new.cache_write_tokens,
    usage_sums_new.output_tokens
   FROM public.usage_sums_new;

CREATE TABLE public.usage_keys (
    idempotency_key text NOT NULL,
    usage_uuid uuid NOT NULL,
    recorded_at timestamp with time zone NOT NULL
);

CREATE TABLE public.users (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    name character varying(63) NOT NULL,
    role character varying(20) NOT NULL,
    password_hash text,
    disabled_at timestamp with time zone,
    last_login_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT users_name_check CHECK (((name)::text ~ '^[a-z0-9]([a-z0-9._@-]{0,61}[a-z0-9])?$'::text)),
    CONSTRAINT users_role_check CHECK (((role)::text = ANY ((ARRAY['admin'::character varying, 'operator'::character varying, 'viewer'::character varying])::text[])))
);

CREATE SEQUENCE public.vm_ids
    AS integer
    START WITH 10000
    INCREMENT BY 1
    MINVALUE 100
    MAXVALUE 999999999
    CACHE 1;

CREATE TABLE public.vm_meters (
    vm_id integer NOT NULL,
    project_uuid uuid NOT NULL,
    machine_uuid uuid NOT NULL,
    state character varying(20) NOT NULL,
    changed_at timestamp with time zone NOT NULL,
    metered_to timestamp with time zone NOT NULL,
    held_to timestamp with time zone,
    cores integer NOT NULL,
    memory_mib integer NOT NULL,
    disk_mib bigint NOT NULL,
    net_bytes bigint,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT vm_meters_cores_check CHECK ((cores >= 0)),
    CONSTRAINT vm_meters_disk_mib_check CHECK ((disk_mib >= 0)),
    CONSTRAINT vm_meters_memory_mib_check CHECK ((memory_mib >= 0)),
    CONSTRAINT vm_meters_net_bytes_check CHECK ((net_bytes >= 0)),
    CONSTRAINT vm_meters_state_check CHECK (((state)::text = ANY ((ARRAY['waiting'::character varying, 'running'::character varying, 'stopped'::character varying, 'stored'::character varying, 'ended'::character varying])::text[]))),
    CONSTRAINT vm_meters_vm_id_check CHECK ((vm_id >= 100))
);

ALTER TABLE ONLY public.resource_usage ATTACH PARTITION public.resource_usage_default DEFAULT;

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_prefix_key UNIQUE (prefix);

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT audit_log_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.budget_alerts
    ADD CONSTRAINT budget_alerts_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.budget_pools
    ADD CONSTRAINT budget_pools_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT checkpoints_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT checkpoints_template_vm_id_key UNIQUE (template_vm_id);

ALTER TABLE ONLY public.compute_rates
    ADD CONSTRAINT compute_rates_item_machine_type_effective_from_source_key UNIQUE (item, machine_type, effective_from, source);

ALTER TABLE ONLY public.compute_rates
    ADD CONSTRAINT compute_rates_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.exchange_rates
    ADD CONSTRAINT exchange_rates_pkey PRIMARY KEY (base, quote, rate_date, source);

ALTER TABLE ONLY public.hub_checkpoints
    ADD CONSTRAINT hub_checkpoints_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.hub_experiments
    ADD CONSTRAINT hub_experiments_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.hub_instances
    ADD CONSTRAINT hub_instances_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.hub_instances
    ADD CONSTRAINT hub_instances_vm_id_key UNIQUE (vm_id);

ALTER TABLE ONLY public.installation
    ADD CONSTRAINT installation_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.installation
    ADD CONSTRAINT installation_uuid_key UNIQUE (uuid);

ALTER TABLE ONLY public.intelligent_machines
    ADD CONSTRAINT intelligent_machines_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.intelligent_machines
    ADD CONSTRAINT intelligent_machines_project_uuid_name_key UNIQUE (project_uuid, name);

ALTER TABLE ONLY public.intelligent_machines
    ADD CONSTRAINT intelligent_machines_uuid_project_uuid_key UNIQUE (uuid, project_uuid);

ALTER TABLE ONLY public.intelligent_machines
    ADD CONSTRAINT intelligent_machines_vm_id_key UNIQUE (vm_id);

ALTER TABLE ONLY public.login_failures
    ADD CONSTRAINT login_failures_pkey PRIMARY KEY (name, address);

ALTER TABLE ONLY public.login_sessions
    ADD CONSTRAINT login_sessions_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.machine_events
    ADD CONSTRAINT machine_events_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.machine_files
    ADD CONSTRAINT machine_files_pkey PRIMARY KEY (machine_uuid, kind, name);

ALTER TABLE ONLY public.machine_slots
    ADD CONSTRAINT machine_slots_ip_key UNIQUE (ip);

ALTER TABLE ONLY public.machine_slots
    ADD CONSTRAINT machine_slots_mac_key UNIQUE (mac);

ALTER TABLE ONLY public.machine_slots
    ADD CONSTRAINT machine_slots_machine_uuid_key UNIQUE (machine_uuid);

ALTER TABLE ONLY public.machine_slots
    ADD CONSTRAINT machine_slots_pkey PRIMARY KEY (slot);

ALTER TABLE ONLY public.operations
    ADD CONSTRAINT operations_idempotency_key_key UNIQUE (idempotency_key);

ALTER TABLE ONLY public.operations
    ADD CONSTRAINT operations_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.operations
    ADD CONSTRAINT operations_seq_key UNIQUE (seq);

ALTER TABLE ONLY public.pool_limits
    ADD CONSTRAINT pool_limits_pkey PRIMARY KEY (pool_uuid, project_uuid);

ALTER TABLE ONLY public.prices
    ADD CONSTRAINT prices_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.project_grants
    ADD CONSTRAINT project_grants_pkey PRIMARY KEY (user_uuid, project_uuid);

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT projects_name_key UNIQUE (name);

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT projects_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.request_replays
    ADD CONSTRAINT request_replays_pkey PRIMARY KEY (caller, idempotency_key);

ALTER TABLE ONLY public.reservations
    ADD CONSTRAINT reservations_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.resource_budgets
    ADD CONSTRAINT resource_budgets_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.resource_usage
    ADD CONSTRAINT resource_usage_pkey PRIMARY KEY (recorded_at, uuid);

ALTER TABLE ONLY public.resource_usage_default
    ADD CONSTRAINT resource_usage_default_pkey PRIMARY KEY (recorded_at, uuid);

ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.scheduler_jobs
    ADD CONSTRAINT scheduler_jobs_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.task_results
    ADD CONSTRAINT task_results_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.templates
    ADD CONSTRAINT templates_name_inputs_key UNIQUE (name, inputs);

ALTER TABLE ONLY public.templates
    ADD CONSTRAINT templates_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.templates
    ADD CONSTRAINT templates_vm_id_key UNIQUE (vm_id);

ALTER TABLE ONLY public.usage_keys
    ADD CONSTRAINT usage_keys_pkey PRIMARY KEY (idempotency_key);

ALTER TABLE ONLY public.usage_sums
    ADD CONSTRAINT usage_sums_key UNIQUE NULLS NOT DISTINCT (project_uuid, day, machine_uuid, resource_type, resource_subtype, model);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_name_key UNIQUE (name);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.vm_meters
    ADD CONSTRAINT vm_meters_pkey PRIMARY KEY (vm_id);

CREATE UNIQUE INDEX budget_alerts_one_exhausted ON public.budget_alerts USING btree (budget_uuid) WHERE (((kind)::text = 'exhausted'::text) AND (passed_at IS NULL));

CREATE UNIQUE INDEX budget_alerts_one_of_a_level ON public.budget_alerts USING btree (budget_uuid, percent) WHERE (((kind)::text = 'level'::text) AND (passed_at IS NULL));

CREATE UNIQUE INDEX budget_pools_one_that_holds ON public.budget_pools USING btree (resource_type, budget_period) WHERE (removed_at IS NULL);

CREATE INDEX idx_api_keys_user ON public.api_keys USING btree (user_uuid);

CREATE INDEX idx_audit_object ON public.audit_log USING btree (object_uuid, id);

CREATE INDEX idx_audit_project ON public.audit_log USING btree (project_uuid, id);

CREATE INDEX idx_budget_alerts_due ON public.budget_alerts USING btree (next_attempt_at) WHERE (delivered_at IS NULL);

CREATE INDEX idx_budgets_pooled ON public.resource_budgets USING btree (resource_type, budget_period, period_start) WHERE pooled;

CREATE INDEX idx_checkpoints_created ON public.checkpoints USING btree (created_at DESC);

CREATE INDEX idx_checkpoints_creating_machine ON public.checkpoints USING btree (creating_machine_uuid);

CREATE INDEX idx_checkpoints_parent ON public.checkpoints USING btree (parent_checkpoint_uuid);

CREATE INDEX idx_checkpoints_project ON public.checkpoints USING btree (project_uuid);

CREATE INDEX idx_checkpoints_type ON public.checkpoints USING btree (checkpoint_type);

CREATE INDEX idx_hub_checkpoints_created ON public.hub_checkpoints USING btree (created_at DESC);

CREATE INDEX idx_hub_checkpoints_hub ON public.hub_checkpoints USING btree (hub_instance_uuid);

CREATE INDEX idx_hub_experiments_status ON public.hub_experiments USING btree (status);

CREATE INDEX idx_hub_instances_status ON public.hub_instances USING btree (status);

CREATE INDEX idx_login_sessions_user ON public.login_sessions USING btree (user_uuid) WHERE (revoked_at IS NULL);

CREATE INDEX idx_machine_events_machine ON public.machine_events USING btree (machine_uuid, id);

CREATE INDEX idx_machine_files_sha256 ON public.machine_files USING btree (sha256);

CREATE INDEX idx_machines_listed ON public.intelligent_machines USING btree (spawned_at DESC, uuid DESC);

CREATE INDEX idx_machines_living ON public.intelligent_machines USING btree (spawned_at DESC, uuid DESC) WHERE ((status)::text <> 'terminated'::text);

CREATE INDEX idx_machines_project ON public.intelligent_machines USING btree (project_uuid, spawned_at DESC, uuid DESC);

CREATE INDEX idx_machines_status ON public.intelligent_machines USING btree (status);

CREATE INDEX idx_machines_type ON public.intelligent_machines USING btree (machine_type);

CREATE INDEX idx_operations_lease ON public.operations USING btree (lease_expires_at) WHERE ((status)::text = 'running'::text);

CREATE INDEX idx_operations_machine ON public.operations USING btree (machine_uuid, seq);

CREATE INDEX idx_operations_queued ON public.operations USING btree (kind, seq) WHERE ((status)::text = 'queued'::text);

CREATE INDEX idx_operations_run ON public.operations USING btree (run_uuid);

CREATE INDEX idx_operations_unfinished_machine ON public.operations USING btree (machine_uuid, seq) WHERE ((status)::text = ANY ((ARRAY['queued'::character varying, 'running'::character varying])::text[]));

CREATE INDEX idx_project_grants_project ON public.project_grants USING btree (project_uuid);

CREATE INDEX idx_projects_greediness ON public.projects USING btree (greediness DESC);

CREATE INDEX idx_projects_status ON public.projects USING btree (status);

CREATE INDEX idx_request_replays_created ON public.request_replays USING btree (created_at);

CREATE INDEX idx_reservations_calls ON public.reservations USING btree (machine_uuid, created_at) WHERE ((purpose)::text = 'ai_call'::text);

CREATE INDEX idx_reservations_held ON public.reservations USING btree (expires_at) WHERE ((status)::text = 'held'::text);

CREATE INDEX idx_reservations_held_calls ON public.reservations USING btree (machine_uuid) WHERE (((status)::text = 'held'::text) AND ((purpose)::text = 'ai_call'::text));

CREATE INDEX idx_reservations_holder ON public.reservations USING btree (holder) WHERE ((status)::text = 'held'::text);

CREATE INDEX idx_reservations_machine ON public.reservations USING btree (machine_uuid);

CREATE INDEX idx_reservations_project ON public.reservations USING btree (project_uuid) WHERE ((status)::text = 'held'::text);

CREATE INDEX idx_reservations_reaped ON public.reservations USING btree (project_uuid, day) WHERE ((status)::text = 'reaped'::text);

CREATE INDEX idx_resource_machine ON ONLY public.resource_usage USING btree (machine_uuid, recorded_at);

CREATE INDEX idx_resource_project_period ON ONLY public.resource_usage USING btree (project_uuid, recorded_at);

CREATE INDEX idx_task_results_operation ON public.task_results USING btree (operation_uuid, id);

CREATE INDEX idx_task_results_run ON public.task_results USING btree (run_uuid, id);

CREATE INDEX idx_usage_sums_new ON public.usage_sums_new USING btree (project_uuid, day);

CREATE INDEX idx_vm_meters_due ON public.vm_meters USING btree (metered_to) WHERE ((state)::text <> 'ended'::text);

CREATE INDEX idx_vm_meters_machine ON public.vm_meters USING btree (machine_uuid);

CREATE UNIQUE INDEX machine_events_once ON public.machine_events USING btree (machine_uuid, spool, spool_seq) WHERE (spool IS NOT NULL);

CREATE UNIQUE INDEX operations_one_running_per_machine ON public.operations USING btree (machine_uuid) WHERE ((status)::text = 'running'::text);

CREATE UNIQUE INDEX prices_one_that_holds ON public.prices USING btree (provider, model, effective_from, tier_above_tokens, rank) WHERE (retired_at IS NULL);

CREATE UNIQUE INDEX resource_budgets_one_of_a_period ON public.resource_budgets USING btree (project_uuid, resource_type, budget_period, period_start, pooled) WHERE (removed_at IS NULL);

CREATE INDEX resource_usage_default_machine_uuid_recorded_at_idx ON public.resource_usage_default USING btree (machine_uuid, recorded_at);

CREATE INDEX resource_usage_default_project_uuid_recorded_at_idx ON public.resource_usage_default USING btree (project_uuid, recorded_at);

ALTER INDEX public.idx_resource_machine ATTACH PARTITION public.resource_usage_default_machine_uuid_recorded_at_idx;

ALTER INDEX public.resource_usage_pkey ATTACH PARTITION public.resource_usage_default_pkey;

ALTER INDEX public.idx_resource_project_period ATTACH PARTITION public.resource_usage_default_project_uuid_recorded_at_idx;

CREATE TRIGGER notify_access AFTER DELETE OR UPDATE OF revoked_at, expires_at ON public.api_keys FOR EACH STATEMENT EXECUTE FUNCTION public.notify_access();

CREATE TRIGGER notify_access AFTER DELETE OR UPDATE OF revoked_at, expires_at ON public.login_sessions FOR EACH STATEMENT EXECUTE FUNCTION public.notify_access();

CREATE TRIGGER notify_access AFTER INSERT OR DELETE OR UPDATE ON public.project_grants FOR EACH STATEMENT EXECUTE FUNCTION public.notify_access();

CREATE TRIGGER notify_access AFTER DELETE OR UPDATE OF role, disabled_at, password_hash ON public.users FOR EACH STATEMENT EXECUTE FUNCTION public.notify_access();

CREATE TRIGGER notify_machine_lines AFTER INSERT ON public.machine_events REFERENCING NEW TABLE AS new_lines FOR EACH STATEMENT EXECUTE FUNCTION public.notify_machine_lines();

CREATE TRIGGER notify_machine_status AFTER UPDATE OF status, outcome ON public.intelligent_machines FOR EACH ROW WHEN ((((new.status)::text IS DISTINCT FROM (old.status)::text) OR ((new.outcome)::text IS DISTINCT FROM (old.outcome)::text))) EXECUTE FUNCTION public.notify_machine_status();

CREATE TRIGGER notify_operations AFTER INSERT OR UPDATE OF status, not_before ON public.operations FOR EACH ROW EXECUTE FUNCTION public.notify_operations();

CREATE TRIGGER only_checkpoints_of_hubs BEFORE INSERT ON public.operations FOR EACH ROW WHEN ((new.machine_uuid IS NOT NULL)) EXECUTE FUNCTION public.only_checkpoints_of_hubs();

CREATE TRIGGER pass_budget_alerts AFTER UPDATE OF allocated_amount ON public.resource_budgets FOR EACH ROW WHEN (((NOT new.pooled) AND (new.allocated_amount > old.allocated_amount))) EXECUTE FUNCTION public.pass_budget_alerts();

CREATE TRIGGER raise_budget_alerts AFTER UPDATE OF used_amount ON public.resource_budgets FOR EACH ROW WHEN (((new.used_amount > old.used_amount) AND ((new.used_amount * (100)::numeric) >= (new.allocated_amount * (LEAST(75, (new.soft_percent)::integer))::numeric)))) EXECUTE FUNCTION public.raise_budget_alerts();

CREATE TRIGGER raise_frozen_alarm AFTER UPDATE OF frozen_at ON public.resource_budgets FOR EACH ROW WHEN (((old.frozen_at IS NULL) AND (new.frozen_at IS NOT NULL))) EXECUTE FUNCTION public.raise_frozen_alarm();

CREATE TRIGGER refuse_audit_change BEFORE DELETE OR UPDATE ON public.audit_log FOR EACH ROW EXECUTE FUNCTION public.refuse_audit_change();

CREATE TRIGGER refuse_audit_truncate BEFORE TRUNCATE ON public.audit_log FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_audit_change();

CREATE TRIGGER refuse_price_change BEFORE DELETE OR UPDATE ON public.prices FOR EACH ROW EXECUTE FUNCTION public.refuse_price_change();

CREATE TRIGGER refuse_rate_change BEFORE DELETE OR UPDATE ON public.compute_rates FOR EACH ROW EXECUTE FUNCTION public.refuse_rate_change();

CREATE TRIGGER refuse_rate_truncate BEFORE TRUNCATE ON public.compute_rates FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_rate_change();

CREATE TRIGGER refuse_usage_change BEFORE DELETE OR UPDATE ON public.resource_usage FOR EACH ROW EXECUTE FUNCTION public.refuse_usage_change();

CREATE TRIGGER refuse_usage_change BEFORE DELETE OR UPDATE ON public.usage_keys FOR EACH ROW EXECUTE FUNCTION public.refuse_usage_change();

CREATE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON public.resource_usage FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_usage_change();

CREATE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON public.resource_usage_default FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_usage_change();

CREATE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON public.usage_keys FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_usage_change();

CREATE TRIGGER sum_usage AFTER INSERT ON public.resource_usage REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION public.sum_usage();

CREATE TRIGGER sum_usage AFTER INSERT ON public.resource_usage_default REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION public.sum_usage();

CREATE TRIGGER update_budgets_updated_at BEFORE UPDATE ON public.resource_budgets FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();

CREATE TRIGGER update_projects_updated_at BEFORE UPDATE ON public.projects FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();

CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON public.users FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_user_uuid_fkey FOREIGN KEY (user_uuid) REFERENCES public.users(uuid);

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT audit_log_key_uuid_fkey FOREIGN KEY (key_uuid) REFERENCES public.api_keys(uuid);

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT audit_log_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT audit_log_user_uuid_fkey FOREIGN KEY (user_uuid) REFERENCES public.users(uuid);

ALTER TABLE ONLY public.budget_alerts
    ADD CONSTRAINT budget_alerts_budget_uuid_fkey FOREIGN KEY (budget_uuid) REFERENCES public.resource_budgets(uuid);

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT checkpoints_creating_machine_uuid_fkey FOREIGN KEY (creating_machine_uuid) REFERENCES public.intelligent_machines(uuid);

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT checkpoints_parent_checkpoint_uuid_fkey FOREIGN KEY (parent_checkpoint_uuid) REFERENCES public.checkpoints(uuid);

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT checkpoints_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);

ALTER TABLE ONLY public.hub_checkpoints
    ADD CONSTRAINT hub_checkpoints_hub_instance_uuid_fkey FOREIGN KEY (hub_instance_uuid) REFERENCES public.hub_instances(uuid);

ALTER TABLE ONLY public.hub_experiments
    ADD CONSTRAINT hub_experiments_base_checkpoint_uuid_fkey FOREIGN KEY (base_checkpoint_uuid) REFERENCES public.hub_checkpoints(uuid);

ALTER TABLE ONLY public.hub_experiments
    ADD CONSTRAINT hub_experiments_experimental_hub_uuid_fkey FOREIGN KEY (experimental_hub_uuid) REFERENCES public.hub_instances(uuid);

ALTER TABLE ONLY public.hub_experiments
    ADD CONSTRAINT hub_experiments_original_hub_uuid_fkey FOREIGN KEY (original_hub_uuid) REFERENCES public.hub_instances(uuid);

ALTER TABLE ONLY public.hub_instances
    ADD CONSTRAINT hub_instances_experiment_uuid_fkey FOREIGN KEY (experiment_uuid) REFERENCES public.hub_experiments(uuid) DEFERRABLE INITIALLY DEFERRED;

ALTER TABLE ONLY public.hub_instances
    ADD CONSTRAINT hub_instances_parent_hub_uuid_fkey FOREIGN KEY (parent_hub_uuid) REFERENCES public.hub_instances(uuid);

ALTER TABLE ONLY public.intelligent_machines
    ADD CONSTRAINT intelligent_machines_last_checkpoint_uuid_fkey FOREIGN KEY (last_checkpoint_uuid) REFERENCES public.checkpoints(uuid) DEFERRABLE INITIALLY DEFERRED;

ALTER TABLE ONLY public.intelligent_machines
    ADD CONSTRAINT intelligent_machines_parent_checkpoint_uuid_fkey FOREIGN KEY (parent_checkpoint_uuid) REFERENCES public.checkpoints(uuid) DEFERRABLE INITIALLY DEFERRED;

ALTER TABLE ONLY public.intelligent_machines
    ADD CONSTRAINT intelligent_machines_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);

ALTER TABLE ONLY public.login_sessions
    ADD CONSTRAINT login_sessions_user_uuid_fkey FOREIGN KEY (user_uuid) REFERENCES public.users(uuid);

ALTER TABLE ONLY public.machine_events
    ADD CONSTRAINT machine_events_machine_uuid_fkey FOREIGN KEY (machine_uuid) REFERENCES public.intelligent_machines(uuid);

ALTER TABLE ONLY public.machine_files
    ADD CONSTRAINT machine_files_machine_uuid_fkey FOREIGN KEY (machine_uuid) REFERENCES public.intelligent_machines(uuid);

ALTER TABLE ONLY public.machine_slots
    ADD CONSTRAINT machine_slots_machine_uuid_fkey FOREIGN KEY (machine_uuid) REFERENCES public.intelligent_machines(uuid);

ALTER TABLE ONLY public.operations
    ADD CONSTRAINT operations_checkpoint_uuid_fkey FOREIGN KEY (checkpoint_uuid) REFERENCES public.checkpoints(uuid);

ALTER TABLE ONLY public.operations
    ADD CONSTRAINT operations_depends_on_uuid_fkey FOREIGN KEY (depends_on_uuid) REFERENCES public.operations(uuid);

ALTER TABLE ONLY public.operations
    ADD CONSTRAINT operations_machine_uuid_fkey FOREIGN KEY (machine_uuid) REFERENCES public.intelligent_machines(uuid);

ALTER TABLE ONLY public.operations
    ADD CONSTRAINT operations_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);

ALTER TABLE ONLY public.operations
    ADD CONSTRAINT operations_run_uuid_fkey FOREIGN KEY (run_uuid) REFERENCES public.runs(uuid);

ALTER TABLE ONLY public.operations
    ADD CONSTRAINT operations_template_uuid_fkey FOREIGN KEY (template_uuid) REFERENCES public.templates(uuid);

ALTER TABLE ONLY public.pool_limits
    ADD CONSTRAINT pool_limits_pool_uuid_fkey FOREIGN KEY (pool_uuid) REFERENCES public.budget_pools(uuid);

ALTER TABLE ONLY public.pool_limits
    ADD CONSTRAINT pool_limits_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);

ALTER TABLE ONLY public.project_grants
    ADD CONSTRAINT project_grants_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);

ALTER TABLE ONLY public.project_grants
    ADD CONSTRAINT project_grants_user_uuid_fkey FOREIGN KEY (user_uuid) REFERENCES public.users(uuid);

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT projects_current_checkpoint_uuid_fkey FOREIGN KEY (current_checkpoint_uuid) REFERENCES public.checkpoints(uuid) DEFERRABLE INITIALLY DEFERRED;

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT projects_initial_checkpoint_uuid_fkey FOREIGN KEY (initial_checkpoint_uuid) REFERENCES public.checkpoints(uuid) DEFERRABLE INITIALLY DEFERRED;

ALTER TABLE ONLY public.reservations
    ADD CONSTRAINT reservations_machine_uuid_fkey FOREIGN KEY (machine_uuid) REFERENCES public.intelligent_machines(uuid);

ALTER TABLE ONLY public.reservations
    ADD CONSTRAINT reservations_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);

ALTER TABLE ONLY public.resource_budgets
    ADD CONSTRAINT resource_budgets_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);

ALTER TABLE public.resource_usage
    ADD CONSTRAINT resource_usage_checkpoint_uuid_fkey FOREIGN KEY (checkpoint_uuid) REFERENCES public.checkpoints(uuid);

ALTER TABLE public.resource_usage
    ADD CONSTRAINT resource_usage_machine_of_project FOREIGN KEY (machine_uuid, project_uuid) REFERENCES public.intelligent_machines(uuid, project_uuid);

ALTER TABLE public.resource_usage
    ADD CONSTRAINT resource_usage_operation_uuid_fkey FOREIGN KEY (operation_uuid) REFERENCES public.operations(uuid);

ALTER TABLE public.resource_usage
    ADD CONSTRAINT resource_usage_price_uuid_fkey FOREIGN KEY (price_uuid) REFERENCES public.prices(uuid);

ALTER TABLE public.resource_usage
    ADD CONSTRAINT resource_usage_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);

ALTER TABLE public.resource_usage
    ADD CONSTRAINT resource_usage_reservation_uuid_fkey FOREIGN KEY (reservation_uuid) REFERENCES public.reservations(uuid);

ALTER TABLE ONLY public.task_results
    ADD CONSTRAINT task_results_operation_uuid_fkey FOREIGN KEY (operation_uuid) REFERENCES public.operations(uuid);

ALTER TABLE ONLY public.task_results
    ADD CONSTRAINT task_results_run_uuid_fkey FOREIGN KEY (run_uuid) REFERENCES public.runs(uuid);

ALTER TABLE ONLY public.vm_meters
    ADD CONSTRAINT vm_meters_machine_uuid_fkey FOREIGN KEY (machine_uuid) REFERENCES public.intelligent_machines(uuid);

ALTER TABLE ONLY public.vm_meters
    ADD CONSTRAINT vm_meters_project_uuid_fkey FOREIGN KEY (project_uuid) REFERENCES public.projects(uuid);
