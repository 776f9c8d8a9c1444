"""Settings of the coordinator: environment variables `FEDLOOM_…`, or the file `coordinator.toml`.

With nothing set, everything lies in one folder on this machine: SQLite, artifacts, the message queue. Larger
installations change the URLs and nothing else.
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
"""What examples have in the place of a secret: nothing starts with one that begins so."""
MAX_KEY_DAYS = 3653
"""Of an API key that expires: ten years. Not a setting; here because the command line must not load more."""
_STORE_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_")

Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """All settings and limits. URLs left null are derived from `data_folder`."""

    model_config = SettingsConfigDict(env_prefix="FEDLOOM_", extra="ignore", frozen=True, hide_input_in_errors=True)

    data_folder: Path = Path("fedloom-data")
    database_url: str | None = Field(default=None, description="null: SQLite in the data folder")
    migration_database_url: str | None = Field(
        default=None, description="of the role that owns the tables, for `migrate` alone; null: database_url"
    )
    broker_url: str | None = Field(default=None, description="null: the filesystem transport; or redis://…")
    store_url: str | None = Field(default=None, description="null: a folder; or s3://…, gs://…, az://…")
    presigned_endpoint: str | None = Field(
        default=None, description="where agents reach the S3 store: bytes then pass no web process; null: they do"
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    public_url: str | None = Field(
        default=None, description="where users and agents find it; with a path, if a proxy serves it below one"
    )
    signing_key: Path | None = Field(
        default=None,
        description="PEM of the elliptic-curve key that signs adapters; null: one made in the data folder, or with a "
        "broker none",
    )
    web_threads: Annotated[int, Field(ge=1, le=1024)] = 40
    background_threads: Annotated[int, Field(ge=1, le=256)] = 2
    shard_bytes: Bytes = Field(
        default=256 * 1024**2, description="an aggregation of a larger state is cut into shards of about so much"
    )
    aggregation_threads: Annotated[int, Field(ge=1, le=1024)] = 2
    log_format: Literal["auto", "json", "console"] = "auto"

    reconcile_seconds: Seconds = 3.0
    process_renew_seconds: Seconds = 10.0
    process_stale_seconds: Seconds = 45.0
    claim_seconds: Seconds = 30.0
    step_seconds: Seconds = Field(
        default=3600.0, description="the longest that one step of a round may be computed; then its federation fails"
    )
    worker_timeout_seconds: Seconds = 90.0
    heartbeat_seconds: Seconds = 10.0
    offer_poll_seconds: Seconds = 0.03
    worker_token_seconds: Seconds = 300.0
    clock_skew_seconds: Seconds = 60.0

    requests_per_second: Annotated[float, Field(ge=0)] = Field(
        default=200.0, description="of one key or worker at one web process; twice as many at once; 0: no limit"
    )
    max_waits: Annotated[int, Field(ge=1)] = Field(
        default=10, description="open at once by one key at one web process; five times as many by an organization's"
    )
    max_worker_waits: Annotated[int, Field(ge=1)] = Field(
        default=128, description="open at once by one worker at one web process; an agent has up to 64 slots"
    )
    request_seconds: Seconds = Field(
        default=30.0, description="for the head of a request, and for each 16 KiB of its body"
    )
    webhook_private_addresses: bool = Field(
        default=False, description="webhooks may lead to private addresses, and with plain http to this machine"
    )
    webhook_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default=4, description="of a background process, which send to webhooks and do nothing else"
    )
    webhook_timeout_seconds: Seconds = 10.0
    webhook_retry_seconds: Seconds = 10.0
    webhook_give_up_seconds: Seconds = 24 * 3600.0
    webhook_keep_seconds: Seconds = 30 * 24 * 3600.0
    idempotency_key_seconds: Seconds = 24 * 3600.0
    max_body_bytes: Bytes = 1024**2
    max_artifact_bytes: Bytes = 64 * 1024**3
    max_trained_bytes: Bytes = Field(
        default=1024**3, description="of what a federation trains, and of what is seeded beside it, as float32"
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
    def _unbracketed(cls, value: str) -> str:
        return value.removeprefix("[").removesuffix("]")

    @field_validator("public_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
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
            raise ValueError("is no address such as https://fedloom.example.org, or https://example.org/fedloom")
        if f"{parts.path}/".startswith("/v1/"):
            raise ValueError("has a path that begins with /v1, as the API's own do")
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
        found = [name for name, value in os.environ.items() if value.startswith(PLACEHOLDER)]
        named = ", ".join(sorted(name for name in found if name.startswith(_STORE_VARIABLES)))
        if named:
            raise ValueError(f"{named}: still the example's ({PLACEHOLDER}): set one of your own")
        return self

    @model_validator(mode="after")
    def _presigned_on_s3(self) -> "Settings":
        if self.presigned_endpoint is not None and not self.store.startswith("s3://"):
            raise ValueError("presigned_endpoint is for a store_url that begins with s3://")
        return self

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.data_folder.resolve() / 'coordinator.sqlite'}"

    @property
    def migration_database(self) -> str:
        """SQLAlchemy URL with which the tables are made and changed."""
        return self.migration_database_url or self.database

    @property
    def broker(self) -> str:
        """Celery broker URL; the filesystem transport's own when nothing is set."""
        return self.broker_url or "fedloom-files://"

    @property
    def public_path(self) -> str:
        """The path below which a proxy serves all of this, as `/fedloom`; empty where it is the root."""
        return urlsplit(self.public_url or "").path

    @property
    def queue_folder(self) -> Path:
        """Where the filesystem transport keeps messages."""
        return self.data_folder.resolve() / "queue"

    @property
    def store(self) -> str:
        """obstore URL of the artifact store."""
        return self.store_url or (self.data_folder.resolve() / "artifacts").as_uri()

    @property
    def store_folder(self) -> Path | None:
        """The folder that is the store; None if that is a bucket."""
        parts = urlsplit(self.store)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    @property
    def store_origins(self) -> tuple[str, ...]:
        """Where agents are sent for bytes that pass no web process, as `https://host`; none if all pass one."""
        if self.presigned_endpoint is None:
            return ()
        parts = urlsplit(self.presigned_endpoint)
        return (f"{parts.scheme}://{parts.netloc}",)

    @property
    def embedded(self) -> bool:
        """Whether everything runs on this machine over the filesystem transport."""
        return self.broker_url is None


def startup_error(error: Exception) -> str:
    """The last words of a process that does not start: a line for each setting that cannot be, without its value."""
    if not isinstance(error, ValidationError):
        return f"error: {error}"
    faults = ([*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")] for fault in error.errors())
    return "\n".join(f"error: {': '.join(fault)}" for fault in faults)


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
