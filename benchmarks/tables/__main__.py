"""Command that makes the table of an algorithm's README: `python -m benchmarks.tables NAME --data FOLDER`.

FOLDER holds a folder per task with `train.jsonl` and `test.jsonl`, whose rows have `text` and `label`. With
`--results FILE` an interrupted table is continued.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import federated.algorithms
from benchmarks.tables import definition
from benchmarks.tables.definition import Job, JobResult, Table
from benchmarks.tables.document import document, write_between
from benchmarks.tables.jobs import jobs_of, run_all
from benchmarks.tables.results import Results
from benchmarks.tables.sites import make_site
from examples.quickstart.base_model import minilm


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        table = _select(definition.table(options.name), options)
    except LookupError as error:
        parser.error(str(error))
    if options.write and (options.quick or options.only):
        parser.error("--write needs a whole table: not with --quick or --only")
    table.check()
    results = complete(
        jobs_of(table, options.device), options.data, Results(options.results), minilm(), options.processes
    )
    text = document(table, results, _command(options), f"{options.processes} runs at once on {options.device}")
    print(text, flush=True)
    if options.write:
        write_between(readme(table.name), text)
    return 0


def complete(jobs: Sequence[Job], data: Path, results: Results, base: Path, processes: int) -> list[JobResult]:
    """Results of the jobs. Those missing in `results` are run and added to it. `base` is the base model's folder."""
    missing = [job for job in jobs if job.key() not in results]
    with tempfile.TemporaryDirectory() as folder:
        tables = {(job.task, job.seed): job.table for job in missing}
        sites = {
            (task, seed): make_site(data, task, seed, table, Path(folder) / f"{task}-{seed}")
            for (task, seed), table in tables.items()
        }
        for count, run in enumerate(run_all(missing, sites, base, processes), start=1):
            results.add(run)
            summary = f"{run.row}, {run.task}, seed {run.seed}: {100 * run.accuracy:.1f} % in {run.seconds:.1f} s"
            print(f"{count}/{len(missing)} {summary}", file=sys.stderr, flush=True)
    return results.of(job.key() for job in jobs)


def readme(name: str) -> Path:
    """Path of an algorithm's README."""
    return Path(federated.algorithms.__path__[0]) / name / "README.md"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("name", metavar="NAME", help=f"table, of: {', '.join(definition.names())}")
    parser.add_argument("--data", type=Path, required=True, help="a folder per task, with train.jsonl and test.jsonl")
    parser.add_argument("--seeds", type=_integers, help="comma-separated, such as 0,1,2")
    parser.add_argument("--tasks", type=_words, help="folders in DATA, such as subj,trec")
    parser.add_argument("--rounds", type=_positive)
    parser.add_argument(
        "--evaluate-every", type=_positive, metavar="ROUNDS", help="rounds between evaluations in the results"
    )
    parser.add_argument("--only", action="append", metavar="ROW", help="only this row; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="two clients and one round, to test that everything runs"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="JSON lines with the results of jobs, to continue from"
    )
    parser.add_argument("--write", action="store_true", help="write the table into the README of the algorithm")
    parser.add_argument("--processes", type=_positive, default=2, help="parallel jobs, with one torch thread each")
    parser.add_argument("--device", default="cpu")
    return parser


def _select(table: Table, options: argparse.Namespace) -> Table:
    table = table.quick() if options.quick else table
    limits = {name: getattr(options, name) for name in ("seeds", "tasks", "rounds", "evaluate_every")}
    table = replace(table, **{name: value for name, value in limits.items() if value is not None})
    return table.only(options.only) if options.only else table


def _command(options: argparse.Namespace) -> str:
    """The options that affect the result, without paths of this machine."""
    words = ["python -m benchmarks.tables", options.name, "--data DATA"]
    words += [f"--seeds {','.join(map(str, options.seeds))}"] if options.seeds else []
    words += [f"--tasks {','.join(options.tasks)}"] if options.tasks else []
    words += [f"--rounds {options.rounds}"] if options.rounds else []
    words += [f"--device {options.device}"] if options.device != "cpu" else []
    words += ["--quick"] if options.quick else []
    words += [f'--only "{row}"' for row in options.only or ()]
    return " ".join([*words, *(["--write"] if options.write else [])])


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
