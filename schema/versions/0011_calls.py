"""Reservations of many calls made and ended by one statement each."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(RESERVE)
    op.execute(CALLS)
    op.execute(END)


RESERVE = """
-- The caller names the reservation: it can be ended even when the answer to its making was lost.
DROP FUNCTION reserve_budgets(UUID, UUID, TIMESTAMPTZ, TEXT[], NUMERIC[], JSONB, TEXT, TEXT, TIMESTAMPTZ);

-- Hold an amount of each type in every budget that applies; no row when one of them lacks it. Nothing is locked while a
-- period's row is missing, for another transaction may be making it.
CREATE FUNCTION reserve_budgets(
    p_uuid UUID, p_project UUID, p_machine UUID, p_at TIMESTAMPTZ, p_types TEXT[], p_amounts NUMERIC[], p_counts JSONB,
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
        (uuid, project_uuid, machine_uuid, day, amounts, amount_cad, holder, purpose, expires_at)
    VALUES (p_uuid, p_project, p_machine, today, p_counts, (wanted ->> 'money')::NUMERIC, p_holder, p_purpose,
            p_expires_at)
    RETURNING *;
END;
$$;
"""

CALLS = """
-- Patterns of the models that its machines may use, * for any characters; NULL: all that have a price.
ALTER TABLE projects ADD COLUMN models TEXT[] CHECK (cardinality(models) > 0);

CREATE INDEX idx_reservations_calls ON reservations (machine_uuid, created_at) WHERE purpose = 'ai_call';
CREATE INDEX idx_reservations_held_calls ON reservations (machine_uuid) WHERE status = 'held' AND purpose = 'ai_call';

CREATE FUNCTION model_matches(p_patterns TEXT[], p_names TEXT[]) RETURNS BOOLEAN LANGUAGE sql IMMUTABLE AS $$
    SELECT EXISTS (
        SELECT FROM unnest(p_patterns) AS pattern, unnest(p_names) AS name
        WHERE name LIKE replace(regexp_replace(pattern, '([\\\\%_])', '\\\\\\1', 'g'), '*', '%'))
$$;

-- Hold the worst case of each call, by the machine and the generation of it that its token names: whether these may
-- call, and this model, is decided here together with the money. A row for each call, in their order. Outcome:
-- held; short: of money; ended: the machine has; old: the token is; model: the project does not allow it; busy, fast: the
-- machine has too many calls under way, or in the last minute (0: no limit), and may try again in some seconds;
-- checkpointing: the machine is, and the call does not say that it goes on anyway.
CREATE FUNCTION reserve_calls(
    p_uuids UUID[], p_machines UUID[], p_generations INTEGER[], p_amounts NUMERIC[], p_holders TEXT[], p_models TEXT[],
    p_priced_as TEXT[], p_anyway BOOLEAN[], p_expires_at TIMESTAMPTZ, p_per_minute INTEGER, p_at_once INTEGER
) RETURNS TABLE (outcome TEXT, project_uuid UUID, models TEXT[], seconds INTEGER) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    machine RECORD;
    since TIMESTAMPTZ;
BEGIN
    IF cardinality(p_uuids) > 1 THEN
        -- All that any of them will need, in the order in which everybody takes them.
        LOCK TABLE resource_budgets IN ROW EXCLUSIVE MODE;
        PERFORM FROM resource_budgets b WHERE b.removed_at IS NULL AND b.resource_type IN ('money', 'api_calls')
            AND b.project_uuid IN (SELECT m.project_uuid FROM intelligent_machines m WHERE m.uuid = ANY (p_machines))
        ORDER BY b.uuid FOR NO KEY UPDATE;
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
                ARRAY[p_amounts[n], 1], '{"api_calls": "1"}', p_holders[n], 'ai_call', p_expires_at);
            outcome := CASE WHEN FOUND THEN 'held' ELSE 'short' END;
        END IF;
        RETURN NEXT;
    END LOOP;
END;
$$;
"""

END = """
-- End reservations: each {"reservation", "status", "lines", "metadata"}, with the ledger lines of what was billed.
-- Status: settled, released or reaped; only what is held is released or reaped, and what was settled stays as it is.
-- A reservation that was reaped and is settled after all takes back what the reaper wrote. A bill above the reservation
-- is booked whole and freezes. A row for each that was ended: what it was before, what was billed, the budgets that froze.
CREATE FUNCTION end_reservations(p_ends JSONB)
RETURNS TABLE (reservation UUID, was VARCHAR, billed NUMERIC, froze TEXT[]) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    mine reservations[];
    booked JSONB;
    frozen JSONB;
BEGIN
    -- First of all, as everybody does: a budget that comes late may wait for what is held here.
    LOCK TABLE resource_budgets IN ROW EXCLUSIVE MODE;
    p_ends := (SELECT jsonb_agg(e) FROM (
        SELECT DISTINCT ON (e ->> 'reservation') e FROM jsonb_array_elements(p_ends) AS e) AS once);
    SELECT array_agg(r) INTO mine FROM (
        SELECT r.* FROM reservations r JOIN jsonb_array_elements(p_ends) e ON r.uuid = (e ->> 'reservation')::UUID
        WHERE r.status = 'held' OR (e ->> 'status' = 'settled' AND r.status <> 'settled')
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

    -- The counts of machines after the budgets, in one order.
    PERFORM FROM intelligent_machines m WHERE m.uuid IN (
        SELECT r.machine_uuid FROM unnest(mine) r WHERE booked -> r.uuid::TEXT ? 'api_calls'
    ) ORDER BY m.uuid FOR NO KEY UPDATE;
    UPDATE intelligent_machines m SET api_calls = m.api_calls + c.calls FROM (
        SELECT r.machine_uuid, sum((booked #>> ARRAY[r.uuid::TEXT, 'api_calls'])::NUMERIC)::INTEGER AS calls
        FROM unnest(mine) r GROUP BY 1
    ) AS c WHERE m.uuid = c.machine_uuid AND c.calls <> 0;

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
