"""A coordinator for one part of a run, whose web process is apart from the fuzzer: both read one database."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path

from coordinator.db.sessions import reading
from coordinator.models import ApiKey, EnrollmentToken, Webhook
from coordinator.provenance import signing
from coordinator.settings import get_settings
from coordinator.telemetry import logs
from tests.coordinator.contract.conftest import NOBODY_WAITS
from tests.support.places import places, settled
from tests.support.service import Service
from tests.support.web_process import WebProcess, web_process


@contextmanager
def coordinator(folder: Path, **settings: object) -> Iterator[tuple[Service, WebProcess]]:
    """Its service and its web process. `settings` are the coordinator's, by name."""
    folder.mkdir(parents=True)
    environment = {f"FEDLOOM_{name.upper()}": str(value) for name, value in settings.items()}
    place = {**places().migrated(folder / "data"), **NOBODY_WAITS, **environment}
    with settled(place), logged_to(folder / "fuzzer.log"), web_process(folder / "web.log") as web:
        with ExitStack() as clients:
            yield Service(web.url, clients), web


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """What this process logs goes to a file meanwhile."""
    with file.open("w", encoding="utf-8") as log:
        with redirect_stderr(log):
            logs.configure("json", "fuzzer")
        yield
    logs.configure("json", "fuzzer")


def secrets(keys: Mapping[str, str]) -> dict[str, str]:
    """All that this coordinator must not tell: these keys, what it keeps of any key or token, and its signing key."""
    made = {name: text.rpartition("_")[2] for name, text in keys.items()}
    with reading() as session:
        for row in [*session.query(ApiKey), *session.query(EnrollmentToken)]:
            made[f"digest of {row.id}"] = row.secret_sha256
        for webhook in session.query(Webhook):
            made[f"secret of {webhook.id}"] = webhook.secret.rpartition("_")[2]
    key = signing.key_file()
    if key is not None and key.exists():
        made["signing key"] = key.read_text(encoding="ascii").splitlines()[1]
    return made


def whereabouts() -> dict[str, str]:
    """Where it keeps what it has; its log may say so."""
    settings = get_settings()
    return {"data folder": str(settings.data_folder.resolve()), "database": settings.database}
