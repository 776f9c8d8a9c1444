"""Choice of the layers that travel (Liu et al., EMNLP 2024, with the plateau of the same group's published code)."""

from collections.abc import Mapping, Sequence

from federated.algorithm_kit.layer_budget import estimate_layer_shares, gradient_of, values_of
from federated.algorithm_kit.local_training import epoch_order, train
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.maths.spectrum import number_of_layers
from federated.session import TrainingSession


def shares_after_warm_up(session: TrainingSession, config: FibecFedConfig, names: Sequence[str]) -> dict[str, float]:
    """The share of layers by each of `layer_budget.ESTIMATORS`, from the Hessian by the factors `names`.

    Trains `preparation_steps` first and leaves the session so, for the scores after it. Call inside
    `temporary_changes`. Raises JobDeclined if the model's loss cannot be differentiated twice.
    """
    batch = next(iter(session.batches(epoch_order(session.seed, 0, session.examples)[: config.batch_size], 4096)))
    before = values_of(session, names), gradient_of(session, batch, names)
    warm_up(session, config)
    session.train_all_except([name for name in session.trainables if name not in set(names)])
    return estimate_layer_shares(session, batch, names, before=before, iterations=config.lanczos_steps)


def warm_up(session: TrainingSession, config: FibecFedConfig) -> None:
    """Train `preparation_steps`, for measurements after them. Call inside `temporary_changes`."""
    if config.preparation_steps:
        train(session, config.model_copy(update={"local_steps": config.preparation_steps}))


def choose_layers(config: FibecFedConfig, scores: Mapping[int, float], share: float) -> list[int]:
    """The most sensitive layers, in their order in the model. Of two equal ones the lower is taken."""
    count = number_of_layers(share, len(scores), config.layer_factor)
    ranking = sorted(scores, key=lambda layer: (-scores[layer], layer))
    return sorted(ranking[:count])
