-- Generated from the migrations in versions/ by `make schema` (PostgreSQL 18). Do not edit.

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
    CONSTRAINT resource_budgets_allocated_amount_check CHECK (((allocated_amount >= (0)::numeric) AND (allocated_amount <> 'NaN'::numeric))),
    CONSTRAINT resource_budgets_base_amount_check CHECK (((base_amount >= (0)::numeric) AND (base_amount <> 'NaN'::numeric))),
    CONSTRAINT resource_budgets_budget_period_check CHECK (((budget_period)::text = ANY ((ARRAY['daily'::character varying, 'weekly'::character varying, 'monthly'::character varying, 'total'::character varying])::text[]))),
    CONSTRAINT resource_budgets_check CHECK ((period_end > period_start)),
    CONSTRAINT resource_budgets_check1 CHECK ((((resource_type)::text <> 'money'::text) OR ((unit)::text = 'CAD'::text))),
    CONSTRAINT resource_budgets_check2 CHECK (((overrun_amount = (0)::numeric) OR (frozen_at IS NOT NULL) OR (NOT hard))),
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

CREATE FUNCTION public.make_usage_partition(name text, bounds text) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I PARTITION OF resource_usage %s', name, bounds);
    EXECUTE format('CREATE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON %I
                    FOR EACH STATEMENT EXECUTE FUNCTION refuse_usage_change()', name);
END;
$$;

CREATE FUNCTION public.missing_periods(p_project uuid, p_types text[], p_day date) RETURNS TABLE(resource_type character varying, budget_period character varying)
    LANGUAGE plpgsql STABLE
    AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT b.resource_type, b.budget_period FROM resource_budgets b
    WHERE b.project_uuid = p_project AND b.resource_type = ANY (p_types) AND b.removed_at IS NULL
    GROUP BY b.resource_type, b.budget_period
    HAVING NOT bool_or(b.period_start <= p_day AND p_day < b.period_end);
END;
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

CREATE FUNCTION public.notify_operations() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('autovibe_operations', NEW.kind);
    RETURN NULL;
END;
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

CREATE FUNCTION public.reserve_budgets(p_project uuid, p_machine uuid, p_at timestamp with time zone, p_types text[], p_amounts numeric[], p_counts jsonb, p_holder text, p_purpose text, p_expires_at timestamp with time zone) RETURNS SETOF public.reservations
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.update_updated_at_column() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END;
$$;

CREATE FUNCTION public.used_on(p_project uuid, p_type text, p_start date, p_end date) RETURNS numeric
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce(sum(CASE WHEN p_type = 'money' THEN cost_cad ELSE amount END), 0) FROM resource_usage
    WHERE project_uuid = p_project AND billing_period_start >= p_start AND billing_period_start < p_end
      AND (p_type = 'money' OR resource_type = p_type)
$$;

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE public.budget_alerts (
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    budget_uuid uuid NOT NULL,
    percent smallint NOT NULL,
    used_amount numeric(24,9) NOT NULL,
    allocated_amount numeric(24,9) NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    delivered_at timestamp with time zone,
    attempts integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone DEFAULT now() NOT NULL,
    last_error text
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
    file_manifest jsonb DEFAULT '{}'::jsonb NOT NULL,
    description text,
    creation_context text,
    size_bytes bigint,
    compression_ratio numeric(5,4),
    verification_status character varying(50) DEFAULT 'pending'::character varying NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    verified_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT checkpoints_carrier_check CHECK (((carrier)::text = ANY ((ARRAY['snapshot'::character varying, 'template'::character varying, 'backup'::character varying])::text[]))),
    CONSTRAINT checkpoints_check CHECK ((parent_checkpoint_uuid <> uuid)),
    CONSTRAINT checkpoints_check1 CHECK ((((verification_status)::text <> 'verified'::text) OR ((vm_id IS NOT NULL) AND (carrier IS NOT NULL)))),
    CONSTRAINT checkpoints_checkpoint_type_check CHECK (((checkpoint_type)::text = ANY ((ARRAY['genesis'::character varying, 'automatic'::character varying, 'manual'::character varying, 'final'::character varying, 'hub_daily'::character varying])::text[]))),
    CONSTRAINT checkpoints_compression_ratio_check CHECK (((compression_ratio >= (0)::numeric) AND (compression_ratio <> 'NaN'::numeric))),
    CONSTRAINT checkpoints_size_bytes_check CHECK ((size_bytes >= 0)),
    CONSTRAINT checkpoints_verification_status_check CHECK (((verification_status)::text = ANY ((ARRAY['pending'::character varying, 'verified'::character varying, 'failed'::character varying, 'pruned'::character varying])::text[])))
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
    CONSTRAINT intelligent_machines_api_calls_check CHECK ((api_calls >= 0)),
    CONSTRAINT intelligent_machines_check CHECK ((enrolled_generation <= generation)),
    CONSTRAINT intelligent_machines_checkpoint_count_check CHECK ((checkpoint_count >= 0)),
    CONSTRAINT intelligent_machines_generation_check CHECK ((generation >= 1)),
    CONSTRAINT intelligent_machines_machine_type_check CHECK (((machine_type)::text = ANY ((ARRAY['claude_code'::character varying, 'aider'::character varying, 'qwen_coder'::character varying, 'hub'::character varying, 'command'::character varying])::text[]))),
    CONSTRAINT intelligent_machines_name_check CHECK (((name)::text ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'::text)),
    CONSTRAINT intelligent_machines_outcome_check CHECK (((outcome)::text = ANY ((ARRAY['succeeded'::character varying, 'failed'::character varying, 'out_of_budget'::character varying, 'stopped'::character varying])::text[]))),
    CONSTRAINT intelligent_machines_status_check CHECK (((status)::text = ANY ((ARRAY['spawning'::character varying, 'active'::character varying, 'working'::character varying, 'checkpointing'::character varying, 'terminated'::character varying])::text[]))),
    CONSTRAINT intelligent_machines_vm_id_check CHECK ((vm_id >= 100))
);

CREATE TABLE public.machine_events (
    id bigint NOT NULL,
    machine_uuid uuid NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    kind character varying(20) NOT NULL,
    text text NOT NULL,
    data jsonb,
    CONSTRAINT machine_events_kind_check CHECK (((kind)::text = ANY ((ARRAY['text'::character varying, 'tool'::character varying, 'system'::character varying, 'error'::character varying])::text[])))
);

ALTER TABLE public.machine_events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.machine_events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
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
    CONSTRAINT operations_attempts_check CHECK ((attempts >= 0)),
    CONSTRAINT operations_check CHECK ((depends_on_uuid <> uuid)),
    CONSTRAINT operations_check1 CHECK (((machine_uuid IS NOT NULL) OR ((kind)::text = ANY ((ARRAY['template'::character varying, 'promote'::character varying])::text[])))),
    CONSTRAINT operations_check2 CHECK ((((status)::text <> 'running'::text) OR ((lease_owner IS NOT NULL) AND (lease_expires_at IS NOT NULL)))),
    CONSTRAINT operations_check3 CHECK ((((status)::text = ANY ((ARRAY['succeeded'::character varying, 'failed'::character varying])::text[])) = (finished_at IS NOT NULL))),
    CONSTRAINT operations_kind_check CHECK (((kind)::text = ANY ((ARRAY['spawn'::character varying, 'checkpoint'::character varying, 'restore'::character varying, 'promote'::character varying, 'terminate'::character varying, 'template'::character varying])::text[]))),
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
    CONSTRAINT prices_tier_above_tokens_check CHECK ((tier_above_tokens >= 0)),
    CONSTRAINT prices_usd_cache_read_check CHECK (((usd_cache_read >= (0)::numeric) AND (usd_cache_read <> 'NaN'::numeric))),
    CONSTRAINT prices_usd_cache_write_1h_check CHECK (((usd_cache_write_1h >= (0)::numeric) AND (usd_cache_write_1h <> 'NaN'::numeric))),
    CONSTRAINT prices_usd_cache_write_5m_check CHECK (((usd_cache_write_5m >= (0)::numeric) AND (usd_cache_write_5m <> 'NaN'::numeric))),
    CONSTRAINT prices_usd_input_check CHECK (((usd_input >= (0)::numeric) AND (usd_input <> 'NaN'::numeric))),
    CONSTRAINT prices_usd_output_check CHECK (((usd_output >= (0)::numeric) AND (usd_output <> 'NaN'::numeric)))
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
    CONSTRAINT projects_greediness_check CHECK (((greediness >= (0)::numeric) AND (greediness <= (1)::numeric) AND (greediness <> 'NaN'::numeric))),
    CONSTRAINT projects_name_check CHECK ((((name)::text <> ''::text) AND ((name)::text = btrim((name)::text)))),
    CONSTRAINT projects_status_check CHECK (((status)::text = ANY ((ARRAY['active'::character varying, 'paused'::character varying, 'completed'::character varying, 'archived'::character varying])::text[])))
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
    CONSTRAINT runs_kind_check CHECK (((kind)::text = ANY ((ARRAY['spawn'::character varying, 'checkpoint'::character varying, 'restore'::character varying, 'promote'::character varying, 'terminate'::character varying, 'template'::character varying])::text[]))),
    CONSTRAINT runs_status_check CHECK (((status)::text = ANY ((ARRAY['running'::character varying, 'succeeded'::character varying, 'failed'::character varying, 'lost'::character varying])::text[])))
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

CREATE TABLE public.usage_keys (
    idempotency_key text NOT NULL,
    usage_uuid uuid NOT NULL,
    recorded_at timestamp with time zone NOT NULL
);

CREATE SEQUENCE public.vm_ids
    AS integer
    START WITH 10000
    INCREMENT BY 1
    MINVALUE 100
    MAXVALUE 999999999
    CACHE 1;

ALTER TABLE ONLY public.resource_usage ATTACH PARTITION public.resource_usage_default DEFAULT;

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY public.budget_alerts
    ADD CONSTRAINT budget_alerts_budget_uuid_percent_key UNIQUE (budget_uuid, percent);

ALTER TABLE ONLY public.budget_alerts
    ADD CONSTRAINT budget_alerts_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT checkpoints_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT checkpoints_template_vm_id_key UNIQUE (template_vm_id);

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
    ADD CONSTRAINT intelligent_machines_vm_id_key UNIQUE (vm_id);

ALTER TABLE ONLY public.machine_events
    ADD CONSTRAINT machine_events_pkey PRIMARY KEY (id);

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

ALTER TABLE ONLY public.prices
    ADD CONSTRAINT prices_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.prices
    ADD CONSTRAINT prices_provider_model_effective_from_tier_above_tokens_key UNIQUE (provider, model, effective_from, tier_above_tokens);

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT projects_name_key UNIQUE (name);

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT projects_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.reservations
    ADD CONSTRAINT reservations_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.resource_budgets
    ADD CONSTRAINT resource_budgets_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.resource_budgets
    ADD CONSTRAINT resource_budgets_project_uuid_resource_type_budget_period_p_key UNIQUE (project_uuid, resource_type, budget_period, period_start);

ALTER TABLE ONLY public.resource_usage
    ADD CONSTRAINT resource_usage_pkey PRIMARY KEY (uuid, recorded_at);

ALTER TABLE ONLY public.resource_usage_default
    ADD CONSTRAINT resource_usage_default_pkey PRIMARY KEY (uuid, recorded_at);

ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (uuid);

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

CREATE INDEX idx_budget_alerts_due ON public.budget_alerts USING btree (next_attempt_at) WHERE (delivered_at IS NULL);

CREATE INDEX idx_checkpoints_created ON public.checkpoints USING btree (created_at DESC);

CREATE INDEX idx_checkpoints_creating_machine ON public.checkpoints USING btree (creating_machine_uuid);

CREATE INDEX idx_checkpoints_parent ON public.checkpoints USING btree (parent_checkpoint_uuid);

CREATE INDEX idx_checkpoints_project ON public.checkpoints USING btree (project_uuid);

CREATE INDEX idx_checkpoints_type ON public.checkpoints USING btree (checkpoint_type);

CREATE INDEX idx_hub_checkpoints_created ON public.hub_checkpoints USING btree (created_at DESC);

CREATE INDEX idx_hub_checkpoints_hub ON public.hub_checkpoints USING btree (hub_instance_uuid);

CREATE INDEX idx_hub_experiments_status ON public.hub_experiments USING btree (status);

CREATE INDEX idx_hub_instances_status ON public.hub_instances USING btree (status);

CREATE INDEX idx_machine_events_machine ON public.machine_events USING btree (machine_uuid, id);

CREATE INDEX idx_machines_project ON public.intelligent_machines USING btree (project_uuid);

CREATE INDEX idx_machines_spawn_time ON public.intelligent_machines USING btree (spawned_at DESC);

CREATE INDEX idx_machines_status ON public.intelligent_machines USING btree (status);

CREATE INDEX idx_machines_type ON public.intelligent_machines USING btree (machine_type);

CREATE INDEX idx_operations_lease ON public.operations USING btree (lease_expires_at) WHERE ((status)::text = 'running'::text);

CREATE INDEX idx_operations_machine ON public.operations USING btree (machine_uuid, seq);

CREATE INDEX idx_operations_queued ON public.operations USING btree (kind, seq) WHERE ((status)::text = 'queued'::text);

CREATE INDEX idx_operations_run ON public.operations USING btree (run_uuid);

CREATE INDEX idx_operations_unfinished_machine ON public.operations USING btree (machine_uuid, seq) WHERE ((status)::text = ANY ((ARRAY['queued'::character varying, 'running'::character varying])::text[]));

CREATE INDEX idx_projects_greediness ON public.projects USING btree (greediness DESC);

CREATE INDEX idx_projects_status ON public.projects USING btree (status);

CREATE INDEX idx_reservations_held ON public.reservations USING btree (expires_at) WHERE ((status)::text = 'held'::text);

CREATE INDEX idx_reservations_machine ON public.reservations USING btree (machine_uuid);

CREATE INDEX idx_reservations_project ON public.reservations USING btree (project_uuid) WHERE ((status)::text = 'held'::text);

CREATE INDEX idx_resource_machine ON ONLY public.resource_usage USING btree (machine_uuid);

CREATE INDEX idx_resource_project_day ON ONLY public.resource_usage USING btree (project_uuid, billing_period_start);

CREATE INDEX idx_resource_project_period ON ONLY public.resource_usage USING btree (project_uuid, recorded_at);

CREATE INDEX idx_resource_type ON ONLY public.resource_usage USING btree (resource_type);

CREATE INDEX idx_task_results_operation ON public.task_results USING btree (operation_uuid, id);

CREATE INDEX idx_task_results_run ON public.task_results USING btree (run_uuid, id);

CREATE UNIQUE INDEX operations_one_running_per_machine ON public.operations USING btree (machine_uuid) WHERE ((status)::text = 'running'::text);

CREATE UNIQUE INDEX resource_budgets_one_total ON public.resource_budgets USING btree (project_uuid, resource_type) WHERE ((budget_period)::text = 'total'::text);

CREATE INDEX resource_usage_default_machine_uuid_idx ON public.resource_usage_default USING btree (machine_uuid);

CREATE INDEX resource_usage_default_project_uuid_billing_period_start_idx ON public.resource_usage_default USING btree (project_uuid, billing_period_start);

CREATE INDEX resource_usage_default_project_uuid_recorded_at_idx ON public.resource_usage_default USING btree (project_uuid, recorded_at);

CREATE INDEX resource_usage_default_resource_type_idx ON public.resource_usage_default USING btree (resource_type);

ALTER INDEX public.idx_resource_machine ATTACH PARTITION public.resource_usage_default_machine_uuid_idx;

ALTER INDEX public.resource_usage_pkey ATTACH PARTITION public.resource_usage_default_pkey;

ALTER INDEX public.idx_resource_project_day ATTACH PARTITION public.resource_usage_default_project_uuid_billing_period_start_idx;

ALTER INDEX public.idx_resource_project_period ATTACH PARTITION public.resource_usage_default_project_uuid_recorded_at_idx;

ALTER INDEX public.idx_resource_type ATTACH PARTITION public.resource_usage_default_resource_type_idx;

CREATE TRIGGER notify_operations AFTER INSERT OR UPDATE OF status ON public.operations FOR EACH ROW EXECUTE FUNCTION public.notify_operations();

CREATE TRIGGER raise_budget_alerts AFTER UPDATE OF used_amount ON public.resource_budgets FOR EACH ROW WHEN (((new.used_amount > old.used_amount) AND ((new.used_amount * (100)::numeric) >= (new.allocated_amount * (LEAST(75, (new.soft_percent)::integer))::numeric)))) EXECUTE FUNCTION public.raise_budget_alerts();

CREATE TRIGGER refuse_usage_change BEFORE DELETE OR UPDATE ON public.resource_usage FOR EACH ROW EXECUTE FUNCTION public.refuse_usage_change();

CREATE TRIGGER refuse_usage_change BEFORE DELETE OR UPDATE ON public.usage_keys FOR EACH ROW EXECUTE FUNCTION public.refuse_usage_change();

CREATE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON public.resource_usage FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_usage_change();

CREATE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON public.resource_usage_default FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_usage_change();

CREATE TRIGGER refuse_usage_truncate BEFORE TRUNCATE ON public.usage_keys FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_usage_change();

CREATE TRIGGER update_budgets_updated_at BEFORE UPDATE ON public.resource_budgets FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();

CREATE TRIGGER update_projects_updated_at BEFORE UPDATE ON public.projects FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();

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

ALTER TABLE ONLY public.machine_events
    ADD CONSTRAINT machine_events_machine_uuid_fkey FOREIGN KEY (machine_uuid) REFERENCES public.intelligent_machines(uuid);

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
    ADD CONSTRAINT resource_usage_machine_uuid_fkey FOREIGN KEY (machine_uuid) REFERENCES public.intelligent_machines(uuid);

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
