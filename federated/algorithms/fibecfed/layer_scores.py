"""Layer sensitivity: the relative change of each layer's output under small noise (Liu et al., EMNLP 2024).

I_l = mean over examples of |h_l(e + eps) - h_l(e)| / |h_l(e)| over real tokens, in evaluation mode. The formula is
ours. Adversarial noise is the worst of its norm to first order, by the dual norm.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from federated.algorithm_kit.local_training import epoch_order
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
    order = epoch_order(session.seed, 0, session.examples)[:count]
    batch_scores = _under_noise_at_the_input if config.layer_noise_at == "input" else _under_noise_at_each_layer
    totals = torch.zeros(len(layers), dtype=torch.float64)
    for batch in session.batches(order, config.score_batch_size):
        totals += batch_scores(session, config, modules, batch, generator).sum(dim=1).double().cpu()
    return (totals / count).float()


def dual_noise(gradient: Tensor, size: Tensor, p: float) -> Tensor:
    """Noise of p-norm `size` along which a loss with this gradient grows fastest. Zero where the gradient is zero.

    gradient: (examples, tokens, hidden), size: (examples,). With 1/p + 1/q = 1 it is
    `size * sign(g) |g|^(q-1) / (|g|_q^q)^(1/p)`; for p = inf, `size * sign(g)`.
    """
    flat = gradient.flatten(1)
    if math.isinf(p):
        return (flat.sign() * size[:, None]).reshape(gradient.shape)
    q = p / (p - 1)
    # Scaled to a maximum of one, since powers of other gradients would leave float32.
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    powers = flat.sign() * flat.abs().pow(q - 1)
    length = flat.abs().pow(q).sum(dim=1, keepdim=True).pow(1 / p).clamp(min=_TINY)
    return (powers / length * size[:, None]).reshape(gradient.shape)


def _under_noise_at_the_input(
    session: TrainingSession, config: FibecFedConfig, layers: Sequence[nn.Module], batch: Batch, draw: torch.Generator
) -> Tensor:
    """(layers, examples): relative change of each layer's output under noise on the embeddings."""
    embeddings = session.embeddings()
    with torch.enable_grad() if config.layer_noise == "adversarial" else torch.no_grad():
        clean: list[Tensor] = []
        inputs: list[Tensor] = []
        with (
            _output_hook(embeddings, lambda args, kwargs, output: _leaf(inputs, output)),
            _collect_outputs(layers, clean),
        ):
            loss = session.loss(batch, "sum")
    noise = _noise(config, batch, inputs[0], loss, inputs, draw)[0]
    noisy: list[Tensor] = []
    with (
        torch.no_grad(),
        _output_hook(embeddings, lambda args, kwargs, output: output + noise.to(output.dtype)),
        _collect_outputs(layers, noisy),
    ):
        session.loss(batch, "sum")
    return torch.stack(
        [_relative_change(before, after, batch.mask) for before, after in zip(clean, noisy, strict=True)]
    )


def _under_noise_at_each_layer(
    session: TrainingSession, config: FibecFedConfig, layers: Sequence[nn.Module], batch: Batch, draw: torch.Generator
) -> Tensor:
    """(layers, examples): relative change of each layer's output under noise on that layer's own input."""
    inputs: list[Tensor] = []
    with ExitStack() as hooks:
        hooks.enter_context(_output_hook(session.embeddings(), lambda args, kwargs, output: _leaf([], output)))
        for layer in layers:
            hooks.enter_context(_output_hook(layer, lambda args, kwargs, _: inputs.append(_hidden(args, kwargs))))
        with torch.enable_grad() if config.layer_noise == "adversarial" else torch.no_grad():
            loss = session.loss(batch, "sum")
    noises = iter(_noise(config, batch, inputs[0], loss, inputs, draw))
    scores: list[Tensor] = []

    def run_twice(layer: nn.Module) -> Callable[[Any, Any, Any], None]:
        def hook(args: Any, kwargs: Any, output: Any) -> None:
            hidden = _hidden(args, kwargs)
            args, kwargs = _with_hidden(args, kwargs, hidden + next(noises).to(hidden.dtype))
            scores.append(
                _relative_change(_first_output(output), _first_output(layer.forward(*args, **kwargs)), batch.mask)
            )

        return hook

    with torch.no_grad(), ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(_output_hook(layer, run_twice(layer)))
        session.loss(batch, "sum")
    return torch.stack(scores)


def _noise(
    config: FibecFedConfig, batch: Batch, like: Tensor, loss: Tensor, inputs: Sequence[Tensor], draw: torch.Generator
) -> list[Tensor]:
    """Noise for each of the inputs, on real tokens only. Its norm is a share of the input's."""
    if config.layer_noise == "adversarial":
        directions = torch.autograd.grad(loss, list(inputs))
    else:
        directions = tuple(torch.randn(layer_input.shape, generator=draw).to(like.device) for layer_input in inputs)
    p = float(config.layer_noise_norm) if config.layer_noise == "adversarial" else 2.0
    real = batch.mask[:, :, None].to(like.device)
    noises = []
    for direction, layer_input in zip(directions, inputs, strict=True):
        norms = torch.linalg.vector_norm((layer_input.detach() * real).float().flatten(1), p, dim=1)
        noises.append(dual_noise(direction.float() * real, config.layer_noise_size * norms, p))
    return noises


def _relative_change(clean: Tensor, noisy: Tensor, mask: Tensor) -> Tensor:
    real = mask[:, :, None].to(clean.device)
    before, after = (clean * real).float(), (noisy * real).float()
    change, length = (values.flatten(1) for values in (after - before, before))
    ratio: Tensor = torch.linalg.vector_norm(change, dim=1) / (torch.linalg.vector_norm(length, dim=1) + _TINY)
    return ratio.to(mask.device)


class _output_hook:  # noqa: N801 - used as a function in `with`
    """A forward hook (args, kwargs, output) -> None or another output, for the duration of the block."""

    def __init__(self, module: nn.Module, hook: Callable[[Any, Any, Any], Any]) -> None:
        self._module, self._hook = module, hook

    def __enter__(self) -> None:
        self._handle = self._module.register_forward_hook(
            lambda _, args, kwargs, output: self._hook(args, kwargs, output), with_kwargs=True
        )

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def _collect_outputs(layers: Sequence[nn.Module], outputs: list[Tensor]) -> ExitStack:
    stack = ExitStack()
    for layer in layers:
        stack.enter_context(
            _output_hook(layer, lambda _args, _kwargs, output: outputs.append(_first_output(output).detach()))
        )
    return stack


def _leaf(outputs: list[Tensor], output: Tensor) -> Tensor:
    """The embeddings as a leaf tensor, for gradients by them."""
    leaf = output.detach().requires_grad_(torch.is_grad_enabled())
    outputs.append(leaf)
    return leaf


def _first_output(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    tensor: Tensor = args[0] if args else kwargs["hidden_states"]
    return tensor


def _with_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> Arguments:
    return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})
