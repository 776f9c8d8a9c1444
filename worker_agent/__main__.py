"""Command line of the worker agent."""

import importlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from federated import __version__
from federated.names import normal_form
from federated.printable import printable
from federated.private_files import NotPrivate, keep_private, own_folder
from worker_agent.coordinator_api.enrollment import enroll as enroll_worker
from worker_agent.coordinator_api.enrollment import rotate_key as replace_key
from worker_agent.coordinator_api.identity import load_identity
from worker_agent.display import console_text, open_display
from worker_agent.doctor import examine
from worker_agent.errors import AgentError, ConfigurationError
from worker_agent.node import approvals
from worker_agent.node.approvals import Request
from worker_agent.runtime.agent import Agent, coordinator_url, only_agent, open_worker
from worker_agent.settings import DATA_ENTRIES, DEFAULT_FILE, FILE_VARIABLE, AgentSettings, load_settings
from worker_agent.storage.client_memory import MemoryChain

TOKEN_VARIABLE = "FEDLOOM_ENROLLMENT_TOKEN"  # noqa: S105 - the name of a variable
SUMMARY_MODULE = "worker_agent.training.summary"
EXPORT_MODULE = "worker_agent.training.export"
MODEL_MODULE = "worker_agent.training.model"

app = typer.Typer(
    help="Train for the federations that you allow. Your data stays on this node.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
data = typer.Typer(help="Show your data sets. Nothing leaves this node.", no_args_is_help=True)
app.add_typer(data, name="data")

_CONFIG_DEFAULT = f"${FILE_VARIABLE}, or {DEFAULT_FILE}"
Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file.", show_default=_CONFIG_DEFAULT, exists=True, dir_okay=False),
]
Federation = Annotated[str, typer.Argument(help="Id of the federation, fed_….")]
_out = Console()
_err = Console(stderr=True)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        _out.print(__version__)
        raise typer.Exit


@app.callback()
def _prepare(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_print_version)] = False,
) -> None:
    keep_private()


@app.command()
def enroll(
    url: Annotated[
        str | None, typer.Option(help="URL of the coordinator.", show_default="`url` of the settings")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the enrollment token.", show_default=f"${TOKEN_VARIABLE}, or a prompt"),
    ] = None,
    config: Config = None,
) -> None:
    """Enroll this node as a worker of your organization."""
    with _report_errors():
        settings = _own(_settings(config))
        record = enroll_worker(settings, url or str(settings.url), _token(token_file))
        organization, address = console_text(record.organization_name), console_text(record.url)
        _out.print(f"enrolled as [bold]{console_text(record.worker_id)}[/] of {organization} at {address}")
        _out.print("next: worker-agent doctor, then worker-agent run")


@app.command("rotate-key")
def rotate_key(config: Config = None) -> None:
    """Replace this worker's key pair. The old key becomes invalid. Stop `run` first."""
    with _report_errors():
        settings = _own(_settings(config))
        identity = load_identity(settings.folder)
        with only_agent(settings.folder):
            key = replace_key(settings, coordinator_url(settings, identity))
        _out.print(f"{console_text(identity.record.worker_id)} signs with {key} from now on", soft_wrap=True)


@app.command()
def run(config: Config = None) -> None:
    """Run the agent until Ctrl-C or SIGTERM. A second signal returns running jobs at once."""
    with _report_errors():
        settings = _own(_settings(config))
        identity = load_identity(settings.folder)
        display = open_display(settings)
        try:
            with only_agent(settings.folder), open_worker(settings, identity) as http:
                agent = Agent(settings, identity, http, display)
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, lambda *_: agent.stop())
                agent.run()
        finally:
            display.close()


@app.command()
def doctor(config: Config = None) -> None:
    """Check URL, TLS, clock, key, device, models and data, and report what fails."""
    with _report_errors():
        failures = []
        for finding in examine(_settings(config)):
            mark = "[green]ok[/]    " if finding.well else "[red]FAILED[/]"
            _out.print(f"{mark} {console_text(finding.step)}: {console_text(finding.text)}", soft_wrap=True)
            failures += [] if finding.well else [finding.step]
    if failures:
        _err.print(f"failed: {console_text(', '.join(failures))}")
        raise typer.Exit(1)


@data.command("show")
def data_show(
    name: Annotated[str, typer.Argument(help="Name of the data set in the settings.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Base model whose tokenizer counts the tokens.", show_default="the only one in the settings"
        ),
    ] = None,
    config: Config = None,
) -> None:
    """Show rows, label counts and token lengths of a data set. Nothing leaves this node."""
    with _report_errors():
        settings, name = _settings(config), normal_form(name)
        if name not in settings.datasets:
            raise ConfigurationError(
                f"no data set {name!r}; there are: {', '.join(sorted(settings.datasets)) or 'none'}"
            )
        try:
            summary = importlib.import_module(SUMMARY_MODULE).describe_dataset(
                settings, name, tokenizer_path=_tokenizer(settings, model)
            )
        except Exception as error:
            raise ConfigurationError(f"data set {name!r}: {error}") from error
        _out.print(
            f"[bold]{console_text(name)}[/]: {summary.rows} rows to train on, {summary.held_out_rows} held out"
        )
        _out.print(f"columns: {console_text(', '.join(summary.columns))}")
        _print_counts("label", summary.label_counts)
        _print_counts("tokens per text", summary.token_lengths or {})


