"""Job offers as the background makes them for an evaluation: all jobs of a cohort in one transaction.

They run in a process of their own: `python -m benchmarks.load.offers '{...}'`. The time of each commit is read right
after it, on the clock that all processes of the machine share.
"""

import json
import random
import sys
import time
from collections.abc import Sequence

from sqlalchemy import exists, func, insert, select
from sqlalchemy.orm import Session

from benchmarks.load.tables import COHORT, INSTRUCTION, round_row
from coordinator.db.sessions import after_commit, reading, utcnow, writing
from coordinator.jobs import service as jobs
from coordinator.models import Client, Federation, Round
from federated import schedule

CommitTimes = dict[str, float]
"""Job id -> time of its offer's commit, in seconds of `time.monotonic`."""


def offer_round(federation_id: str, commit_times: CommitTimes) -> None:
    """Offer one round of the federation, in which all clients evaluate."""
    with writing() as session:
        federation = session.get_one(Federation, federation_id)
        clients = session.scalars(select(Client).where(Client.federation_id == federation_id)).all()
        newest = session.scalar(select(func.max(Round.sequence)).where(Round.federation_id == federation_id)) or 0
        row = round_row(federation_id, newest + 1, len(clients), "evaluating", utcnow())
        session.execute(insert(Round), [row])
        job_ids = _offer_all(session, federation, clients, row["id"])
        after_commit(session, lambda: commit_times.update(dict.fromkeys(job_ids, time.monotonic())))


def _offer_all(session: Session, federation: Federation, clients: Sequence[Client], round_id: str) -> list[str]:
    seeds = [schedule.job_seed(federation.seed, "train", 1, client.ordinal, "evaluate") for client in clients]
    requests = [jobs.JobRequest(client, seed, INSTRUCTION) for client, seed in zip(clients, seeds, strict=True)]
    return [job.id for job in jobs.offer(session, federation, "evaluate", round_id, requests, utcnow())]


def free_federations() -> list[str]:
    """Ids of the federations in use that have no round under evaluation."""
    busy = exists().where(Round.federation_id == Federation.id, Round.state == "evaluating")
    with reading() as session:
        return list(session.scalars(select(Federation.id).where(Federation.state == "paused", ~busy)))


def main() -> None:
    """Offer rounds at random times, `jobs_per_second` on average, until `until`."""
    parameters = json.loads(sys.argv[1])
    draw, commit_times = random.Random(parameters["seed"]), CommitTimes()
    skips, at = 0, parameters["from"]
    while (at := at + draw.expovariate(parameters["jobs_per_second"] / COHORT)) < parameters["until"]:
        time.sleep(max(0.0, at - time.monotonic()))
        free = free_federations()
        skips += not free
        if free:
            offer_round(draw.choice(free), commit_times)
    print(json.dumps({"committed": commit_times, "rounds_skipped": skips}), flush=True)


if __name__ == "__main__":
    main()
