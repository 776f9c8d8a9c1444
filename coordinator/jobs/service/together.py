"""Jobs with what they belong to, read at once however many they are."""

from collections.abc import Iterable
from typing import TypeVar

from sqlalchemy.orm import Session

from coordinator.jobs import repository
from coordinator.models import Base, Client, Federation, Job, Round

Row = TypeVar("Row", bound=Base)


class Together:
    """Keeps the rows of these jobs, so that the session need not ask for them one by one."""

    def __init__(self, session: Session, jobs: Iterable[Job]) -> None:
        self.session = session
        self._jobs = {job.id: job for job in jobs}
        rows = self._jobs.values()
        self._clients = repository.rows(session, Client, {job.client_id for job in rows})
        self._federations = repository.rows(session, Federation, {job.federation_id for job in rows})
        self._rounds = repository.rows(session, Round, {job.round_id for job in rows if job.round_id})
        self._others: dict[tuple[type[Base], str], Base] = {}
        self._submitted: dict[str, int] = {}

    def job(self, job_id: str) -> Job | None:
        """The job with this id."""
        return self._jobs.get(job_id)

    def client(self, job: Job) -> Client:
        """Whose job it is."""
        return self._clients[job.client_id]

    def federation(self, job: Job) -> Federation:
        """The federation that it is of."""
        return self._federations[job.federation_id]

    def round(self, job: Job) -> Round | None:
        """The round that it is of; a describe job is of none."""
        return self._rounds[job.round_id] if job.round_id else None

    def other(self, model: type[Row], key: str) -> Row:
        """Any row that several of them share, read once."""
        row = self._others.setdefault((model, key), self.session.get_one(model, key))
        assert isinstance(row, model)  # noqa: S101 - as it was asked for
        return row

    def next_submission(self, round_id: str) -> int:
        """A number larger than those of the round's submissions so far."""
        if round_id not in self._submitted:
            self._submitted[round_id] = repository.submitted_in_round(self.session, round_id)
        self._submitted[round_id] += 1
        return self._submitted[round_id]
