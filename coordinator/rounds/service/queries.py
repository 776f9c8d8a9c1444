"""What people and the federations' own life cycle read of rounds."""

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
from coordinator.rounds.lifecycle import Check, Wait
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
    """How many train rounds are closed."""
    return repository.count_closed(session, federation_id)


def newest_adapter_number(session: Session, federation_id: str) -> int | None:
    """The newest round whose adapter can be downloaded."""
    found = repository.newest_adapted(session, federation_id)
    return None if found is None else found.number


def open_rounds(session: Session, federation_ids: Collection[str], now: datetime) -> list[Round]:
    """Rounds that have not ended: those of these federations, and all whose deadline or claim is over."""
    return list(repository.in_states(session, lifecycle.OPEN, federation_ids, now))


def due(session: Session, rounds: Sequence[Round], now: datetime) -> list[str]:
    """Ids of those of the open rounds that have something to do now, which nobody does."""
    free = [row for row in rounds if row.claimed_until is None or row.claimed_until <= now]
    steps = snapshots.next_steps(session, free, now)
    return [round_id for round_id, step in steps.items() if not isinstance(step, Wait)]


def rounds_of(federation_id: str) -> Select[Round]:
    """All rounds of a federation, for a page ordered by `Round.sequence`."""
    return repository.of_federation(federation_id)


def show(session: Session, federation_id: str, kind: str, number: int, attempt: int | None) -> Round:
    """One attempt at a round, the last one if none is named. Raises NotFound."""
    if attempt is None:
        found = repository.newest_attempt(session, federation_id, kind, number)
    else:
        found = repository.attempt(session, federation_id, kind, number, attempt)
    if found is None:
        raise NotFound("round_unknown", f"The federation has no such {kind} round.")
    return found


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
    """The round's jobs: all for the federation's owner, for others those of their own clients.

    Training before evaluation, each by ordinal: an order that stays as it is while somebody reads page after page.
    """
    rows = jobs.of_round(session, round_.id, kind)
    if principal.role != "admin" and principal.organization_id != federation.organization_id:
        own = {
            row.id
            for row in repository.all_clients(session, federation.id)
            if row.organization_id == principal.organization_id
        }
        rows = [job for job in rows if job.client_id in own]
    views = jobs.views(session, rows)
    return sorted(views, key=lambda view: (view.kind == "evaluate", view.ordinal or 0, view.id))


def answer(session: Session, federation: Federation, round_: Round, now: datetime) -> RoundResponse:
    """The round as the API shows it."""
    return answers(session, federation, [round_], now)[0]


def answers(session: Session, federation: Federation, rows: Sequence[Round], now: datetime) -> list[RoundResponse]:
    """These rounds of one federation as the API shows them."""
    accepted = repository.accepted_ordinals(session, federation.id, {row.number for row in rows})
    without_evaluation = {
        row.ordinal for row in repository.all_clients(session, federation.id) if row.evaluation_examples == 0
    }
    return [_answer(session, row, accepted, without_evaluation, now) for row in rows]


def _answer(
    session: Session,
    round_: Round,
    accepted: Sequence[tuple[str, int, int, int, str | None]],
    without_evaluation: Set[int],
    now: datetime,
) -> RoundResponse:
    """`accepted`: kind, number and attempt of the round, ordinal, and why it was left out, of every accepted update.

    `without_evaluation`: ordinals of clients that evaluate nothing.
    """
    what, since = None, None
    if round_.state not in lifecycle.ENDED:
        what, since = waiting(snapshots.next_step(session, round_, now)), waiting_since(round_)
        reasons = [round_.reason] if round_.reason else _held_up_uploads(session, round_)
        what += f", held up: {', '.join(reasons)}" if reasons else ""
    row = {name: getattr(round_, name) for name in RoundResponse.model_fields if hasattr(round_, name)}
    traffic = {name: _whole(round_.metrics.get(name, 0)) for name in TRAFFIC}
    metrics = {name: value for name, value in round_.metrics.items() if name not in TRAFFIC}
    own = {
        ordinal: reason
        for kind, number, attempt, ordinal, reason in accepted
        if (kind, number) == (round_.kind, round_.number) and attempt <= round_.attempt
    }
    told: dict[str, Any] = {"metrics": metrics, "waiting_for": what, "waiting_since": since}
    told["accepted"] = sorted(ordinal for ordinal, reason in own.items() if reason is None)
    told["left_out"] = [{"ordinal": ordinal, "reason": own[ordinal]} for ordinal in sorted(own) if own[ordinal]]
    told["not_evaluated"] = sorted(without_evaluation & set(round_.cohort or ()))
    return RoundResponse.model_validate({**row, **traffic, **told})


def _whole(count: object) -> int:
    """A count as it was recorded; 0 for what is none, so that one row does not keep all from being read."""
    return count if isinstance(count, int) else 0


def _held_up_uploads(session: Session, round_: Round) -> list[str]:
    """What keeps the round's workers from handing in, as far as the coordinator is what keeps them."""
    leased = {job.worker_id for job in jobs.of_round(session, round_.id) if job.state == "leased"}
    return artifacts.upload_problems(session, leased, round_.opened_at) if leased else []


def waiting(step: lifecycle.Step) -> str:
    """What a round waits for, or does just now, for people."""
    match step:
        case Wait():
            return step.what
        case Check():
            return f"checking {len(step.job_ids)} updates"
        case _:
            return _DOING[type(step)]


_DOING: dict[type[lifecycle.Step], str] = {
    lifecycle.Start: "starting",
    lifecycle.Draw: "drawing",
    lifecycle.LeaveOut: "leaving_out_updates",
    lifecycle.Plan: "planning",
    lifecycle.Aggregate: "aggregating",
    lifecycle.Join: "joining_shards",
    lifecycle.Evaluate: "planning_evaluation",
    lifecycle.Close: "closing",
    lifecycle.Retry: "opening_another_attempt",
    lifecycle.Fail: "failing",
}


def waiting_since(round_: Round) -> datetime:
    """When the round came into its present state, as far as that is kept."""
    return round_.aggregated_at or round_.collecting_at or round_.opened_at


def check_may_download(session: Session, principal: Principal, federation: Federation) -> None:
    """Adapters are for the owner and for those who take part. Raises Forbidden for who is merely invited."""
    if principal.role == "admin" or principal.organization_id == federation.organization_id:
        return
    part = session.get(Invitation, (federation.id, principal.organization_id))
    if part is None or part.state != "accepted":
        raise Forbidden("not_taking_part", "Adapters are for organizations that take part. Accept the invitation.")


def note_download(
    session: Session, principal: Principal, federation: Federation, round_: Round, file: str | None
) -> None:
    """Puts on record, for the owner and for who asks, that a file of the adapter is handed out; None: all files."""
    of = [federation.organization_id, principal.organization_id or federation.organization_id]
    audit.append(session, principal.id, "adapter.downloaded", federation.id, of, round=round_.number, file=file)


def adapter_round(session: Session, federation_id: str, number: int | None) -> Round:
    """The aggregated train round with this number, or the newest one. Raises NotFound."""
    if number is None:
        found = repository.newest_adapted(session, federation_id)
    else:
        found = repository.adapted(session, federation_id, number)
    if found is None or not found.adapter:
        which = "No round" if number is None else f"Round {number}"
        raise NotFound("adapter_unknown", f"{which} of this federation has made an adapter yet.")
    return found


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
    """Lets go of every artifact of the federation's rounds, clients and jobs, before its rows go."""
    for holder in repository.holders(session, federation_id):
        artifacts.release(session, holder)
