"""Client half of FedKSeed: rebuilds the model from K scalars, steps along directions, sends one scalar a step."""

import math
import time
from collections.abc import Iterator

import torch

from federated.algorithm_kit.local_training import epoch_order
from federated.algorithms.fedkseed.config import FedKSeedConfig
from federated.algorithms.fedkseed.perturbation import LocalSteps, PerturbedWeights, Record, StepSizes
from federated.algorithms.fedkseed.scope import perturbed_names
from federated.algorithms.fedkseed.seed_choice import uniform_seeds, weighted_seeds
from federated.contract import AnyTrainable, ClientResult, JobDeclined, View
from federated.maths.directions import directions, probe_digest
from federated.payloads.payload import Payload
from federated.session import Batch, TrainingSession

_REPORT_SECONDS = 0.5


class FedKSeedClient:
    """Update = the directions of the steps and one scalar for each. Keeps no memory, so late clients need none."""

    def __init__(self, config: FedKSeedConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        """Rebuild the model of the received scalars. The views shared and own are the same. Raises JobDeclined."""
        self._rebuild(instruction, session)

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        """Take the local steps. Raises JobDeclined if this worker's directions differ from the federation's."""
        weights = self._rebuild(instruction, session)
        session.training(False)
        began = time.perf_counter()
        rate = float(instruction.facts["learning_rate"])
        with torch.inference_mode(), weights.keep_clean():
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
        update = Payload(
            {
                "seeds": torch.tensor(record.seeds, dtype=torch.int32),
                "scalars": torch.tensor(record.scalars, dtype=torch.float32),
            }
        )
        return ClientResult(update, float(session.examples), metrics)

    def _rebuild(self, instruction: Payload, session: TrainingSession) -> PerturbedWeights:
        config = self._config
        _decline_other_directions(instruction, config, session.device)
        names = perturbed_names(session.trainables, config)
        # Forward passes only: no tensor needs a gradient.
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
        last_report = time.monotonic()
        for steps_done, (seed, batch) in enumerate(zip(seeds, _batches(session, config), strict=True), 1):
            steps.step(seed, lambda batch=batch: session.loss(batch))  # type: ignore[misc]
            if steps_done == config.local_steps or time.monotonic() - last_report >= _REPORT_SECONDS:
                session.progress(steps_done, config.local_steps, {"loss": steps.record.mean_loss()})
                last_report = time.monotonic()
        return steps.record

    def _seeds(self, instruction: Payload, job_seed: int) -> list[int]:
        if self._config.variant == "pro":
            return weighted_seeds(job_seed, self._config.local_steps, instruction["probabilities"])
        return uniform_seeds(job_seed, self._config.local_steps, self._config.candidates)


def _batches(session: TrainingSession, config: FedKSeedConfig) -> Iterator[Batch]:
    """One full batch for each step, from repeated epochs in the order of the job's seed."""
    count = config.local_steps * config.batch_size
    order: list[int] = []
    epoch = 0
    while len(order) < count:
        order += epoch_order(session.seed, epoch, session.examples)
        epoch += 1
    return session.batches(order[:count], config.batch_size)


def _decline_other_directions(instruction: Payload, config: FedKSeedConfig, device: torch.device) -> None:
    expected_digest = instruction.facts["directions_digest"]
    digest = probe_digest(config.directions, config.candidates, device)
    if digest != expected_digest:
        raise JobDeclined(
            "directions_differ",
            f"the {config.directions} directions of this worker on {device} differ from the federation's: "
            f"probe digest {digest}, expected {expected_digest}",
        )
