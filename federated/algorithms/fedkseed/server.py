"""Server half of FedKSeed. It never needs the model, only the distance moved along each direction.

State: `accumulators` (K,) float64, with `pro` also `counts` (K,) int64 and `sums` (K,) float64 of the scalars'
magnitudes. Facts: those of the exported ledger (see `ledger`), and `elements`, the number of perturbed numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from federated.algorithm_kit.shared_tensors import mean_metrics
from federated.algorithm_kit.update_schema import check_update
from federated.algorithms.fedkseed.config import FedKSeedConfig
from federated.algorithms.fedkseed.history import Steps, accumulate, count_scalars, sum_sizes
from federated.algorithms.fedkseed.ledger import weights
from federated.algorithms.fedkseed.scope import perturbed_names
from federated.algorithms.fedkseed.seed_choice import probabilities
from federated.contract import (
    Adapter,
    AnyTrainable,
    ClientFacts,
    ClientUpdate,
    FederationRefused,
    Outcome,
    RoundFacts,
    ServerHalf,
    UpdateRefused,
)
from federated.maths.directions import probe_digest
from federated.payloads.payload import Payload
from federated.trainable import ModelFacts

_STATE_ONLY = ("elements",)
_CLIENT_METRICS = {"loss": "train_loss", "scalar_rms": "scalar_rms", "steps_skipped": "steps_skipped"}


class FedKSeedServer(ServerHalf):
    """`a_j += sum over clients of c_i * learning_rate * (its scalars for j)`."""

    def __init__(self, config: FedKSeedConfig, trainable: AnyTrainable) -> None:
        self._config = config
        self._kind = trainable.kind

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """Zeros. Raises FederationRefused for an initial adapter, and for a model or trainable that does not suit."""
        if initial:
            raise FederationRefused(
                f"initial adapter: tensor {min(initial)!r} would have to travel, and only scalars do"
            )
        specs = {tensor.name: tensor for tensor in model.tensors}
        targets = perturbed_names(specs, self._config)
        if not targets:
            raise FederationRefused(
                f"perturb {self._config.perturb!r} matches none of the {len(specs)} trained tensors"
            )
        base_names = [tensor.name for tensor in model.tensors if tensor.initialisation.kind == "base"]
        if self._kind == "lora" and base_names:
            raise FederationRefused(
                f"tensor {base_names[0]!r} starts from the base model: train it with the kind 'full'"
            )
        facts = {
            "algorithm": "fedkseed",
            "seed": seed,
            "task_type": model.task_type,
            "weights_digest": model.weights_digest,
            "directions": self._config.directions,
            "candidates": self._config.candidates,
            "directions_digest": probe_digest(self._config.directions, self._config.candidates, torch.device("cpu")),
            "changed": [
                {"name": name, "shape": list(specs[name].shape)} for name in targets if name in set(base_names)
            ],
            "started": _seeded_rows(model),
            "moved": [name for name in targets if name not in set(base_names)],
            "elements": sum(math.prod(specs[name].shape) for name in targets),
        }
        count = self._config.candidates
        tensors = {"accumulators": torch.zeros(count, dtype=torch.float64)}
        if self._config.variant == "pro":
            tensors |= {"counts": torch.zeros(count, dtype=torch.int64)}
            tensors |= {"sums": torch.zeros(count, dtype=torch.float64)}
        return Payload(tensors, facts)

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        """K scalars, with `pro` K probabilities, and the round's step size, the same for all clients."""
        tensors = {"accumulators": state["accumulators"].float()}
        if self._config.variant == "pro":
            tensors["probabilities"] = probabilities(state["counts"], state["sums"]).float()
        bound = [self._config.local_steps]
        expects = {
            "seeds": {"dtype": "I32", "max_shape": bound, "in_norm": False},
            "scalars": {"dtype": "F32", "max_shape": bound},
        }
        facts = {
            "expects": expects,
            "directions_digest": state.facts["directions_digest"],
            "learning_rate": self._config.learning_rate_of(state.facts["elements"], step),
        }
        instruction = Payload(tensors, facts)
        return {client.ordinal: instruction for client in clients}

    def check(self, instruction: Payload, update: Payload) -> None:
        """At most one pair a step, known directions, finite scalars within `max_scalar`. Raises UpdateRefused."""
        check_update(instruction, update)
        seeds, scalars = update["seeds"], update["scalars"]
        if len(seeds) != len(scalars):
            raise UpdateRefused("scalars", f"has {len(scalars)} entries for {len(seeds)} seeds")
        for position, seed in enumerate(seeds.tolist()):
            if not 0 <= seed < self._config.candidates:
                reason = f"names direction {seed} at position {position}, there are {self._config.candidates}"
                raise UpdateRefused("seeds", reason)
        for position, scalar in enumerate(scalars.tolist()):
            if not abs(scalar) <= self._config.max_scalar:
                reason = f"is {scalar:g} at position {position}, at most {self._config.max_scalar:g} is allowed"
                raise UpdateRefused("scalars", reason)

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """Exact sums for each direction, rounded once to float64."""
        updates = sorted(updates, key=lambda update: update.ordinal)
        client_weights = [update.weight if self._config.weighting == "examples" else 1.0 for update in updates]
        total = math.fsum(client_weights)
        records = [
            Steps(update.payload["seeds"].tolist(), update.payload["scalars"].tolist(), weight / total)
            for update, weight in zip(updates, client_weights, strict=True)
        ]
        rate = self._config.learning_rate_of(state.facts["elements"], step)
        tensors: dict[str, Tensor] = {"accumulators": accumulate(state["accumulators"], records, rate)}
        if self._config.variant == "pro":
            tensors["counts"] = count_scalars(state["counts"], records)
            tensors["sums"] = sum_sizes(state["sums"], records, self._config.max_scalar)
        metrics = mean_metrics(updates, _CLIENT_METRICS, client_weights)
        metrics["pairs"] = float(sum(len(record.seeds) for record in records))
        metrics["accumulator_rms"] = float(tensors["accumulators"].square().mean().sqrt())
        return Outcome(Payload(tensors, state.facts), metrics)

    def export(self, state: Payload) -> Adapter:
        """LoRA factors and head for PEFT, or the ledger for fully trained weights."""
        facts = {name: value for name, value in state.facts.items() if name not in _STATE_ONLY}
        ledger = Payload({"accumulators": state["accumulators"].float()}, facts)
        if self._kind == "lora":
            return Adapter("peft", dict(weights(ledger).values))
        return Adapter("ledger", dict(ledger), facts=facts)


def _seeded_rows(model: ModelFacts) -> list[dict[str, Any]]:
    """Facts of the tensors of an adapter that have a seeded start, trained or not."""
    own = [tensor for tensor in model.tensors if tensor.initialisation.kind != "base"]
    return [tensor.model_dump(mode="json") for tensor in (*own, *model.seeded)]
