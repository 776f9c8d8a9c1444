"""End of a round's evaluation: the mean metrics, or the reason why there are none."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator import events
from coordinator.clients import service as clients
from coordinator.jobs import service as jobs
from coordinator.models import Federation, Job, Round
from coordinator.rounds import statistics
from coordinator.rounds.facts import name_of
from coordinator.rounds.service import snapshots

NOT_EVALUATED = "not evaluated: "


def accept_results(session: Session, federation: Federation, round_: Round, now: datetime) -> bool:
    """Accepts the submitted evaluations and adds their means to the round's metrics. Returns False without any.

    If a due evaluation gave no metrics, or not the one of the federation's stopping rule, the round's `reason_detail`
    and an event say why.
    """
    evaluations = jobs.of_round(session, round_.id, "evaluate")
    submissions = [job for job in evaluations if job.state == "submitted"]
    for job in submissions:
        jobs.accept(session, job, now)
    if submissions:
        names = {"loss", *federation.definition["task"]["metrics"]}
        means = statistics.metrics_of([(job.submission or {})["evaluation"] for job in submissions], names)
        round_.metrics = {**round_.metrics, **means, "evaluated_by": len(submissions)}
    if snapshots.evaluation_due(federation, round_):
        _report_missing(session, federation, round_, evaluations, bool(submissions))
    return bool(submissions)


def _report_missing(
    session: Session, federation: Federation, round_: Round, evaluations: Sequence[Job], has_results: bool
) -> None:
    metric = federation.definition["stopping"]["metric"]
    detail = round_.reason_detail or ""
    if has_results and (metric is None or metric in round_.metrics):
        return
    _, separator, why = detail.partition(NOT_EVALUATED)
    if not separator:
        why = (
            f"no client reported {metric!r}" if has_results else _why_nobody(session, federation, round_, evaluations)
        )
        round_.reason_detail = f"{detail}; {NOT_EVALUATED}{why}" if detail else NOT_EVALUATED + why
    events.append(session, federation.id, "round.not_evaluated", **name_of(round_), metric=metric, detail=why)


def _why_nobody(session: Session, federation: Federation, round_: Round, evaluations: Sequence[Job]) -> str:
    problems = {index: job.problem or {} for index, job in enumerate(evaluations)}
    reasons = {
        index: statistics.reason(*(problem.get(name) for name in ("code", "error", "place"))) or "no_answer"
        for index, problem in problems.items()
    }
    if (frequent := statistics.most_frequent(reasons)) is not None:
        return f"no metrics came of {len(evaluations)} clients; {frequent[1]} of them: {frequent[0]}"
    if not round_.evaluation_planned:
        return "the round was closed before any client was asked"
    if not any(client.evaluation_examples for client in clients.ready_clients(session, federation.id)):
        return "no client has enough held-out examples"
    return "no client that has enough held-out examples could be asked"
