"""Settings of the coordinator: environment variables `FEDLOOM_…`, or the file `coordinator.toml`.

By default everything is in one folder on this machine: SQLite, artifacts and the message queue. Larger installations
only change the URLs.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

FILE_VARIABLE = "FEDLOOM_CONFIG"
DEFAULT_FILE = Path("coordinator.toml")
PLACEHOLDER = "change-me"
"""Stands for a secret in examples; no process starts with a secret that begins with it."""
MAX_KEY_DAYS = 3653
"""Longest lifetime of an API key that expires: ten years. Here, since the command line must not load more modules."""
_STORE_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_")

Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """All settings and limits. URLs that are null are derived from `data_folder`."""

    model_config = SettingsConfigDict(env_prefix="FEDLOOM_", extra="ignore", frozen=True, hide_input_in_errors=True)

    data_folder: Path = Path("fedloom-data")
    database_url: str | None = Field(default=None, description="null: SQLite in the data folder")
    migration_database_url: str | None = Field(
        default=None, description="URL of the role that owns the tables, for `migrate` alone; null: database_url"
    )
    broker_url: str | None = Field(default=None, description="redis://…; null: the filesystem transport")
    store_url: str | None = Field(
        default=None, description="s3://…, gs://… or az://…; null: a folder in the data folder"
    )
    presigned_endpoint: str | None = Field(
        default=None,
        description="address at which agents reach the S3 store directly; null: bytes pass through a web process",
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    public_url: str | None = Field(
        default=None, description="address for users and agents; with a path if a proxy serves it below one"
    )
    signing_key: Path | None = Field(
        default=None,
        description="PEM file of the elliptic-curve key that signs adapters; null: a new key in the data folder, or "
        "no signatures if a broker is set",
    )
    web_threads: Annotated[int, Field(ge=1, le=1024)] = 40
    background_threads: Annotated[int, Field(ge=1, le=256)] = 2
    shard_bytes: Bytes = Field(
        default=256 * 1024**2, description="aggregations of larger states are split into shards of about this size"
    )
    aggregation_threads: Annotated[int, Field(ge=1, le=1024)] = 2
    log_format: Literal["auto", "json", "console"] = "auto"

    reconcile_seconds: Seconds = 3.0
    process_renew_seconds: Seconds = 10.0
    process_stale_seconds: Seconds = 45.0
    claim_seconds: Seconds = 30.0
    step_seconds: Seconds = Field(
        default=3600.0, description="time limit for computing one step of a round; then its federation fails"
    )
    worker_timeout_seconds: Seconds = 90.0
    heartbeat_seconds: Seconds = 10.0
    offer_poll_seconds: Seconds = 0.03
    worker_token_seconds: Seconds = 300.0
    clock_skew_seconds: Seconds = 60.0

    requests_per_second: Annotated[float, Field(ge=0)] = Field(
        default=200.0, description="per key or worker at one web process, with bursts of twice as many; 0: no limit"
    )
    max_waits: Annotated[int, Field(ge=1)] = Field(
        default=10, description="open waits per key at one web process; five times as many per organization"
    )
    max_worker_waits: Annotated[int, Field(ge=1)] = Field(
        default=128, description="open waits per worker at one web process; an agent has up to 64 slots"
    )
    request_seconds: Seconds = Field(
        default=30.0, description="time limit for the head of a request, and for each 16 KiB of its body"
    )
    webhook_private_addresses: bool = Field(
        default=False, description="allow webhooks to private addresses, and to this machine over plain http"
    )
    webhook_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default=4, description="threads of a background process that only send to webhooks"
    )
    webhook_timeout_seconds: Seconds = 10.0
    webhook_retry_seconds: Seconds = 10.0
    webhook_give_up_seconds: Seconds = 24 * 3600.0
    webhook_keep_seconds: Seconds = 30 * 24 * 3600.0
    idempotency_key_seconds: Seconds = 24 * 3600.0
    max_body_bytes: Bytes = 1024**2
    max_artifact_bytes: Bytes = 64 * 1024**3
    max_trained_bytes: Bytes = Field(
        default=1024**3, description="size of a federation's trained tensors, and of its seeded ones, as float32"
    )
    chunk_bytes: Bytes = 16 * 1024**2
    presigned_seconds: Annotated[float, Field(ge=60, le=7 * 24 * 3600)] = 6 * 3600.0
    upload_expiry_seconds: Seconds = 7 * 24 * 3600.0
    artifact_min_age_seconds: Seconds = 24 * 3600.0

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

    @field_validator("host")
    @classmethod
    def _strip_brackets(cls, value: str) -> str:
        return value.removeprefix("[").removesuffix("]")

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or "@" in value
        ):
            raise ValueError("is not an address such as https://fedloom.example.org or https://example.org/fedloom")
        if f"{parts.path}/".startswith("/v1/"):
            raise ValueError("must not have a path that begins with /v1, as the API's own paths do")
        return value.rstrip("/")

    @field_validator("database_url", "migration_database_url", "broker_url", "store_url")
    @classmethod
    def _no_placeholder(cls, url: str | None) -> str | None:
        password = urlsplit(url or "").password
        if password is not None and unquote(password).startswith(PLACEHOLDER):
            raise ValueError(f"its password is still the example's ({PLACEHOLDER}): set one of your own")
        return url

    @model_validator(mode="after")
    def _no_placeholder_for_the_store(self) -> "Settings":
        variables = [name for name, value in os.environ.items() if value.startswith(PLACEHOLDER)]
        names = ", ".join(sorted(name for name in variables if name.startswith(_STORE_VARIABLES)))
        if names:
            raise ValueError(f"{names}: still the example's ({PLACEHOLDER}): set one of your own")
        return self

    @model_validator(mode="after")
    def _presigned_on_s3(self) -> "Settings":
        if self.presigned_endpoint is not None and not self.store.startswith("s3://"):
            raise ValueError("presigned_endpoint requires a store_url that begins with s3://")
        return self

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.data_folder.resolve() / 'coordinator.sqlite'}"

    @property
    def migration_database(self) -> str:
        """SQLAlchemy URL for migrations."""
        return self.migration_database_url or self.database

    @property
    def broker(self) -> str:
        """Celery broker URL; by default that of the filesystem transport."""
        return self.broker_url or "fedloom-files://"

    @property
    def public_path(self) -> str:
        """The path below which a proxy serves the coordinator, as `/fedloom`; empty for the root."""
        return urlsplit(self.public_url or "").path

    @property
    def queue_folder(self) -> Path:
        """Folder of the filesystem transport's messages."""
        return self.data_folder.resolve() / "queue"

    @property
    def store(self) -> str:
        """obstore URL of the artifact store."""
        return self.store_url or (self.data_folder.resolve() / "artifacts").as_uri()

    @property
    def store_folder(self) -> Path | None:
        """The folder of a local artifact store; None for a bucket."""
        parts = urlsplit(self.store)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    @property
    def store_origins(self) -> tuple[str, ...]:
        """Origins, as `https://host`, to which agents are sent for artifacts; empty without `presigned_endpoint`."""
        if self.presigned_endpoint is None:
            return ()
        parts = urlsplit(self.presigned_endpoint)
        return (f"{parts.scheme}://{parts.netloc}",)

    @property
    def embedded(self) -> bool:
        """Whether everything runs on this machine over the filesystem transport."""
        return self.broker_url is None


def startup_error(error: Exception) -> str:
    """The last output of a process that cannot start: a line for each invalid setting, without its value."""
    if not isinstance(error, ValidationError):
        return f"error: {error}"
    faults = ([*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")] for fault in error.errors())
    return "\n".join(f"error: {': '.join(fault)}" for fault in faults)


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
