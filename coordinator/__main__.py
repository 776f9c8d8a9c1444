"""Command line `coordinator`. Heavy modules are imported only by the commands that need them."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from coordinator.addresses import free_port, url_of
from coordinator.settings import MAX_KEY_DAYS, get_settings, startup_error
from coordinator.telemetry import logs
from federated import __version__
from federated.names import valid_name
from federated.printable import printable
from federated.private_files import NotPrivate, keep_private

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
keys = typer.Typer(no_args_is_help=True, help="Manage the installation's API keys.")
app.add_typer(keys, name="keys")
log = typer.Typer(no_args_is_help=True, help="Verify the audit log.")
app.add_typer(log, name="audit")

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder of the installation's data. Default: the setting data_folder (fedloom-data)."
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port",
        min=0,
        max=65535,
        metavar="PORT",
        help="Port of the web process; 0 takes any free port. Default: the setting port (8000).",
    ),
]


def _print_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Run and manage a Fedloom coordinator, the server of federated fine-tuning."""


def _configure(process: str, data: Path | None = None, port: int | None = None, *, writes: bool = True) -> None:
    """Applies the options, configures logging and, for a process that writes, secures its files.

    Options override the environment and are passed on through it to the processes that `up` starts. Exits if a
    setting is invalid, or if other users can access the files of a process that writes.
    """
    from coordinator import ownership

    if data is not None:
        os.environ["FEDLOOM_DATA_FOLDER"] = str(data.resolve())
    if port is not None:
        os.environ["FEDLOOM_PORT"] = str(port)
    keep_private()
    get_settings.cache_clear()
    try:
        logs.configure(get_settings().log_format, process)
        if writes:
            ownership.secure_files()
    except (NotPrivate, ValidationError) as error:
        sys.exit(startup_error(error))


@app.command()
def up(data: Data = None, port: Port = None) -> None:
    """Run everything on this machine: web, background and beat processes, restarted if they end."""
    from coordinator.cli.startup import migration_in_background, only_installation
    from coordinator.cli.supervisor import Supervisor

    _configure("up", data, port)
    settings = get_settings()
    folder = settings.data_folder.resolve()
    os.environ["FEDLOOM_DATA_FOLDER"] = str(folder)
    if settings.port == 0:
        os.environ["FEDLOOM_PORT"] = str(free_port(settings.host))
    command = [sys.executable, "-m", "coordinator"]
    children = {"web": [*command, "serve"], "background": [*command, "work"], "beat": [*command, "beat"]}
    supervisor = Supervisor(children, folder)
    with only_installation(folder), migration_in_background(folder, settings.embedded) as errors:
        supervisor.run()
    if errors:
        raise typer.Exit(1)


@app.command()
def serve(data: Data = None, port: Port = None) -> None:
    """Run a web process."""
    import uvicorn

    from coordinator.app import create_app
    from coordinator.cli.startup import collect_garbage_rarely, wait_for_migration
    from coordinator.cli.supervisor import watch_parent
    from coordinator.telemetry import tracing
    from coordinator.web.connections import server_config

    watch_parent()
    _configure("web", data, port)
    settings = get_settings()
    application = create_app()
    tracing.start("web", application)
    config = server_config(application, settings.host, settings.port)
    server_socket = config.bind_socket()
    url = settings.public_url or url_of(*server_socket.getsockname()[:2])
    wait_for_migration()
    collect_garbage_rarely()
    typer.echo(f"Fedloom coordinator at {url} (documentation: {url}/docs)")
    uvicorn.Server(config).run([server_socket])


@app.command()
def work(data: Data = None) -> None:
    """Run a background process."""
    from celery.exceptions import SecurityWarning

    from coordinator.celery_app import celery, load_tasks, worker_arguments
    from coordinator.cli.startup import collect_garbage_rarely, wait_for_migration
    from coordinator.cli.supervisor import watch_parent
    from coordinator.telemetry import tracing

    watch_parent()
    _configure("background", data)
    warnings.filterwarnings("ignore", category=SecurityWarning)  # about running as root: this queue carries JSON only
    load_tasks()
    tracing.start("background")
    wait_for_migration()
    collect_garbage_rarely()
    celery.worker_main(worker_arguments(get_settings()))


@app.command()
def beat(data: Data = None) -> None:
    """Run the scheduler (one per installation)."""
    from coordinator.celery_app import run_beat
    from coordinator.cli.startup import wait_for_migration
    from coordinator.cli.supervisor import watch_parent
    from coordinator.telemetry import tracing

    watch_parent()
    _configure("beat", data)
    tracing.start("beat")
    wait_for_migration()
    run_beat()


@app.command()
def migrate(data: Data = None) -> None:
    """Migrate the database to this version."""
    _configure("migrate", data)
    _migrate()
    typer.echo("The database is at this version's migrations.")


@app.command()
def verify(
    adapter: Annotated[Path, typer.Argument(help="Downloaded adapter, a folder or a zip file.", exists=True)],
    artifacts: Annotated[
        bool,
        typer.Option(
            "--artifacts",
            help="Also repeat the aggregations whose inputs are still kept; only on the coordinator. Off by default.",
        ),
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            help="File of the coordinator's public key. Default: none, and its signature is not checked.",
            exists=True,
        ),
    ] = None,
    data: Data = None,
) -> None:
    """Check an adapter's files, signatures and chain of rounds against its provenance."""
    from coordinator.cli import verify as verification

    _configure("verify", data, writes=False)
    try:
        for line in verification.verify(adapter, artifacts=artifacts, key=key):
            typer.echo(printable(line))
    except verification.ProvenanceInvalid as error:
        typer.echo(f"broken: {printable(error)}", err=True)
        raise typer.Exit(1) from None


@app.command("signing-key")
def signing_key(data: Data = None) -> None:
    """Print the public key that verifies this coordinator's signatures of adapters."""
    from coordinator.provenance import signing

    _configure("signing-key", data)
    try:
        pem = signing.public_key()
    except signing.KeyUnusable as error:
        typer.echo(printable(error), err=True)
        raise typer.Exit(1) from None
    if pem is None:
        typer.echo("Adapters are not signed: the setting signing_key names no key.", err=True)
        raise typer.Exit(1)
    typer.echo(pem, nl=False)


def _migrate() -> None:
    from coordinator.db import migration

    migration.upgrade()


def _name(text: str) -> str:
    try:
        return valid_name(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@keys.command("create-admin")
def create_admin(
    data: Data = None,
    name: Annotated[
        str, typer.Option(help="Name that describes the key. Default: admin.", callback=_name, show_default=False)
    ] = "admin",
    days: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_KEY_DAYS,
            metavar="DAYS",
            help="Days until the key expires. Default: it never expires.",
        ),
    ] = None,
) -> None:
    """Create an administrator's API key and print it once."""
    from coordinator.db.sessions import utcnow, writing
    from coordinator.organizations import service

    _configure("keys", data)
    if get_settings().embedded:
        _migrate()
    with writing() as session:
        text = service.create_admin_key(session, name, utcnow(), days)
    typer.echo(text)


@log.command("verify")
def verify_audit(data: Data = None) -> None:
    """Verify every chain of the audit log, and print the number and hash of its last entry."""
    from coordinator import audit
    from coordinator.db.sessions import reading

    _configure("audit", data, writes=False)
    try:
        with reading() as session:
            for line in audit.verify(session):
                typer.echo(printable(line))
    except audit.ChainBroken as error:
        typer.echo(f"broken: {printable(error)}", err=True)
        raise typer.Exit(1) from None


def main() -> None:
    """Runs the command `coordinator`."""
    app()


if __name__ == "__main__":
    main()
