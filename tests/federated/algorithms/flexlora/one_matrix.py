"""A model of one adapted matrix and a head, clients that change both, and what a dense sum makes of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from federated.contract import ClientFacts, ClientUpdate, Outcome, RoundFacts, ServerHalf
from federated.payloads.payload import Payload
from federated.registry import make_config, server_half
from federated.trainable import Initialization, Lora, ModelFacts, TensorFacts

OUT, IN, RANK, ALPHA = 12, 10, 6, 8.0
A, B, HEAD = "layer.query.lora_A.weight", "layer.query.lora_B.weight", "classifier.weight"
STEP = RoundFacts(1, "train", 5, 3)


def model(rank: int = RANK) -> ModelFacts:
    shapes = {HEAD: (2,), A: (rank, IN), B: (OUT, rank)}
    zeros = Initialization(kind="zeros")
    tensors = [
        TensorFacts(name=name, shape=shapes[name], dtype="F32", initialisation=zeros) for name in sorted(shapes)
    ]
    return ModelFacts(
        model_type="tiny",
        task_type="SEQ_CLS",
        tensors=tuple(tensors),
        layers=1,
        hidden=IN,
        kv_width=IN,
        weights_digest="sha256:" + "0" * 64,
    )


def half(rank: int = RANK, **settings: Any) -> ServerHalf:
    return server_half("flexlora", make_config("flexlora", settings), Lora(r=rank, lora_alpha=ALPHA))


def client(ordinal: int, rank: int, **capabilities: Any) -> ClientFacts:
    return ClientFacts(ordinal, f"client {ordinal}", 9, capabilities, {"rank": rank}, None, 0)


def through_bytes(payload: Payload) -> Payload:
    return Payload.decode(payload.encode())


def scale(rank: int) -> float:
    return float(ALPHA / rank**0.5)


def changes(rank: int, seed: int, size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {A: (rank, IN), B: (OUT, rank), HEAD: (2,)}
    return {name: size * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def update(ordinal: int, weight: float, tensors: Mapping[str, Tensor]) -> ClientUpdate:
    return ClientUpdate(ordinal, 9, weight, Payload(tensors), {"loss": 1.0}, None)


def product(state: Payload) -> Tensor:
    return state[B].double() @ state[A].double()


def best(matrix: Tensor, rank: int) -> Tensor:
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


def learned(server: ServerHalf, seed: int = 5) -> Payload:
    """A state in which every component of W is there: one client of the highest rank has changed everything."""
    state = server.start(model(), 0, None)
    return through_bytes(server.aggregate(state, [update(1, 1, changes(RANK, seed))], STEP).state)


def local_products(server: ServerHalf, state: Payload, ranks: Sequence[int], seed: int = 0) -> list[Tensor]:
    """s_k B_k A_k of clients that made `changes`, by the instructions they were sent."""
    told = server.plan(state, [client(ordinal, rank) for ordinal, rank in enumerate(ranks)], STEP)
    made = []
    for ordinal, rank in enumerate(ranks):
        changed = changes(rank, seed + ordinal)
        b, a = (told[ordinal][name].double() + changed[name].double() for name in (B, A))
        made.append(scale(rank) * b @ a)
    return made


def aggregated(
    server: ServerHalf,
    state: Payload,
    ranks: Sequence[int],
    weights: Sequence[float],
    size: float = 1.0,
    seed: int = 0,
) -> Outcome:
    told = [
        update(ordinal, weight, changes(rank, seed + ordinal, size))
        for ordinal, (rank, weight) in enumerate(zip(ranks, weights, strict=True))
    ]
    return server.aggregate(state, told, STEP)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    return float((found - wanted).norm()) <= tolerance * float(wanted.norm())
