"""How sensitive each layer is: how far its output moves under a little noise (Liu et al., EMNLP 2024).

I_l = mean over examples of |h_l(e + eps) - h_l(e)| / |h_l(e)| over real tokens, in evaluation mode; the formula is
ours. Adversarial noise is the worst of its norm to first order, by the dual norm.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from federated.algorithm_kit.local_training import shuffled
from federated.algorithm_kit.model_layers import layers_of
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.session import Batch, TrainingSession

_TINY = 1e-12

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def layer_scores(session: TrainingSession, config: FibecFedConfig, layers: Sequence[int]) -> Tensor:
    """I of each of `layers`, (layers,) float32, CPU. Leaves no trainable requiring a gradient."""
    modules = layers_of(session, layers)
    generator = torch.Generator().manual_seed(session.seed)
    session.train_all_except(session.trainables)
    session.training(False)
    count = min(session.examples, config.layer_score_examples)
    order = shuffled(session.seed, 0, session.examples)[:count]
    scored = _under_noise_at_the_input if config.layer_noise_at == "input" else _under_noise_at_each_layer
    totals = torch.zeros(len(layers), dtype=torch.float64)
    for batch in session.batches(order, config.score_batch_size):
        totals += scored(session, config, modules, batch, generator).sum(dim=1).double().cpu()
    return (totals / count).float()


def dual_noise(gradient: Tensor, size: Tensor, p: float) -> Tensor:
    """Noise of p-norm `size` along which a loss with this gradient grows fastest; zero where the gradient is.

    gradient: (examples, tokens, hidden), size: (examples,). With 1/p + 1/q = 1 it is
    `size * sign(g) |g|^(q-1) / (|g|_q^q)^(1/p)`; for p = inf, `size * sign(g)`.
    """
    flat = gradient.flatten(1)
    if math.isinf(p):
        return (flat.sign() * size[:, None]).reshape(gradient.shape)
    q = p / (p - 1)
    # Powers of a gradient far from one would leave float32.
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    powers = flat.sign() * flat.abs().pow(q - 1)
    length = flat.abs().pow(q).sum(dim=1, keepdim=True).pow(1 / p).clamp(min=_TINY)
    return (powers / length * size[:, None]).reshape(gradient.shape)


def _under_noise_at_the_input(
    session: TrainingSession, config: FibecFedConfig, layers: Sequence[nn.Module], batch: Batch, draw: torch.Generator
) -> Tensor:
    """(layers, examples): the noise of the embeddings, as it arrives at each layer's output."""
    embeddings = session.embeddings()
    with torch.enable_grad() if config.layer_noise == "adversarial" else torch.no_grad():
        clean: list[Tensor] = []
        inputs: list[Tensor] = []
        with _hooked(embeddings, lambda *told: _kept(inputs, told[2])), _outputs(layers, clean):
            loss = session.loss(batch, "sum")
    noise = _noise(config, batch, inputs[0], loss, inputs, draw)[0]
    noisy: list[Tensor] = []
    with (
        torch.no_grad(),
        _hooked(embeddings, lambda *told: told[2] + noise.to(told[2].dtype)),
        _outputs(layers, noisy),
    ):
        session.loss(batch, "sum")
    return torch.stack([_moved(before, after, batch.mask) for before, after in zip(clean, noisy, strict=True)])


def _under_noise_at_each_layer(
    session: TrainingSession, config: FibecFedConfig, layers: Sequence[nn.Module], batch: Batch, draw: torch.Generator
) -> Tensor:
    """(layers, examples): the noise of each layer's own input, in that layer's output alone."""
    inputs: list[Tensor] = []
    with ExitStack() as hooks:
        hooks.enter_context(_hooked(session.embeddings(), lambda *told: _kept([], told[2])))
        for layer in layers:
            hooks.enter_context(_hooked(layer, lambda args, kwargs, _: inputs.append(_hidden(args, kwargs))))
        with torch.enable_grad() if config.layer_noise == "adversarial" else torch.no_grad():
            loss = session.loss(batch, "sum")
    noises = iter(_noise(config, batch, inputs[0], loss, inputs, draw))
    scores: list[Tensor] = []

    def twice(layer: nn.Module) -> Callable[[Any, Any, Any], None]:
        def seen(args: Any, kwargs: Any, output: Any) -> None:
            hidden = _hidden(args, kwargs)
            args, kwargs = _with_hidden(args, kwargs, hidden + next(noises).to(hidden.dtype))
            scores.append(_moved(_first(output), _first(layer.forward(*args, **kwargs)), batch.mask))

        return seen

    with torch.no_grad(), ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(_hooked(layer, twice(layer)))
        session.loss(batch, "sum")
    return torch.stack(scores)


def _noise(
    config: FibecFedConfig, batch: Batch, like: Tensor, loss: Tensor, inputs: Sequence[Tensor], draw: torch.Generator
) -> list[Tensor]:
    """Noise for each of the inputs, on real tokens alone; its norm is a share of that of the input."""
    if config.layer_noise == "adversarial":
        directions = torch.autograd.grad(loss, list(inputs))
    else:
        directions = tuple(torch.randn(each.shape, generator=draw).to(like.device) for each in inputs)
    p = float(config.layer_noise_norm) if config.layer_noise == "adversarial" else 2.0
    real = batch.mask[:, :, None].to(like.device)
    noises = []
    for direction, each in zip(directions, inputs, strict=True):
        norms = torch.linalg.vector_norm((each.detach() * real).float().flatten(1), p, dim=1)
        noises.append(dual_noise(direction.float() * real, config.layer_noise_size * norms, p))
    return noises


def _moved(clean: Tensor, noisy: Tensor, mask: Tensor) -> Tensor:
    real = mask[:, :, None].to(clean.device)
    before, after = (clean * real).float(), (noisy * real).float()
    change, length = (values.flatten(1) for values in (after - before, before))
    moved: Tensor = torch.linalg.vector_norm(change, dim=1) / (torch.linalg.vector_norm(length, dim=1) + _TINY)
    return moved.to(mask.device)


class _hooked:  # noqa: N801 - used as a function in `with`
    """A forward hook (args, kwargs, output) -> None or another output, while the block runs."""

    def __init__(self, module: nn.Module, seen: Callable[[Any, Any, Any], Any]) -> None:
        self._module, self._seen = module, seen

    def __enter__(self) -> None:
        self._hook = self._module.register_forward_hook(
            lambda _, args, kwargs, output: self._seen(args, kwargs, output), with_kwargs=True
        )

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def _outputs(layers: Sequence[nn.Module], told: list[Tensor]) -> ExitStack:
    stack = ExitStack()
    for layer in layers:
        stack.enter_context(_hooked(layer, lambda _args, _kwargs, output: told.append(_first(output).detach())))
    return stack


def _kept(told: list[Tensor], output: Tensor) -> Tensor:
    """The embeddings as the leaf that gradients are taken of."""
    leaf = output.detach().requires_grad_(torch.is_grad_enabled())
    told.append(leaf)
    return leaf


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _with_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> Arguments:
    return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})
