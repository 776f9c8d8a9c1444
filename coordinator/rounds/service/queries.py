"""Queries of rounds, for the API and for the life cycle of federations."""

from collections.abc import Collection, Sequence, Set
from datetime import datetime
from typing import Any

from sqlalchemy import Select
from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.artifacts import service as artifacts
from coordinator.auth.principals import Principal
from coordinator.clients import service as clients
from coordinator.errors import Forbidden, NotFound
from coordinator.jobs import service as jobs
from coordinator.models import Federation, Invitation, Round
from coordinator.rounds import lifecycle, repository
from coordinator.rounds.lifecycle import Wait
from coordinator.rounds.schemas import AdapterFile, RoundResponse
from coordinator.rounds.service import snapshots
from federated.protocol import JobKind, JobResponse

TRAFFIC = ("upload_bytes", "download_bytes")


def newest(session: Session, federation_id: str) -> Round | None:
    """The round that was opened last."""
    return repository.newest(session, federation_id)


def newest_of(session: Session, federation_ids: Collection[str]) -> dict[str, Round]:
    """Federation id -> the round that was opened last, of those that have one."""
    return repository.newest_of(session, federation_ids)


def history(session: Session, federation_id: str) -> list[dict[str, Any]]:
    """Metrics of the closed train rounds, in order."""
    return repository.history(session, federation_id)


def count_closed(session: Session, federation_id: str) -> int:
    """Number of closed train rounds."""
    return repository.count_closed(session, federation_id)


def newest_adapter_number(session: Session, federation_id: str) -> int | None:
    """The newest round whose adapter can be downloaded."""
    round_ = repository.newest_with_adapter(session, federation_id)
    return None if round_ is None else round_.number


def open_rounds(session: Session, federation_ids: Collection[str], now: datetime) -> list[Round]:
    """Open rounds: those of these federations, and all with a past deadline or claim."""
    return list(repository.in_states(session, lifecycle.OPEN, federation_ids, now))


def due(session: Session, rounds: Sequence[Round], now: datetime) -> list[str]:
    """Ids of those open rounds that have a due step and no claim."""
    free = [row for row in rounds if row.claimed_until is None or row.claimed_until <= now]
    steps = snapshots.next_steps(session, free, now)
    return [round_id for round_id, step in steps.items() if not isinstance(step, Wait)]


def rounds_of(federation_id: str) -> Select[Round]:
    """All rounds of a federation, for a page ordered by `Round.sequence`."""
    return repository.of_federation(federation_id)


def show(session: Session, federation_id: str, kind: str, number: int, attempt: int | None) -> Round:
    """One attempt at a round, the last one if none is named. Raises NotFound."""
    if attempt is None:
        round_ = repository.newest_attempt(session, federation_id, kind, number)
    else:
        round_ = repository.attempt(session, federation_id, kind, number, attempt)
    if round_ is None:
        raise NotFound("round_unknown", f"The federation has no such {kind} round.")
    return round_


def visible(session: Session, principal: Principal, round_id: str) -> tuple[Federation, Round]:
    """A round with its federation, if the principal may see that. Raises NotFound."""
    round_ = session.get(Round, round_id)
    federation = None if round_ is None else session.get(Federation, round_.federation_id)
    if round_ is None or federation is None or not clients.may_see(session, principal, federation):
        raise NotFound("round_unknown", f"There is no round {round_id}, or it is not yours to see.")
    return federation, round_


def jobs_of(
    session: Session, principal: Principal, federation: Federation, round_: Round, kind: JobKind | None
) -> list[JobResponse]:
    """The round's jobs: all of them for the federation's owner, those of their own clients for others.

    Training comes before evaluation, each by ordinal. This order is stable while a caller reads page after page.
    """
    rows = jobs.of_round(session, round_.id, kind)
    if principal.role != "admin" and principal.organization_id != federation.organization_id:
        own = {
            row.id
            for row in repository.all_clients(session, federation.id)
            if row.organization_id == principal.organization_id
        }
        rows = [job for job in rows if job.client_id in own]
    views = jobs.to_responses(session, rows)
    return sorted(views, key=lambda view: (view.kind == "evaluate", view.ordinal or 0, view.id))


def to_response(session: Session, federation: Federation, round_: Round, now: datetime) -> RoundResponse:
    """The round as the API shows it."""
    return to_responses(session, federation, [round_], now)[0]


def to_responses(
    session: Session, federation: Federation, rows: Sequence[Round], now: datetime
) -> list[RoundResponse]:
    """These rounds of one federation as the API shows them."""
    acceptances = repository.accepted_ordinals(session, federation.id, {row.number for row in rows})
    without_evaluation = {
        row.ordinal for row in repository.all_clients(session, federation.id) if row.evaluation_examples == 0
    }
    return [_response(session, row, acceptances, without_evaluation, now) for row in rows]


