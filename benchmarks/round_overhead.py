"""Overhead of a round beside training, with a service on this machine: `python -m benchmarks.round_overhead`.

A real installation (the coordinator's processes, two worker agents, loopback, SQLite) fine-tunes MiniLM with LoRA on
generated messages without evaluation. The overhead of a round is the time from the close before it to its own close,
less the longest time inside the gradient loop as reported by the executors. The figure is the median over the rounds.
Flower with two SuperNodes runs the same task in a virtual environment of its own, which `--install-flower` creates.
Without that environment `peer` is null.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.flower_peer import environment
from benchmarks.flower_peer.deployment import Deployment, PeerError
from benchmarks.load.processes import leave_on_sigterm
from benchmarks.report import print_report
from benchmarks.round_times import RoundTimes, summary
from examples.quickstart import federation as demo
from examples.quickstart.base_model import MODEL_ID, WEIGHTS_SHA256, minilm
from examples.quickstart.installation import Installation, Member
from examples.quickstart.rest import Api, Federation
from examples.quickstart.tasks import TextTask, support_messages, write_rows
from worker_agent.settings import MIN_EXAMPLES

_TARGET_SECONDS = 0.5
_ORGANIZATIONS = ("bank", "clinic")
_MAX_LENGTH = 64
_LORA_ALPHA = 16
_LEARNING_RATE = 1e-3
_THREADS = 1
_MOST_ROUNDS = 90


def definition(labels: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The federation as the body of `POST /v1/federations`."""
    return {
        "name": "round overhead",
        "task": {"task": "sequence_classification", "labels": list(labels), "max_length": _MAX_LENGTH},
        "base_model": {"id": MODEL_ID, "weights_sha256": WEIGHTS_SHA256},
        "trainable": {"kind": "lora", "r": options.rank, "lora_alpha": _LORA_ALPHA},
        "algorithm": "fedavg",
        "config": {"local_steps": options.steps, "batch_size": options.batch_size, "learning_rate": _LEARNING_RATE},
        "rounds": options.rounds + 1,
        "clients_per_round": len(_ORGANIZATIONS),
        "evaluation": {"every": None},
        "seed": 0,
    }


