"""Policy of this node's owner: pure functions from a lease to a refusal or None.

The coordinator receives a refusal's rule and facts. The client then takes no part until its owner changes something.
A limit that cannot be checked refuses.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from federated import registry
from federated.bounds import MAX_LARGE
from federated.contract import AlgorithmConfig
from federated.payloads.header import HeaderError, read_header
from federated.protocol import ROUND_KINDS, FailureFacts, Lease
from worker_agent.node.approvals import approval_digest
from worker_agent.node.capabilities import is_allowed
from worker_agent.settings import AgentSettings

NOT_APPROVED = "policy_approval"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Refusal of a job. `rule` is a stable code; it is disclosed together with `facts`.

    `text` is for the node's log and names the necessary change.
    """

    rule: str
    text: str
    facts: FailureFacts = field(default_factory=FailureFacts)


@dataclass(frozen=True, slots=True)
class Node:
    """The state of the node that a lease is checked against. `algorithms`: name -> installed revision."""

    settings: AgentSettings
    algorithms: Mapping[str, int]
    approved_digests: Collection[str] = ()


def check(lease: Lease, node: Node) -> Refusal | None:
    """The first rule that forbids this job, or None."""
    return next((refusal for rule in RULES if (refusal := rule(lease, node)) is not None), None)


def organization(lease: Lease, node: Node) -> Refusal | None:
    """Only federations of the listed organizations. A federation without an owner's name is not of them."""
    allowlist = node.settings.policy.organizations
    if allowlist is None or lease.owner_name in allowlist:
        return None
    owner = lease.owner_name or "an unknown organization"
    return Refusal("policy_organization", f"this node does not work for {owner}")


def approval(lease: Lease, node: Node) -> Refusal | None:
    """With `approve = "ask"`, only requests that the node's owner approved."""
    if node.settings.policy.approve == "always" or approval_digest(lease) in node.approved_digests:
        return None
    advice = f"on the node, run: worker-agent approve {lease.federation_id}"
    return Refusal(NOT_APPROVED, f"the owner of this node has not approved this request of the federation; {advice}")


def algorithm(lease: Lease, node: Node) -> Refusal | None:
    """Only allowed algorithms, installed here in the federation's revision."""
    name, revision = lease.work.algorithm, lease.work.algorithm_revision
    if not is_allowed(name, node.settings):
        return Refusal("policy_algorithm", f"this node does not allow the algorithm {name!r}")
    if node.algorithms.get(name) != revision:
        here = f"revision {node.algorithms[name]}" if name in node.algorithms else "no such algorithm"
        return Refusal("algorithm_missing", f"the federation runs {name} revision {revision}, this node has {here}")
    return None


def dataset(lease: Lease, node: Node) -> Refusal | None:
    """Only data sets of this node that federations may use."""
    if lease.dataset not in node.settings.datasets:
        return Refusal("data_missing", f"this node has no data set named {lease.dataset!r}")
    allowlist = node.settings.policy.datasets
    if allowlist is not None and lease.dataset not in allowlist:
        return Refusal("policy_dataset", f"this node does not allow the data set {lease.dataset!r} in federations")
    return None


def model(lease: Lease, node: Node) -> Refusal | None:
    """Only base models that the node's owner listed."""
    model_id = lease.work.base_model.id
    if model_id in node.settings.models:
        return None
    return Refusal("model_missing", f"this node has no base model {model_id!r}; its owner can add it under [models]")


def rank(lease: Lease, node: Node) -> Refusal | None:
    """No matrix above the node's maximum rank, as far as the algorithm states its ranks in advance."""
    limit = node.settings.policy.max_rank
    if limit is None:
        return None
    largest = _config_of(lease).largest_rank(lease.work.trainable, limit)
    return None if largest <= limit else _above("policy_rank", "rank", largest, limit)


def _config_of(lease: Lease) -> AlgorithmConfig:
    """The federation's config, or the default one, with the trainable's ranks, if it cannot be read here."""
    try:
        return registry.make_config(lease.work.algorithm, lease.work.config)
    except (registry.UnknownAlgorithm, ValidationError):
        return AlgorithmConfig()


def check_instruction(path: Path, node: Node) -> Refusal | None:
    """The refusal of an instruction with a factor above the maximum rank, which the lease does not show."""
    limit = node.settings.policy.max_rank
    if limit is None:
        return None
    try:
        tensors = read_header(path).tensors
    except HeaderError:
        # Not a matter of policy: opening the instruction reports the fault.
        return None
    for name, entry in tensors.items():
        if name.endswith((".lora_A.weight", ".lora_embedding_A")) and entry.shape and entry.shape[0] > limit:
            return _above("policy_rank", f"{name!r}: rank", entry.shape[0], limit)
    return None


def _above(rule: str, what: str, value: int, limit: int) -> Refusal:
    text = f"{what} {value} is above this node's limit of {limit}"
    return Refusal(rule, text, FailureFacts(asked=min(value, MAX_LARGE), allowed=min(limit, MAX_LARGE)))


def steps(lease: Lease, node: Node) -> Refusal | None:
    """No more local steps than the node allows, as far as they are known without the data.

    A description represents all later jobs. Effort that depends on the number of examples is checked once they are
    loaded.
    """
    limit = node.settings.policy.max_local_steps
    if limit is None or lease.kind == "evaluate":
        return None
    config = _config_of(lease)
    # The kind of a round is in its instruction; the lease proves nothing about it.
    for kind in ROUND_KINDS:
        effort = config.most_effort(kind, 1)
        if effort is None:
            return Refusal("policy_unbounded", f"{lease.work.algorithm} does not state the effort of its jobs")
        if effort.steps > limit:
            return _above("policy_steps", "local steps:", effort.steps, limit)
    return None


def download(lease: Lease, node: Node) -> Refusal | None:
    """No instruction larger than this node downloads."""
    limit = node.settings.policy.max_download_bytes
    if limit is None or lease.instruction is None or lease.instruction.size_bytes <= limit:
        return None
    return _above("policy_download", "bytes of the instruction:", lease.instruction.size_bytes, limit)


# First the origin, then the content. The first rule that refuses is the one reported.
RULES: tuple[Callable[[Lease, Node], Refusal | None], ...] = (
    organization,
    approval,
    algorithm,
    dataset,
    model,
    rank,
    steps,
    download,
)
