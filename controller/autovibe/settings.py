"""Settings: from the caller, the environment, files named by the environment, and `autovibe.toml`, in this order.

Every field can be set by `AUTOVIBE_<FIELD>`; a secret also by `AUTOVIBE_<FIELD>_FILE`, the path of a file that holds
it. The file is `$AUTOVIBE_CONFIG`, or `autovibe.toml` in the state folder.
"""

from __future__ import annotations

import ipaddress
import os
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from autovibe.errors import SettingsError

PREFIX = "AUTOVIBE_"


def project_root() -> Path:
    """The folder with `ansible.cfg`: `$AUTOVIBE_PROJECT_ROOT`, this checkout, or the current folder."""
    if named := os.environ.get("AUTOVIBE_PROJECT_ROOT"):
        return Path(named).absolute()
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "ansible.cfg").exists() else Path.cwd()


def default_state_dir() -> Path:
    """`.autovibe` in a checkout, else `$XDG_STATE_HOME/autovibe`."""
    root = project_root()
    if (root / "ansible.cfg").exists():
        return root / ".autovibe"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "autovibe"


def _from_env(name: str) -> Any:
    """A field that has a well-known variable of its own besides `AUTOVIBE_<NAME>`."""
    return AliasChoices(name, f"{PREFIX}{name.upper()}", name.upper())


