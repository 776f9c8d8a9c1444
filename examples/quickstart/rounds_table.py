"""Live table of a federation: the clients' progress, loss, accuracy, bytes, and the reason for waiting."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

KIB = 1024
OPEN = ("waiting", "collecting", "aggregating", "evaluating")


def rounds_table(
    federation: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    jobs: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
) -> Table:
    """A table with a row per round. The open round shows its clients. `names`: client id -> name."""
    table = Table(title=f"{federation['name']}: {federation['state']}", caption=federation.get("waiting_for") or "")
    for column in ("round", "state", "train loss", "loss", "accuracy", "KiB up", "KiB down", "clients"):
        table.add_column(column, justify="left" if column in {"state", "clients"} else "right")
    for item in rounds:
        table.add_row(*round_row(item, jobs if item["state"] in OPEN else (), names))
    return table


def round_row(item: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """The cells of one round."""
    metrics = item.get("metrics") or {}
    label = f"{'p' if item['kind'] == 'prepare' else ''}{item['number']}"
    traffic = [f"{item.get(part, 0) / KIB:,.0f}" for part in ("upload_bytes", "download_bytes")]
    numbers = [
        _number(metrics.get(name), digits) for name, digits in (("train_loss", 3), ("loss", 3), ("accuracy", 3))
    ]
    return [label, item.get("waiting_for") or item["state"], *numbers, *traffic, " ".join(client_cells(jobs, names))]


def client_cells(jobs: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """Progress of the newest job of each client: `bank train 12/20`."""
    newest = {job["client_id"]: job for job in jobs}
    return [_client(names.get(client, client), job) for client, job in newest.items()]


def _client(name: str, job: Mapping[str, Any]) -> str:
    progress = job.get("progress")
    if job["state"] == "leased" and progress:
        return f"{name} {job['kind']} {progress['done']}/{progress['total']}"
    return f"{name} {job['kind']} {job['state']}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
