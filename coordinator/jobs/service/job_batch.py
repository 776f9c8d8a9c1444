"""Batch of jobs with their related rows, read with one statement."""

from collections.abc import Collection, Sequence

from sqlalchemy.orm import Session

from coordinator.jobs import repository
from coordinator.models import Artifact, Client, Federation, Job, Organization, Round


class JobBatch:
    """Jobs with their clients, federations, owners, rounds and instructions."""

    def __init__(
        self, session: Session, job_ids: Collection[str], rows: Sequence[repository.JobDetails] = ()
    ) -> None:
        """`rows`: further jobs, read before."""
        self.session = session
        new = repository.job_details(session, job_ids) if job_ids else ()
        self._rows = {row[0].id: row for row in (*new, *rows)}
        self._submission_numbers: dict[str, int] = {}

    def job(self, job_id: str) -> Job | None:
        """The job with this id."""
        row = self._rows.get(job_id)
        return None if row is None else row[0]

    def client(self, job: Job) -> Client:
        """The job's client."""
        return self._rows[job.id][1]

    def federation(self, job: Job) -> Federation:
        """The job's federation."""
        return self._rows[job.id][2]

    def owner(self, job: Job) -> Organization:
        """The organization that owns the federation."""
        return self._rows[job.id][3]

    def round(self, job: Job) -> Round | None:
        """The job's round. A describe job has none."""
        return self._rows[job.id][4]

    def instruction(self, job: Job) -> Artifact | None:
        """The job's instruction. A describe job has none."""
        return self._rows[job.id][5]

    def next_submission(self, round_id: str) -> int:
        """A number larger than those of the round's earlier submissions."""
        if round_id not in self._submission_numbers:
            self._submission_numbers[round_id] = repository.submitted_in_round(self.session, round_id)
        self._submission_numbers[round_id] += 1
        return self._submission_numbers[round_id]
