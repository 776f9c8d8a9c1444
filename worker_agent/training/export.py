"""Export of a client's own adapter from this worker's memory. Loads torch, so the command line imports it late."""

from collections.abc import Mapping
from pathlib import Path

from federated import registry
from federated.contract import Adapter
from federated.export.adapter_files import write_adapter
from federated.payloads.payload import Payload
from federated.protocol import Lease
from worker_agent.settings import AgentSettings
from worker_agent.training.job_errors import JobRefused, ModelError
from worker_agent.training.session import SessionFactory


def export_own(
    settings: AgentSettings, lease: Lease, instruction: Path, memory: Path | None, out: Path
) -> list[Path]:
    """Write the adapter that the client evaluates as its own: the instruction's values with its private ones.

    Raises JobRefused if model or data are missing, or if the algorithm has no private values of a client.
    """
    work = lease.work
    if not registry.algorithm(work.algorithm).personal:
        detail = f"{work.algorithm} has no private values of a client: the federation's adapter is the only one"
        raise JobRefused("not_personal", detail)
    if work.trainable.kind == "full":
        raise ModelError("trainable_invalid", "weights trained in full are not an adapter")
    half = registry.client_half(work.algorithm, registry.make_config(work.algorithm, work.config), work.trainable)
    session = SessionFactory(settings).open(work, lease.dataset, lease.seed, lease.settings)
    half.apply(Payload.open(instruction), session, None if memory is None else Payload.open(memory), "own")
    card: Mapping[str, object] = {
        "federation": lease.federation_name,
        "algorithm": work.algorithm,
        "client": lease.client_id,
        "round": lease.round_number,
    }
    adapter = Adapter("peft", session.values())
    return write_adapter(out, adapter, work.trainable, session.facts, work.base_model.id, card)
