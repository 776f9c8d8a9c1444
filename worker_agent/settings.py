"""Settings of a worker agent: one TOML file, overridden by environment variables `FEDLOOM_WORKER_…`.

Only the names of data sets and models and the limits of the policy are ever sent.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from federated.bounds import MAX_SMALL
from federated.names import Name, normal_form
from federated.protocol import MAX_OFFERED
from worker_agent.origins import bare_origin

DEFAULT_FILE = Path("worker-agent.toml")
FILE_VARIABLE = "FEDLOOM_WORKER_CONFIG"
USUAL_COLUMNS = ("text", "text_pair", "label", "instruction", "input", "output")
"""Columns that may be read of a data set whose owner lists none."""
MIN_EXAMPLES = 32
MIN_HELD_OUT = 10
DATA_ENTRIES = ("identity", "outbox", "memory", "cache", "approved.json", "asked", "agent.lock")
"""Entries of an agent's data folder."""


class Section(BaseModel):
    """Base of the tables in the file. Unknown keys are refused, so that a typo is not a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DatasetSettings(Section):
    """One data set by name. Exactly one of `path` (JSONL, JSON, CSV, Parquet, a `datasets` folder) or `hub`.

    `columns` are those that federations may read: a list of the file's columns, or a table from the columns of a task
    (text, text_pair, label, or those of a template) to the file's. Without it, only those of `USUAL_COLUMNS`.
    Without a `test_path`, the fraction `held_out` of the rows is drawn by `split_seed` and never trained on.
    """

    path: Path | None = None
    test_path: Path | None = None
    hub: str | None = None
    hub_subset: str | None = None
    hub_split: str = "train"
    columns: tuple[str, ...] | dict[str, str] | None = None
    held_out: float = Field(default=0.1, ge=0, lt=1)
    split_seed: int = 0

    @property
    def readable(self) -> dict[str, str]:
        """Column of a task -> column of the file."""
        if isinstance(self.columns, dict):
            return dict(self.columns)
        return {name: name for name in (USUAL_COLUMNS if self.columns is None else self.columns)}


class PolicySettings(Section):
    """Rules of this node's owner. A job that breaks one is declined with the rule's name.

    Limits apply to every kind of job. A job whose algorithm does not state its effort exceeds them.
    Below `min_examples` no update and no metric is sent, below `min_held_out` no evaluation.
    """

    approve: Literal["always", "ask"] = "always"
    algorithms: tuple[str, ...] | None = Field(
        default=None, description="null: every algorithm of Fedloom itself, and none of another distribution"
    )
    datasets: tuple[Name, ...] | None = None
    max_rank: int | None = Field(default=None, ge=1, le=MAX_SMALL)
    max_local_steps: int | None = Field(default=None, ge=1, description="of the optimizer, in any job")
    max_passes: int | None = Field(
        default=None,
        ge=1,
        description="over the examples, in addition to the limit on steps; null: 100 if steps are limited",
    )
    max_job_seconds: float | None = Field(
        default=24 * 3600.0, gt=0, description="from the start of the job to its result"
    )
    min_examples: int = Field(default=MIN_EXAMPLES, ge=1)
    min_held_out: int = Field(default=MIN_HELD_OUT, ge=1)
    max_download_bytes: int | None = Field(default=None, ge=1, description="of one job's instruction")
    organizations: tuple[Name, ...] | None = Field(default=None, description="names of owners that may use this node")


class AgentSettings(BaseSettings):
    """All settings. Relative paths are relative to the settings file."""

    model_config = SettingsConfigDict(env_prefix="FEDLOOM_WORKER_", env_nested_delimiter="__", extra="forbid")

    url: HttpUrl = HttpUrl("http://127.0.0.1:8000")
    hosts: tuple[str, ...] = Field(
        default=(),
        description="origins besides the coordinator's that transfers may go to: https://store.example.org",
    )
    name: Name = "worker"
    folder: Path = Field(default=Path("worker-data"), description="key, memory, outbox and cache of this worker")
    ca_file: Path | None = Field(default=None, description="certificates to trust instead of the system's")
    client_certificate: Path | None = Field(default=None, description="PEM with chain, for servers that request one")
    client_key: Path | None = Field(default=None, description="PEM of its private key, without a passphrase")
    slots: Annotated[int, Field(ge=1, le=64)] = 1
    datasets: dict[Name, DatasetSettings] = Field(default_factory=dict, max_length=MAX_OFFERED)
    models: dict[Annotated[str, Field(max_length=512)], str] = Field(
        default_factory=dict,
        max_length=MAX_OFFERED,
        description="base models allowed: id in a federation -> local folder, hub id, or hub id@revision",
    )
    policy: PolicySettings = PolicySettings()
    device: str = Field(default="auto", description="auto, cpu, mps, cuda, cuda:1 …")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    gradient_checkpointing: bool = False
    training_threads: Annotated[int, Field(ge=1, le=1024)] = 1
    jobs_per_executor: Annotated[int, Field(ge=1)] = 200
    executor_growth_bytes: Annotated[int, Field(ge=0)] = 4 * 1024**3
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 10.0
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    lease_wait_seconds: Annotated[float, Field(ge=0, le=30)] = 20.0
    stop_seconds: Annotated[float, Field(ge=0)] = Field(
        default=10.0, description="after SIGTERM: time for a running job to finish before its lease is returned"
    )
    cancel_seconds: Annotated[float, Field(ge=0)] = Field(
        default=10.0, description="time for an executor to leave a canceled job before it is killed"
    )
    cache_bytes: Annotated[int, Field(ge=0)] = Field(default=8 * 1024**3, description="of downloaded instructions")
    log_format: Literal["auto", "json", "console"] = "auto"

    @field_validator("url")
    @classmethod
    def _http(cls, value: HttpUrl) -> HttpUrl:
        if value.scheme not in {"http", "https"}:
            raise ValueError("must be an http or https URL")
        return value

    @field_validator("datasets", mode="before")
    @classmethod
    def _differ(cls, value: object) -> object:
        """Refuse two names that are the same in normal form: one of them would be ignored silently."""
        names = [normal_form(str(name)) for name in value] if isinstance(value, Mapping) else []
        if len(set(names)) < len(names):
            raise ValueError("two data sets have one name, written in two forms of Unicode")
        return value

    @field_validator("hosts")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        origins = []
        for host in value:
            origin = bare_origin(host)
            if origin is None:
                raise ValueError(f"{host!r} is not an origin: use https://HOST or https://HOST:PORT, without a path")
            origins.append(origin)
        return tuple(origins)

    @model_validator(mode="after")
    def _both_or_none(self) -> "AgentSettings":
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("set both client_certificate and client_key, or neither")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = TomlConfigSettingsSource(settings_cls, os.environ.get(FILE_VARIABLE, DEFAULT_FILE))
        return init_settings, env_settings, file


def load_settings(file: Path | None = None, **overrides: Any) -> AgentSettings:
    """Settings from `file` (or FEDLOOM_WORKER_CONFIG, or ./worker-agent.toml). Raises pydantic.ValidationError."""
    if file is not None:
        os.environ[FILE_VARIABLE] = str(file)
    file_path = Path(os.environ.get(FILE_VARIABLE, DEFAULT_FILE))
    return _resolve_paths(AgentSettings(**overrides), file_path.resolve().parent)


def _resolve_paths(settings: AgentSettings, base: Path) -> AgentSettings:
    def anchor(path: Path | None) -> Path | None:
        return None if path is None else (base / path.expanduser())

    datasets = {
        name: dataset.model_copy(update={"path": anchor(dataset.path), "test_path": anchor(dataset.test_path)})
        for name, dataset in settings.datasets.items()
    }
    models = {
        # "name" and "owner/name" may be on a hub; only an existing folder is a path.
        name: str(base / Path(source).expanduser()) if (base / Path(source).expanduser()).is_dir() else source
        for name, source in settings.models.items()
    }
    files = {
        name: anchor(getattr(settings, name)) for name in ("folder", "ca_file", "client_certificate", "client_key")
    }
    return settings.model_copy(update={**files, "datasets": datasets, "models": models})
