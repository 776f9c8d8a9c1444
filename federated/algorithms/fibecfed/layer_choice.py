"""How many layers travel, and which (Liu et al., EMNLP 2024; the plateau as in the same group's published code)."""

from collections.abc import Mapping, Sequence

from federated.algorithm_kit.layer_budget import gradient_of, kept_shares, values_of
from federated.algorithm_kit.local_training import shuffled, train
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.maths.spectrum import number_of_layers
from federated.session import TrainingSession


def shares_after_warm_up(session: TrainingSession, config: FibecFedConfig, names: Sequence[str]) -> dict[str, float]:
    """The share of the layers that must be kept, by each way, of the Hessian by the factors `names`.

    Trains `preparation_steps` first; undo it afterwards. Raises JobDeclined where the model's loss cannot be
    differentiated twice.
    """
    batch = next(iter(session.batches(shuffled(session.seed, 0, session.examples)[: config.batch_size], 4096)))
    before = values_of(session, names), gradient_of(session, batch, names)
    warm_up(session, config)
    session.train_all_except([name for name in session.trainables if name not in set(names)])
    return kept_shares(session, batch, names, before=before, iterations=config.lanczos_steps)


def warm_up(session: TrainingSession, config: FibecFedConfig) -> None:
    """A few steps of ordinary training; undo them afterwards."""
    if config.preparation_steps:
        train(session, config.model_copy(update={"local_steps": config.preparation_steps}))


def chosen_layers(config: FibecFedConfig, scores: Mapping[int, float], share: float) -> list[int]:
    """The most sensitive layers, in their order in the model; of equals the lower one."""
    count = number_of_layers(share, len(scores), config.layer_factor)
    ranked = sorted(scores, key=lambda layer: (-scores[layer], layer))
    return sorted(ranked[:count])