@app.command()
def export(
    federation: Federation,
    client: Annotated[str, typer.Argument(help="Id of the client, one of this worker's data sets in it.")],
    out: Annotated[Path, typer.Argument(help="Folder to write the adapter into.")],
    config: Config = None,
) -> None:
    """Write a client's own adapter: the shared values with the private ones that never left this node."""
    with _report_errors():
        settings = _own(_settings(config))
        last = MemoryChain(settings.folder / "memory").last_job(federation, client)
        try:
            paths = importlib.import_module(EXPORT_MODULE).export_own(
                settings, last.lease, last.instruction, last.memory, out
            )
        except Exception as error:
            raise ConfigurationError(f"{client}: {error}") from error
        for path in paths:
            _out.print(console_text(path), soft_wrap=True)


@app.command()
def approve(
    federation: Federation,
    digest: Annotated[str | None, typer.Option(help="Digest of the request, needed if there are several.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Approve without confirmation.")] = False,
    config: Config = None,
) -> None:
    """Show and approve a federation's request to this node, if the policy says `approve = "ask"`."""
    with _report_errors():
        settings = _own(_settings(config))
        if approvals.approvals(settings.folder).legacy_entries:
            _err.print(f"[yellow]note:[/] {approvals.OUTDATED_TEXT}", soft_wrap=True)
        request = _request(approvals.pending(settings.folder, federation), federation, digest)
        if not yes and not typer.confirm("approve this request, and nothing else of this federation?"):
            raise ConfigurationError("not approved")
        approvals.approve(settings.folder, request)
        _out.print("approved; if its client here was declined, restore it: POST /v1/clients/{id}/restore")


@app.command()
def version() -> None:
    """Show the version."""
    _print_version(True)


def main() -> None:
    """Run the command `worker-agent`."""
    app()


@contextmanager
def _report_errors() -> Iterator[None]:
    """Print an error that the owner can fix as one line, without a traceback."""
    try:
        yield
    except AgentError as error:
        _err.print(f"[red]error:[/] {console_text(error)}", soft_wrap=True)
        raise typer.Exit(error.exit_status) from None


def _settings(config: Path | None) -> AgentSettings:
    try:
        return load_settings(config)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigurationError(f"settings: {faults}") from None
    except ValueError as error:
        raise ConfigurationError(f"settings: {error}") from None


def _request(pending: Sequence[Request], federation: str, digest: str | None) -> Request:
    """Print the matching requests and return the only one. Raises ConfigurationError for none or several."""
    matches = [request for request in pending if digest in (None, request.digest)]
    for request in matches:
        for title, text in approvals.in_words(request):
            _out.print(f"[bold]{title}[/]: {_full_text(text)}", soft_wrap=True, highlight=False)
        _out.print()
    if not matches:
        suffix = "" if digest is None else f" with the digest {digest}"
        raise ConfigurationError(
            f"nothing of federation {federation}{suffix} waits for approval. An agent must receive a request first: "
            "register its client, start the federation, let worker-agent run decline it, and try again"
        )
    if len(matches) > 1:
        raise ConfigurationError(
            f"federation {federation} made {len(matches)} different requests: name one with --digest"
        )
    return matches[0]


def _full_text(text: str) -> str:
    """A text from outside, safe for a terminal and complete: nobody can approve what is not shown."""
    return escape(printable(text, max(1, len(text))))


def _own(settings: AgentSettings) -> AgentSettings:
    """Create the data folder if needed, check that only its own user can access it, and return the settings."""
    try:
        own_folder(settings.folder, DATA_ENTRIES)
    except NotPrivate as error:
        raise ConfigurationError(str(error)) from None
    return settings


def _token(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigurationError(f"the token file cannot be read: {error}") from None
    token = os.environ.get(TOKEN_VARIABLE)
    return token or str(typer.prompt("enrollment token", hide_input=True))


def _tokenizer(settings: AgentSettings, model: str | None) -> str | None:
    """Folder of the tokenizer of `model`, or of the only allowed model."""
    model_id = model or (next(iter(settings.models)) if len(settings.models) == 1 else None)
    if model_id is None:
        return None
    if model_id not in settings.models:
        raise ConfigurationError(f"no base model {model_id!r} in the settings")
    folder: Any = importlib.import_module(MODEL_MODULE).model_folder(settings, model_id)
    return str(folder)


def _print_counts(title: str, counts: Mapping[str, int]) -> None:
    if not counts:
        return
    table = Table(title, "count")
    for name, count in counts.items():
        table.add_row(console_text(name), str(count))
    _out.print(table)


if __name__ == "__main__":
    main()