def _response(
    session: Session,
    round_: Round,
    acceptances: Sequence[tuple[str, int, int, int, str | None]],
    without_evaluation: Set[int],
    now: datetime,
) -> RoundResponse:
    """`acceptances`: kind, number and attempt of the round, ordinal, and reason of omission, of accepted updates.

    `without_evaluation`: ordinals of clients that evaluate nothing.
    """
    status, since = None, None
    if round_.state not in lifecycle.TERMINAL:
        status, since = snapshots.next_step(session, round_, now).label, waiting_since(round_)
        reasons = [round_.reason] if round_.reason else _held_up_uploads(session, round_)
        status += f", held up: {', '.join(reasons)}" if reasons else ""
    row = {name: getattr(round_, name) for name in RoundResponse.model_fields if hasattr(round_, name)}
    traffic = {name: _whole(round_.metrics.get(name, 0)) for name in TRAFFIC}
    metrics = {name: value for name, value in round_.metrics.items() if name not in TRAFFIC}
    own = {
        ordinal: reason
        for kind, number, attempt, ordinal, reason in acceptances
        if (kind, number) == (round_.kind, round_.number) and attempt <= round_.attempt
    }
    fields: dict[str, Any] = {"metrics": metrics, "waiting_for": status, "waiting_since": since}
    fields["accepted"] = sorted(ordinal for ordinal, reason in own.items() if reason is None)
    fields["left_out"] = [{"ordinal": ordinal, "reason": own[ordinal]} for ordinal in sorted(own) if own[ordinal]]
    fields["not_evaluated"] = sorted(without_evaluation & set(round_.cohort or ()))
    return RoundResponse.model_validate({**row, **traffic, **fields})


def _whole(count: object) -> int:
    """A recorded count. 0 for any other value, so that one bad row does not make a whole page unreadable."""
    return count if isinstance(count, int) else 0


def _held_up_uploads(session: Session, round_: Round) -> list[str]:
    """Reasons of the coordinator's own that keep the round's workers from uploading."""
    worker_ids = {job.worker_id for job in jobs.of_round(session, round_.id) if job.state == "leased"}
    return artifacts.upload_problems(session, worker_ids, round_.opened_at) if worker_ids else []


def waiting_since(round_: Round) -> datetime:
    """Time of the round's last recorded change of state."""
    return round_.aggregated_at or round_.collecting_at or round_.opened_at


def check_may_download(session: Session, principal: Principal, federation: Federation) -> None:
    """Raises Forbidden unless the principal owns the federation or takes part. An open invitation is not enough."""
    if principal.role == "admin" or principal.organization_id == federation.organization_id:
        return
    part = session.get(Invitation, (federation.id, principal.organization_id))
    if part is None or part.state != "accepted":
        raise Forbidden("not_taking_part", "Adapters are for organizations that take part. Accept the invitation.")


def note_download(
    session: Session, principal: Principal, federation: Federation, round_: Round, file: str | None
) -> None:
    """Adds an audit entry of a download, for the owner and the downloading organization. `file` None: all files."""
    audience = [federation.organization_id, principal.organization_id or federation.organization_id]
    audit.append(session, principal.id, "adapter.downloaded", federation.id, audience, round=round_.number, file=file)


def adapter_round(session: Session, federation_id: str, number: int | None) -> Round:
    """The aggregated train round with this number, or the newest one. Raises NotFound."""
    if number is None:
        round_ = repository.newest_with_adapter(session, federation_id)
    else:
        round_ = repository.round_with_adapter(session, federation_id, number)
    if round_ is None or not round_.adapter:
        which = "No round" if number is None else f"Round {number}"
        raise NotFound("adapter_unknown", f"{which} of this federation has made an adapter yet.")
    return round_


def adapter_file(round_: Round, name: str) -> AdapterFile:
    """One stored file of the round's adapter. Raises NotFound that lists the files."""
    files = adapter_files(round_)
    if name not in files:
        raise NotFound("file_unknown", f"The adapter has no file {name!r}; it has: {', '.join(files)}.")
    return files[name]


def adapter_files(round_: Round) -> dict[str, AdapterFile]:
    """The stored files of the round's adapter by name."""
    files = (round_.adapter or {}).get("files", {})
    return {name: AdapterFile.model_validate(files[name]) for name in sorted(files)}


def release_all(session: Session, federation_id: str) -> None:
    """Releases every artifact of the federation's rounds, clients and jobs, before its rows are deleted."""
    for holder in repository.holders(session, federation_id):
        artifacts.release(session, holder)
