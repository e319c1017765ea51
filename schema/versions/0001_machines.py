"""Projects, machines, checkpoints, hubs: the nouns, and the cycles between them."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade():
    op.execute(MACHINES)
    op.execute(BELONGINGS)
    op.execute(HUBS)
    op.execute(TRIGGERS)


MACHINES = """
-- This installation, one row; its id stands in the description of every VM that it makes.
CREATE TABLE installation (
    id SMALLINT PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    uuid UUID NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
INSERT INTO installation DEFAULT VALUES;

-- A VM id is never used twice: Proxmox's "next free id" is a race, and gives a dead machine's id to a living one.
CREATE SEQUENCE vm_ids AS INTEGER MINVALUE 100 START 10000 MAXVALUE 999999999;

CREATE TABLE projects (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name VARCHAR(255) NOT NULL UNIQUE CHECK (name <> '' AND name = btrim(name)),
    greediness NUMERIC(3,2) NOT NULL DEFAULT 0.50
        CHECK (greediness >= 0 AND greediness <= 1 AND greediness <> 'NaN'),
    status VARCHAR(50) NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused', 'completed', 'archived')),
    description TEXT,
    initial_checkpoint_uuid UUID,
    current_checkpoint_uuid UUID,
    metadata JSONB NOT NULL DEFAULT '{}',
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE intelligent_machines (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    -- the VM's name: a DNS label
    name VARCHAR(63) NOT NULL CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    machine_type VARCHAR(50) NOT NULL
        CHECK (machine_type IN ('claude_code', 'aider', 'qwen_coder', 'hub', 'command')),
    status VARCHAR(50) NOT NULL DEFAULT 'spawning'
        CHECK (status IN ('spawning', 'active', 'working', 'checkpointing', 'terminated')),
    outcome VARCHAR(50) CHECK (outcome IN ('succeeded', 'failed', 'out_of_budget', 'stopped')),
    project_uuid UUID NOT NULL REFERENCES projects (uuid),
    parent_checkpoint_uuid UUID,
    vm_id INTEGER UNIQUE CHECK (vm_id >= 100),
    node VARCHAR(63),
    hub_vm_id INTEGER,
    network_slot INTEGER,
    original_prompt TEXT,
    assignment JSONB NOT NULL DEFAULT '{}',
    file_modifications JSONB NOT NULL DEFAULT '{}',
    resource_constraints JSONB NOT NULL DEFAULT '{}',
    resource_usage JSONB NOT NULL DEFAULT '{}',
    current_progress TEXT,
    error_message TEXT,
    last_checkpoint_uuid UUID,
    checkpoint_count INTEGER NOT NULL DEFAULT 0 CHECK (checkpoint_count >= 0),
    -- raised by every restore; tokens of an older generation are refused
    generation INTEGER NOT NULL DEFAULT 1 CHECK (generation >= 1),
    enrolled_generation INTEGER CHECK (enrolled_generation <= generation),
    enrolled_nonce TEXT,
    enrolled_at TIMESTAMPTZ,
    last_heartbeat_at TIMESTAMPTZ,
    api_calls INTEGER NOT NULL DEFAULT 0 CHECK (api_calls >= 0),
    stop_requested_at TIMESTAMPTZ,
    stop_reason TEXT,
    result JSONB NOT NULL DEFAULT '{}',
    spawned_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    terminated_at TIMESTAMPTZ,
    metadata JSONB NOT NULL DEFAULT '{}',
    UNIQUE (project_uuid, name)
);

CREATE TABLE checkpoints (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    project_uuid UUID NOT NULL REFERENCES projects (uuid),
    parent_checkpoint_uuid UUID REFERENCES checkpoints (uuid) CHECK (parent_checkpoint_uuid <> uuid),
    creating_machine_uuid UUID REFERENCES intelligent_machines (uuid),
    checkpoint_type VARCHAR(50) NOT NULL
        CHECK (checkpoint_type IN ('genesis', 'automatic', 'manual', 'final', 'hub_daily')),
    proxmox_snapshot_id VARCHAR(255),
    vm_id INTEGER,
    node VARCHAR(63),
    carrier VARCHAR(20) CHECK (carrier IN ('snapshot', 'template', 'backup')),
    -- the template that a snapshot was promoted to
    template_vm_id INTEGER UNIQUE,
    file_manifest JSONB NOT NULL DEFAULT '{}',
    description TEXT,
    creation_context TEXT,
    size_bytes BIGINT CHECK (size_bytes >= 0),
    compression_ratio NUMERIC(5,4) CHECK (compression_ratio >= 0 AND compression_ratio <> 'NaN'),
    verification_status VARCHAR(50) NOT NULL DEFAULT 'pending'
        CHECK (verification_status IN ('pending', 'verified', 'failed', 'pruned')),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    verified_at TIMESTAMPTZ,
    metadata JSONB NOT NULL DEFAULT '{}',
    -- what is called verified says where it is
    CHECK (verification_status <> 'verified' OR (vm_id IS NOT NULL AND carrier IS NOT NULL))
);

-- These close cycles, so they are checked at commit.
ALTER TABLE projects
    ADD FOREIGN KEY (initial_checkpoint_uuid) REFERENCES checkpoints (uuid) DEFERRABLE INITIALLY DEFERRED,
    ADD FOREIGN KEY (current_checkpoint_uuid) REFERENCES checkpoints (uuid) DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE intelligent_machines
    ADD FOREIGN KEY (parent_checkpoint_uuid) REFERENCES checkpoints (uuid) DEFERRABLE INITIALLY DEFERRED,
    ADD FOREIGN KEY (last_checkpoint_uuid) REFERENCES checkpoints (uuid) DEFERRABLE INITIALLY DEFERRED;

CREATE INDEX idx_projects_greediness ON projects (greediness DESC);
CREATE INDEX idx_projects_status ON projects (status);
CREATE INDEX idx_machines_status ON intelligent_machines (status);
CREATE INDEX idx_machines_project ON intelligent_machines (project_uuid);
CREATE INDEX idx_machines_spawn_time ON intelligent_machines (spawned_at DESC);
CREATE INDEX idx_machines_type ON intelligent_machines (machine_type);
CREATE INDEX idx_checkpoints_project ON checkpoints (project_uuid);
CREATE INDEX idx_checkpoints_parent ON checkpoints (parent_checkpoint_uuid);
CREATE INDEX idx_checkpoints_created ON checkpoints (created_at DESC);
CREATE INDEX idx_checkpoints_type ON checkpoints (checkpoint_type);
CREATE INDEX idx_checkpoints_creating_machine ON checkpoints (creating_machine_uuid);
"""

BELONGINGS = """
-- Places on the machines' network; free while machine_uuid is null.
CREATE TABLE machine_slots (
    slot INTEGER PRIMARY KEY CHECK (slot >= 0),
    machine_uuid UUID UNIQUE REFERENCES intelligent_machines (uuid),
    ip TEXT NOT NULL UNIQUE,
    mac TEXT NOT NULL UNIQUE CHECK (mac ~ '^[0-9A-F]{2}(:[0-9A-F]{2}){5}$'),
    released_at TIMESTAMPTZ
);

CREATE TABLE templates (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name VARCHAR(63) NOT NULL CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    -- a hash of what the template was made from
    inputs VARCHAR(64) NOT NULL,
    status VARCHAR(20) NOT NULL DEFAULT 'ready' CHECK (status IN ('building', 'ready', 'failed', 'retired')),
    vm_id INTEGER UNIQUE CHECK (vm_id >= 100),
    node VARCHAR(63),
    metadata JSONB NOT NULL DEFAULT '{}',
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    UNIQUE (name, inputs)
);

CREATE TABLE machine_events (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    machine_uuid UUID NOT NULL REFERENCES intelligent_machines (uuid),
    at TIMESTAMPTZ NOT NULL DEFAULT now(),
    kind VARCHAR(20) NOT NULL CHECK (kind IN ('text', 'tool', 'system', 'error')),
    text TEXT NOT NULL,
    data JSONB
);
CREATE INDEX idx_machine_events_machine ON machine_events (machine_uuid, id);
"""

HUBS = """
CREATE TABLE hub_instances (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    hub_type VARCHAR(50) NOT NULL CHECK (hub_type IN ('primary', 'development', 'experimental', 'domain_specific')),
    status VARCHAR(50) NOT NULL CHECK (status IN ('active', 'inactive', 'experimental', 'retiring')),
    vm_id INTEGER UNIQUE,
    version VARCHAR(50),
    config JSONB NOT NULL DEFAULT '{}',
    parent_hub_uuid UUID REFERENCES hub_instances (uuid),
    experiment_uuid UUID,
    spawned_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_checkpoint_at TIMESTAMPTZ,
    terminated_at TIMESTAMPTZ,
    metadata JSONB NOT NULL DEFAULT '{}'
);

CREATE TABLE hub_checkpoints (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    hub_instance_uuid UUID NOT NULL REFERENCES hub_instances (uuid),
    checkpoint_type VARCHAR(50) NOT NULL
        CHECK (checkpoint_type IN ('daily', 'manual', 'pre_experiment', 'recovery')),
    proxmox_snapshot_id VARCHAR(255) NOT NULL,
    trigger_reason TEXT,
    system_metrics JSONB NOT NULL DEFAULT '{}',
    active_machines_count INTEGER NOT NULL DEFAULT 0 CHECK (active_machines_count >= 0),
    active_projects_count INTEGER NOT NULL DEFAULT 0 CHECK (active_projects_count >= 0),
    size_gb NUMERIC(8,4) CHECK (size_gb >= 0 AND size_gb <> 'NaN'),
    verification_status VARCHAR(50) NOT NULL DEFAULT 'pending'
        CHECK (verification_status IN ('pending', 'verified', 'failed', 'pruned')),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    verified_at TIMESTAMPTZ,
    metadata JSONB NOT NULL DEFAULT '{}'
);

CREATE TABLE hub_experiments (
    uuid UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    experiment_name VARCHAR(255) NOT NULL,
    description TEXT,
    base_checkpoint_uuid UUID NOT NULL REFERENCES hub_checkpoints (uuid),
    original_hub_uuid UUID NOT NULL REFERENCES hub_instances (uuid),
    experimental_hub_uuid UUID REFERENCES hub_instances (uuid),
    config_changes JSONB NOT NULL DEFAULT '{}',
    success_metrics JSONB NOT NULL DEFAULT '{}',
    performance_data JSONB NOT NULL DEFAULT '{}',
    status VARCHAR(50) NOT NULL CHECK (status IN ('planned', 'running', 'completed', 'failed')),
    duration_days INTEGER NOT NULL DEFAULT 14 CHECK (duration_days > 0),
    started_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ,
    results VARCHAR(50) CHECK (results IN ('experimental_wins', 'original_wins', 'inconclusive')),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    metadata JSONB NOT NULL DEFAULT '{}'
);
ALTER TABLE hub_instances
    ADD FOREIGN KEY (experiment_uuid) REFERENCES hub_experiments (uuid) DEFERRABLE INITIALLY DEFERRED;

CREATE INDEX idx_hub_instances_status ON hub_instances (status);
CREATE INDEX idx_hub_checkpoints_hub ON hub_checkpoints (hub_instance_uuid);
CREATE INDEX idx_hub_checkpoints_created ON hub_checkpoints (created_at DESC);
CREATE INDEX idx_hub_experiments_status ON hub_experiments (status);
"""

TRIGGERS = """
CREATE FUNCTION update_updated_at_column() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END;
$$;

CREATE TRIGGER update_projects_updated_at BEFORE UPDATE ON projects
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
"""