def peer_task(labels: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The same task for the app in `flower_peer/app`."""
    return {
        "model": str(minilm()),
        "labels": list(labels),
        "rank": options.rank,
        "lora_alpha": _LORA_ALPHA,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "learning_rate": _LEARNING_RATE,
        "max_length": _MAX_LENGTH,
        "threads": _THREADS,
        "rounds": options.rounds + 1,
    }


def measure_service(folder: Path, task: TextTask, options: argparse.Namespace) -> list[RoundTimes]:
    """Run the federation and return its rounds. Raises SystemExit if it does not complete."""
    folder.mkdir()
    worker = {"models": {MODEL_ID: str(minilm())}, "device": "cpu", "training_threads": _THREADS}
    with Installation(folder) as installation:
        members = []
        for name in _ORGANIZATIONS:
            data = {"messages": {"path": str(_rows_file(folder.parent, name)), "held_out": 0.0}}
            members.append(installation.join(name, {**worker, "datasets": data}))
        federation = demo.run(installation, members, definition(task.labels, options), Console())
        return _read(installation, members[0], federation)


def _read(installation: Installation, owner: Member, federation_id: str) -> list[RoundTimes]:
    api = Api.with_key(installation.url, owner.api_key)
    federation = Federation(api, federation_id)
    rounds = [
        row
        for row in federation.rounds()
        if row["kind"] == "train" and row["closed_at"] is not None and row["state_digest"] is not None
    ]
    jobs = [federation.jobs(row["id"]) for row in rounds]
    api.close()
    return [_times(row, its_jobs) for row, its_jobs in zip(rounds, jobs, strict=True)]


def _times(row: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> RoundTimes:
    train_jobs = [job for job in jobs if job["kind"] == "train" and job["state"] == "accepted"]
    longest = max(job["seconds"]["training"] for job in train_jobs)
    last = max(train_jobs, key=lambda job: _moment(job["submitted_at"]))
    return RoundTimes(row["number"], _moment(row["closed_at"]), longest, _phases(row, last))


def _phases(row: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each phase along the job submitted last, and those measured by the coordinator and its worker."""
    at = [row["opened_at"], row["collecting_at"], last["leased_at"], last["submitted_at"], row["aggregated_at"]]
    names = ("opened_to_collecting", "collecting_to_leased", "leased_to_submitted", "submitted_to_aggregated")
    path = {name: _moment(end) - _moment(start) for name, start, end in zip(names, at[:-1], at[1:], strict=True)}
    path["leased_to_submitted_less_training"] = path.pop("leased_to_submitted") - last["seconds"]["training"]
    path["aggregated_to_closed"] = _moment(row["closed_at"]) - _moment(row["aggregated_at"])
    coordinator_seconds = {f"round.{name}": value for name, value in row["seconds"].items()}
    return path | coordinator_seconds | {f"last_job.{name}": value for name, value in last["seconds"].items()}


def _moment(text: str) -> float:
    """Seconds since the epoch of a time in the format of the API."""
    return datetime.fromisoformat(text).timestamp()


def measure_peer(folder: Path, task: TextTask, options: argparse.Namespace) -> dict[str, Any] | None:
    """Flower's numbers, or None without its environment. A failure of Flower does not affect the service's figure."""
    if options.no_flower or not environment.is_installed(options.flower):
        return None
    print("Flower on the same task", flush=True)
    rows = [_rows_file(folder.parent, name) for name in _ORGANIZATIONS]
    try:
        rounds = Deployment(options.flower, folder).measure(peer_task(task.labels, options), rows)
    except PeerError as error:
        return {"program": environment.FLOWER, "problem": str(error)}
    return {"program": environment.FLOWER, **summary(rounds)}


def _rows_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.jsonl"


def _compare(folder: Path, options: argparse.Namespace) -> None:
    task = support_messages(seed=0)
    for name in _ORGANIZATIONS:
        write_rows(_rows_file(folder, name), task.parts[name])
    ours = summary(measure_service(folder / "service", task, options))
    print(f"{ours['median_seconds']:.3f} s a round beside training (median)", flush=True)
    peer = measure_peer(folder / "peer", task, options)
    if peer is not None:
        outcome = peer.get("problem") or f"{peer['median_seconds']:.3f} s a round"
        print(f"{outcome} with {peer['program']}", flush=True)
    figure = ours["median_seconds"]
    sizes = {
        "steps": options.steps,
        "batch_size": options.batch_size,
        "rank": options.rank,
        "workers": len(_ORGANIZATIONS),
    }
    details = {**sizes, **ours, "peer": peer}
    holds = figure <= _TARGET_SECONDS
    print_report("round_overhead", figure, "s", target=_TARGET_SECONDS, holds=holds, details=details)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round_overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds, after one that is not measured")
    parser.add_argument("--steps", type=int, default=20, help="local steps")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument(
        "--folder", type=Path, default=None, help="folder for all files and logs, which are kept; must not exist"
    )
    parser.add_argument(
        "--flower", type=Path, default=environment.DEFAULT_FOLDER, help="virtual environment of Flower"
    )
    parser.add_argument("--install-flower", action="store_true", help="create that environment first")
    parser.add_argument("--no-flower", action="store_true", help="measure the service alone")
    options = parser.parse_args()
    if not 1 <= options.rounds <= _MOST_ROUNDS:
        parser.error(f"--rounds must lie between 1 and {_MOST_ROUNDS}")
    if options.steps * options.batch_size < MIN_EXAMPLES:
        parser.error(
            f"--steps times --batch-size must be at least {MIN_EXAMPLES}: nodes decline jobs over fewer rows"
        )
    options.flower = options.flower.absolute()
    return options


def main() -> None:
    """The command line."""
    options = _arguments()
    leave_on_sigterm()
    if options.install_flower and not environment.is_installed(options.flower):
        environment.install(options.flower)
    if options.folder is not None:
        options.folder.mkdir(parents=True)
        _compare(options.folder.resolve(), options)
        return
    with tempfile.TemporaryDirectory(prefix="round-overhead-") as folder:
        _compare(Path(folder), options)


if __name__ == "__main__":
    main()
