"""The worker's half of FedKSeed: rebuild the model from K scalars, walk along directions, answer with scalars."""

import math
import time
from collections.abc import Iterator

import torch

from federated.algorithm_kit.local_training import shuffled
from federated.algorithms.fedkseed.config import FedKSeedConfig
from federated.algorithms.fedkseed.perturbation import LocalSteps, PerturbedWeights, Record, StepSizes
from federated.algorithms.fedkseed.scope import perturbed_names
from federated.algorithms.fedkseed.seed_choice import chosen_seeds, uniform_seeds
from federated.contract import AnyTrainable, ClientResult, JobDeclined, View
from federated.maths.directions import directions, probe_digest
from federated.payloads.payload import Payload
from federated.session import Batch, TrainingSession

_REPORT_SECONDS = 0.5


class FedKSeedClient:
    """Update = the directions taken and one scalar for each; keeps no memory, a late joiner needs none."""

    def __init__(self, config: FedKSeedConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        """The model of the received scalars; shared and own are the same. Raises JobDeclined."""
        self._received(instruction, session)

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        """Take the local steps. Raises JobDeclined if this worker makes other directions."""
        weights = self._received(instruction, session)
        session.training(False)
        began = time.perf_counter()
        rate = float(instruction.facts["learning_rate"])
        with torch.inference_mode(), weights.clean_at_hand():
            record = self._steps(instruction, session, weights, rate)
        metrics = {
            "loss": record.mean_loss(),
            "steps": float(len(record.seeds)),
            "examples_seen": float(self._config.local_steps * self._config.batch_size),
            "scalar_rms": math.sqrt(math.fsum(g * g for g in record.scalars) / max(1, len(record.scalars))),
            "steps_skipped": float(record.not_finite + record.too_large),
            "scalars_clipped": float(record.clipped),
            "seconds": time.perf_counter() - began,
        }
        told = Payload(
            {
                "seeds": torch.tensor(record.seeds, dtype=torch.int32),
                "scalars": torch.tensor(record.scalars, dtype=torch.float32),
            }
        )
        return ClientResult(told, float(session.examples), metrics)

    def _received(self, instruction: Payload, session: TrainingSession) -> PerturbedWeights:
        config = self._config
        _decline_other_directions(instruction, config, session.device)
        names = perturbed_names(session.trainables, config)
        # What stands still needs no gradient, and neither does anything else here.
        session.train_all_except(session.trainables.keys())
        kinds = directions(config.directions, session.federation_seed, config.candidates)
        weights = PerturbedWeights(kinds, {name: session.trainables[name] for name in names})
        weights.rebuild(instruction["accumulators"])
        return weights

    def _steps(
        self, instruction: Payload, session: TrainingSession, weights: PerturbedWeights, rate: float
    ) -> Record:
        config = self._config
        steps = LocalSteps(
            weights,
            StepSizes(config.epsilon, rate, config.max_difference, config.clip_quantile, config.max_scalar),
        )
        seeds = self._seeds(instruction, session.seed)
        reported = time.monotonic()
        for done, (seed, batch) in enumerate(zip(seeds, _batches(session, config), strict=True), 1):
            steps.step(seed, lambda batch=batch: session.loss(batch))  # type: ignore[misc]
            if done == config.local_steps or time.monotonic() - reported >= _REPORT_SECONDS:
                session.progress(done, config.local_steps, {"loss": steps.record.mean_loss()})
                reported = time.monotonic()
        return steps.record

    def _seeds(self, instruction: Payload, job_seed: int) -> list[int]:
        if self._config.variant == "pro":
            return chosen_seeds(job_seed, self._config.local_steps, instruction["probabilities"])
        return uniform_seeds(job_seed, self._config.local_steps, self._config.candidates)


def _batches(session: TrainingSession, config: FedKSeedConfig) -> Iterator[Batch]:
    """As many batches as steps, all full: the examples in an order of the job's seed, again and again."""
    wanted = config.local_steps * config.batch_size
    order: list[int] = []
    epoch = 0
    while len(order) < wanted:
        order += shuffled(session.seed, epoch, session.examples)
        epoch += 1
    return session.batches(order[:wanted], config.batch_size)


def _decline_other_directions(instruction: Payload, config: FedKSeedConfig, device: torch.device) -> None:
    wanted = instruction.facts["directions_digest"]
    found = probe_digest(config.directions, config.candidates, device)
    if found != wanted:
        raise JobDeclined(
            "directions_differ",
            f"on {device} this worker makes other {config.directions} directions than the federation: "
            f"its probe is {found}, expected {wanted}",
        )
