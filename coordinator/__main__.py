"""The command line `coordinator`. Nothing heavy is imported before a command needs it."""

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
from federated.names import valid_name
from federated.printable import printable
from federated.private_files import NotPrivate, keep_private

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
keys = typer.Typer(no_args_is_help=True, help="API keys of the installation.")
app.add_typer(keys, name="keys")
log = typer.Typer(no_args_is_help=True, help="The audit log.")
app.add_typer(log, name="audit")

Data = Annotated[Path | None, typer.Option("--data", help="Folder for everything this installation keeps.")]
Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="0: any free port.")]


def _settle(process: str, data: Path | None = None, port: int | None = None, *, writes: bool = True) -> None:
    """Options win over the environment, and are handed on through it to the processes that `up` starts.

    Ends a process whose settings cannot be, and one that writes if others have a part in what is kept.
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
    """Run everything on this machine: web, background and beat, kept alive."""
    from coordinator.cli.startup import migration_in_background, only_installation
    from coordinator.cli.supervisor import Supervisor

    _settle("up", data, port)
    settings = get_settings()
    folder = settings.data_folder.resolve()
    os.environ["FEDLOOM_DATA_FOLDER"] = str(folder)
    if settings.port == 0:
        os.environ["FEDLOOM_PORT"] = str(free_port(settings.host))
    this = [sys.executable, "-m", "coordinator"]
    supervisor = Supervisor({"web": [*this, "serve"], "background": [*this, "work"], "beat": [*this, "beat"]}, folder)
    with only_installation(folder), migration_in_background(folder, settings.embedded) as failed:
        supervisor.run()
    if failed:
        raise typer.Exit(1)


@app.command()
def serve(data: Data = None, port: Port = None) -> None:
    """Run the web process alone."""
    import uvicorn

    from coordinator.app import create_app
    from coordinator.cli.startup import collect_garbage_rarely, wait_for_migration
    from coordinator.cli.supervisor import watch_parent
    from coordinator.telemetry import tracing
    from coordinator.web.connections import server_config

    watch_parent()
    _settle("web", data, port)
    settings = get_settings()
    application = create_app()
    tracing.start("web", application)
    config = server_config(application, settings.host, settings.port)
    listening = config.bind_socket()
    url = settings.public_url or url_of(*listening.getsockname()[:2])
    wait_for_migration()
    collect_garbage_rarely()
    typer.echo(f"Fedloom coordinator at {url} (documentation: {url}/docs)")
    uvicorn.Server(config).run([listening])


@app.command()
def work(data: Data = None) -> None:
    """Run a background process alone."""
    from celery.exceptions import SecurityWarning

    from coordinator.celery_app import celery, load_tasks, worker_arguments
    from coordinator.cli.startup import collect_garbage_rarely, wait_for_migration
    from coordinator.cli.supervisor import watch_parent
    from coordinator.telemetry import tracing

    watch_parent()
    _settle("background", data)
    warnings.filterwarnings("ignore", category=SecurityWarning)  # of root: this queue carries JSON alone
    load_tasks()
    tracing.start("background")
    wait_for_migration()
    collect_garbage_rarely()
    celery.worker_main(worker_arguments(get_settings()))


@app.command()
def beat(data: Data = None) -> None:
    """Run the clock that wakes what is due; one in an installation."""
    from coordinator.celery_app import run_beat
    from coordinator.cli.startup import wait_for_migration
    from coordinator.cli.supervisor import watch_parent
    from coordinator.telemetry import tracing

    watch_parent()
    _settle("beat", data)
    tracing.start("beat")
    wait_for_migration()
    run_beat()


@app.command()
def migrate(data: Data = None) -> None:
    """Bring the database to this version's tables."""
    _settle("migrate", data)
    _migrate()
    typer.echo("The database is at this version's migrations.")


@app.command()
def verify(
    adapter: Annotated[Path, typer.Argument(help="A folder or zip, as downloaded.", exists=True)],
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Aggregate again what is still kept here: on the coordinator.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option("--key", help="The coordinator's public key, to check its signature.", exists=True)
    ] = None,
    data: Data = None,
) -> None:
    """Check an adapter against its provenance: files, signatures, the chain of rounds."""
    from coordinator.cli import verify as verification

    _settle("verify", data, writes=False)
    try:
        for line in verification.verify(adapter, artifacts=artifacts, key=key):
            typer.echo(printable(line))
    except verification.ProvenanceInvalid as broken:
        typer.echo(f"broken: {printable(broken)}", err=True)
        raise typer.Exit(1) from None


@app.command("signing-key")
def signing_key(data: Data = None) -> None:
    """Print the public key under which this coordinator's signatures of adapters hold."""
    from coordinator.provenance import signing

    _settle("signing-key", data)
    try:
        pem = signing.public_key()
    except signing.KeyUnusable as unusable:
        typer.echo(printable(unusable), err=True)
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
    name: Annotated[str, typer.Option(help="What the key is for.", callback=_name)] = "admin",
    days: Annotated[
        int | None, typer.Option(min=1, max=MAX_KEY_DAYS, help="Until it expires; else it never does.")
    ] = None,
) -> None:
    """Make an API key that may do everything, and print it this once."""
    from coordinator.db.sessions import utcnow, writing
    from coordinator.organizations import service

    _settle("keys", data)
    if get_settings().embedded:
        _migrate()
    with writing() as session:
        text = service.create_admin_key(session, name, utcnow(), days)
    typer.echo(text)


@log.command("verify")
def verify_audit(data: Data = None) -> None:
    """Walk every chain of the audit log: the number and hash of its last entry, or the first that was changed."""
    from coordinator import audit
    from coordinator.db.sessions import reading

    _settle("audit", data, writes=False)
    try:
        with reading() as session:
            for line in audit.verify(session):
                typer.echo(printable(line))
    except audit.ChainBroken as broken:
        typer.echo(f"broken: {printable(broken)}", err=True)
        raise typer.Exit(1) from None


def main() -> None:
    """Entry point of the command `coordinator`."""
    app()


if __name__ == "__main__":
    main()
