"""The owner's limits that need the data: enough examples behind every result, and no more work than allowed."""

from collections.abc import Sequence

from pydantic import ValidationError

from federated import registry
from federated.contract import Effort
from federated.protocol import ROUND_KINDS, Lease
from worker_agent.settings import PolicySettings
from worker_agent.training.job_errors import DataError, EffortError

USUAL_PASSES = 100
"""Limit of a node that limits its local steps and not its passes."""


def check_examples(examples: int, policy: PolicySettings) -> None:
    """Raises DataError (data_too_few) below `min_examples`: no result of fewer examples leaves a node."""
    if examples < policy.min_examples:
        detail = f"{examples} examples to train on, this node's min_examples is {policy.min_examples}"
        raise DataError("data_too_few", detail, count=examples, allowed=policy.min_examples)


def check_used(count: int, policy: PolicySettings) -> None:
    """Raises DataError (policy_few_examples) for a result of fewer than `min_examples` examples."""
    if count < policy.min_examples:
        detail = f"the job used {count} examples, this node's min_examples is {policy.min_examples}"
        raise DataError("policy_few_examples", detail, count=count, allowed=policy.min_examples)


def may_evaluate(held_out: int, policy: PolicySettings) -> bool:
    """Whether metrics over this number of held-out examples may be sent."""
    return held_out >= policy.min_held_out


def check_effort(lease: Lease, examples: int, policy: PolicySettings, words: int = 1) -> None:
    """Raises EffortError if the job exceeds the owner's limits; a description represents all later jobs.

    `words`: the number of words with which an evaluation reads each example.

    The code is policy_unbounded if the algorithm does not state its effort and the owner has a limit. Raises
    DataError (policy_few_examples) if an update would be based on too few examples.
    """
    most_passes = policy.max_passes
    for effort in _efforts(lease, examples, words):
        if effort is not None and effort.examples is not None:
            check_used(effort.examples, policy)
        if policy.max_local_steps is None and most_passes is None:
            continue
        if effort is None:
            detail = f"{lease.work.algorithm} does not state the effort of its jobs, and this node limits that"
            raise EffortError("policy_unbounded", detail)
        if policy.max_local_steps is not None and effort.steps > policy.max_local_steps:
            _refuse("policy_steps", "local steps", effort.steps, policy.max_local_steps)
        if effort.passes > (most_passes or USUAL_PASSES):
            _refuse("policy_passes", "passes over the examples", round(effort.passes), most_passes or USUAL_PASSES)


def _efforts(lease: Lease, examples: int, words: int) -> Sequence[Effort | None]:
    """The possible efforts of the job: the kind of a round is in its instruction, and not in its lease."""
    if lease.kind == "evaluate":
        return [Effort(0, len(lease.views) * words)]
    try:
        algorithm = registry.algorithm(lease.work.algorithm)
        config = registry.make_config(lease.work.algorithm, lease.work.config)
    except (registry.UnknownAlgorithm, ValidationError):
        return [None]
    rounds = [config.most_effort(kind, examples) for kind in ROUND_KINDS]
    evaluation = Effort(0, (2 if algorithm.personal else 1) * words)
    return [*rounds, evaluation] if lease.kind == "describe" else rounds


def _refuse(code: str, what: str, amount: int, limit: int) -> None:
    detail = f"the job may take {amount} {what}, this node allows {limit}"
    raise EffortError(code, detail, asked=amount, allowed=limit)
