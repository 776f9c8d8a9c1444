"""The owner's limits that need the data: enough examples behind every result, and no more work than allowed."""

from collections.abc import Sequence

from pydantic import ValidationError

from federated import registry
from federated.contract import Effort
from federated.protocol import ROUND_KINDS, Lease
from worker_agent.settings import PolicySettings
from worker_agent.training.job_errors import DataError, EffortError

USUAL_PASSES = 100
"""Of a node that bounds its local steps and says nothing of passes."""


def check_examples(examples: int, policy: PolicySettings) -> None:
    """Raises DataError (data_too_few) below `min_examples`: nothing leaves a node that is made of fewer."""
    if examples < policy.min_examples:
        detail = f"{examples} examples to train on, this node's min_examples is {policy.min_examples}"
        raise DataError("data_too_few", detail, count=examples, allowed=policy.min_examples)


def check_used(count: int, policy: PolicySettings) -> None:
    """Raises DataError (policy_few_examples) for a result that fewer than `min_examples` examples made."""
    if count < policy.min_examples:
        detail = f"the job used {count} examples, this node's min_examples is {policy.min_examples}"
        raise DataError("policy_few_examples", detail, count=count, allowed=policy.min_examples)


def may_evaluate(held_out: int, policy: PolicySettings) -> bool:
    """Whether metrics over so many held-out examples may leave."""
    return held_out >= policy.min_held_out


def check_effort(lease: Lease, examples: int, policy: PolicySettings, words: int = 1) -> None:
    """Raises EffortError if the job would do more than the owner allows; a description stands for all that follow.

    `words`: with how many an evaluation reads each example.

    policy_unbounded where the algorithm does not say how much it does, and the owner has a limit. DataError
    (policy_few_examples) where an update would be made of too few examples.
    """
    most_passes = policy.max_passes
    for effort in _efforts(lease, examples, words):
        if effort is not None and effort.examples is not None:
            check_used(effort.examples, policy)
        if policy.max_local_steps is None and most_passes is None:
            continue
        if effort is None:
            detail = f"{lease.work.algorithm} does not say how much its jobs do, and this node has limits on that"
            raise EffortError("policy_unbounded", detail)
        if policy.max_local_steps is not None and effort.steps > policy.max_local_steps:
            _refuse("policy_steps", "local steps", effort.steps, policy.max_local_steps)
        if effort.passes > (most_passes or USUAL_PASSES):
            _refuse("policy_passes", "passes over the examples", round(effort.passes), most_passes or USUAL_PASSES)


def _efforts(lease: Lease, examples: int, words: int) -> Sequence[Effort | None]:
    """Of the job, as it may turn out: what a round is for stands in its instruction, and not in its lease."""
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