class ProviderSetting(BaseModel):
    """An AI provider beside the built-in one: a `[[providers]]` table of autovibe.toml.

    `url` is what the provider's own clients are told: for kind `openai` it ends before `/chat/completions`, for kind
    `anthropic` before `/v1/messages`.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    kind: Literal["anthropic", "openai"]
    url: str = Field(pattern=r"^https?://")
    key_file: Path | None = Field(None, description="a file with its key; None: it wants none")
    models: list[str] = Field(min_length=1, description="the models it serves; * stands for any characters")
    prices: str | None = Field(None, description="its name in the prices; default: anthropic, or its own name")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="which one bounds its output (kind openai)"
    )
    default_max_tokens: int = Field(8192, ge=1, description="for a call that names none (kind openai)")
    image_tokens: int | None = Field(None, ge=1, description="the most that an image costs; None: images are refused")

    @property
    def price_provider(self) -> str:
        return self.prices or ("anthropic" if self.kind == "anthropic" else self.name)


class Settings(BaseSettings):
    """What one installation is told; see the fields. Secrets are `SecretStr`: `.get_secret_value()`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", populate_by_name=True, env_ignore_empty=True)

    project_root: Path = Field(default_factory=project_root)
    state_dir: Path = Field(default_factory=default_state_dir)
    inventory: Path | None = Field(None, validate_default=True, description="Default: inventory/lab")

    database_url: SecretStr | None = Field(None, description="postgresql://…; None: the embedded server")
    postgres_bin: Path | None = Field(None, description="Folder of initdb and pg_ctl for the embedded server")

    hub_bind: str = "127.0.0.1"
    hub_port: int = Field(18000, ge=1, le=65535)
    hub_processes: int = Field(
        default_factory=lambda: max(1, min(4, (os.cpu_count() or 1) // 2)),
        ge=1,
        le=64,
        description="that serve machines on hub_port; default: one for each two processors, at most 4",
    )
    hub_url_for_guests: str = "https://192.168.100.2:8000"
    machine_network: ipaddress.IPv4Network = ipaddress.IPv4Network("192.168.100.0/24")
    first_slot: int = Field(10, ge=3, description="The first machine's host number in machine_network")

    api_bind: str | None = Field(
        None, description="Where people's API listens; None: on the state folder's socket only"
    )
    api_port: int = Field(18001, ge=0, le=65535, description="0: any that is free")
    api_tls: bool = Field(True, description="with a certificate of the hub's CA")
    api_insecure: bool = Field(False, description="Let the API listen on a public address without TLS")
    api_names: tuple[str, ...] = Field((), description="Names and addresses that people reach the hub by")
    api_proxy: tuple[IPvAnyNetwork, ...] = Field((), description="Proxies in front, whose X-Forwarded-For holds")
    api_cors_origins: tuple[str, ...] = Field((), description="Web pages' origins that may call the API")
    api_rate_limit: str = Field("200/second", description="Requests of one user or key")
    api_failure_limit: str = Field("60/minute", description="Keys and tokens from one address that fit nobody")

    anthropic_api_key: SecretStr | None = Field(None, validation_alias=_from_env("anthropic_api_key"))
    anthropic_admin_key: SecretStr | None = Field(None, description="for `autovibe reconcile`: sk-ant-admin…")
    upstream_url: str = "https://api.anthropic.com"
    upstream_timeout_seconds: float = Field(600, gt=0)
    demo_model_url: str | None = Field(None, description="Upstream without a key; default: the lab's model-port")
    demo_model_key_file: Path | None = Field(None, description="Default: model-key in the lab's folder")
    providers: list[ProviderSetting] = Field([], description="asked in this order, before the built-in one")
    machine_calls_per_minute: int = Field(300, ge=0, description="model calls of one machine; 0: no limit")
    machine_calls_at_once: int = Field(32, ge=0, description="of one machine; 0: no limit")
    gateway_audit: bool = Field(True, description="one line for each model call, without its content")
    gateway_audit_path: Path | None = Field(None, description="Default: calls.log in the state folder's log/")
    web_searches_per_call: int = Field(0, ge=0, le=100, description="that the provider may make; 0: none")
    call_hold_seconds: int = Field(300, ge=10, description="how long the money of a killed gateway's call stays held")
    min_useful_output_tokens: int = Field(256, ge=1, description="max_tokens is never lowered below this")
    reservation_wait_seconds: float = Field(20, ge=0, description="for money that calls under way hold")

    hub_smbios_uuid: UUID | None = Field(
        None, description="Of the VM that the hub runs in; default: what root reads in /sys/class/dmi/id/product_uuid"
    )
    hub_checkpoint_hour: Annotated[int, Field(ge=0, le=23)] | Literal["never"] = Field(
        3, description="of the hub's daily checkpoint, in its project's time zone; never: by hand only"
    )

    worker_concurrency: int = Field(4, ge=1, description="ansible-runner runs at a time")
    worker_batch: int = Field(20, ge=1, description="operations in one run")
    lease_seconds: int = Field(60, ge=5)
    heartbeat_seconds: int = Field(15, ge=1)

    clone_depth_most: int = Field(8, ge=1, description="linked clones on each other; the next one is a full clone")
    verify_seconds: int = Field(3600, ge=1, description="how often Proxmox is asked whether all checkpoints are there")
    prune_seconds: int = Field(6 * 3600, ge=1, description="how often old checkpoints are removed")
    runs_kept: int = Field(50, ge=1, description="folders of ended runs kept in the state folder")

    min_spawn_cad: Decimal = Field(Decimal("0.01"), ge=0, description="A machine is refused when less is available")
    machine_boot_seconds: int = Field(900, ge=1, description="A machine that has not enrolled by then is ended")
    machine_revive_seconds: int = Field(
        180, ge=1, description="A machine that is silent, or does not enrol, for so long is started again"
    )
    machine_silence_seconds: int = Field(600, ge=1, description="A machine without a heartbeat for so long is ended")
    compute_rates_file: Path | None = Field(None, description="What machines cost, over the defaults; TOML")
    runtime_ahead_seconds: int = Field(300, ge=60, description="A machine's runtime is reserved so far ahead")
    meter_seconds: int = Field(60, ge=1, description="How often the fleet is read and running VMs are booked")
    storage_meter_seconds: int = Field(3600, ge=1, description="How often VMs are booked that do not run")
    breaker_failures: int = Field(5, ge=1, description="So many machines that fail in a row: no new ones until a reset")
    breaker_seconds: int = Field(120, ge=1, description="after having worked for less than this")
    assumed_disk_gb: int = Field(8, ge=1, description="A VM's disk, until it has been read")

    vm_id_first: int = Field(10000, ge=100, le=999_000_000)
    default_cores: int = Field(2, ge=1)
    default_memory: int = Field(None, ge=64, validate_default=True, description="MiB; default: the template's")
    default_template: str = Field(None, validate_default=True, description="Default: the lab's, or role vm_template's")
    default_model: str = "claude-sonnet-5-5"

    week_start: int = Field(1, ge=1, le=7, description="of weekly budgets: 1 is Monday, 7 is Sunday")
    alert_webhook_url: str | None = Field(None, description="gets a POST when a budget reaches a level")
    alert_webhook_secret: SecretStr | None = Field(None, description="signs it")
    usage_months_ahead: int = Field(3, ge=1, le=24, description="ledger partitions made ahead")
    prices_file: Path | None = Field(None, description="prices of your own, before all others: docs/money.md")
    unknown_model: Literal["refuse", "dearest"] = Field("refuse", description="or priced at the dearest known")
    usd_to_cad: Decimal | None = Field(None, gt=0, description="Use this exchange rate instead of the ECB's")
    rate_stale_days: int = Field(10, ge=1, description="after which an exchange rate gets the margin")
    rate_margin_percent: Decimal = Field(Decimal(0), ge=0, le=100, description="added to a stale exchange rate")
    installation_id: str | None = Field(None, description="Only to check: the id is kept in the database")

    @field_validator("state_dir", "project_root")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("inventory")
    @classmethod
    def _default_inventory(cls, value: Path | None, info: Any) -> Path:
        root = info.data["project_root"]
        return root / "inventory" / "lab" if value is None else (root / value.expanduser()).absolute()

    @field_validator("default_memory", "default_template", mode="before")
    @classmethod
    def _of_the_inventory(cls, value: Any, info: Any) -> Any:
        """Without a site of one's own, machines are the lab's."""
        if value is not None:
            return value
        lab = info.data.get("inventory") == info.data.get("project_root", Path()) / "inventory" / "lab"
        memory, template = (1024, "autovibe-guest") if lab else (4096, "claude-code-template")
        return memory if info.field_name == "default_memory" else template

    @property
    def schema_dir(self) -> Path:
        """The folder of the Alembic migrations."""
        return self.project_root / "schema"

    @property
    def api_socket(self) -> Path:
        """Where the hub's people's API listens for the owner of the state folder."""
        return self.run_dir / "api.sock"

    @property
    def lab_dir(self) -> Path:
        return self.state_dir / "lab"

    @property
    def hub_dir(self) -> Path:
        return self.state_dir / "hub"

    @property
    def runs_dir(self) -> Path:
        return self.state_dir / "runs"

    @property
    def pg_dir(self) -> Path:
        return self.state_dir / "pg"

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "log"

    @property
    def run_dir(self) -> Path:
        return self.state_dir / "run"

    @property
    def metrics_dir(self) -> Path:
        """Where the processes of the machines' listener keep how long requests took."""
        return self.run_dir / "metrics"

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: Any, env_settings: Any, **_: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls, toml_file=config_file(init_settings.init_kwargs))
        return init_settings, env_settings, SecretFilesSource(settings_cls), toml


class SecretFilesSource(PydanticBaseSettingsSource):
    """`AUTOVIBE_<FIELD>_FILE`: the value is that file's content, without the newline at its end."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        names = [f"{PREFIX}{field_name.upper()}"]
        if isinstance(field.validation_alias, AliasChoices):
            names += [choice for choice in field.validation_alias.choices if str(choice).isupper()]
        for name in names:
            if path := os.environ.get(f"{name}_FILE"):
                return self._read(f"{name}_FILE", path), field_name, False
        return None, field_name, False

    @staticmethod
    def _read(variable: str, path: str) -> str:
        try:
            content = Path(path).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise SettingsError(f"{variable} names {path}, which cannot be read: {reason}") from None
        if not content:
            raise SettingsError(f"{variable} names {path}, which is empty")
        return content

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields.items()
        values = {name: self.get_field_value(field, name)[0] for name, field in fields if name != "state_dir"}
        return {name: value for name, value in values.items() if value is not None}


def config_file(given: dict[str, Any]) -> Path:
    """Where `autovibe.toml` is, for settings made with these arguments."""
    if named := os.environ.get("AUTOVIBE_CONFIG"):
        path = Path(named).expanduser()
        if not path.is_file():
            raise SettingsError(f"AUTOVIBE_CONFIG names {path}, which is not a file")
        return path
    state = given.get("state_dir") or os.environ.get("AUTOVIBE_STATE_DIR") or default_state_dir()
    return Path(state).expanduser() / "autovibe.toml"


def load_settings(**given: Any) -> Settings:
    """The settings, or `SettingsError` with one line that names the field (never its value)."""
    import tomllib

    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"There is no setting named {field!r}", f"Check {config_file(given)}.") from None
        raise SettingsError(f"Setting {field!r} is wrong: {first['msg']}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config_file(given)} is not valid TOML: {error}") from None
