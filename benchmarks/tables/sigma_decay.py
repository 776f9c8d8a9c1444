"""Decay of the learned W over rounds without learning, computed with only the server half."""

from collections.abc import Sequence

import torch

from benchmarks.tables.document import grid
from federated import registry
from federated.contract import ClientFacts, ClientUpdate, RoundFacts, ServerHalf
from federated.payloads.payload import Payload
from federated.trainable import Initialization, Lora, ModelFacts, TensorFacts

ROUNDS = 5
WIDTH = 64
CLIENTS = 20
_A, _B = "layer.query.lora_A.weight", "layer.query.lora_B.weight"


def text(algorithm: str, aggregations: Sequence[str], ranks: Sequence[int]) -> str:
    """A caption and a Markdown table: one line per aggregation, one column per round."""
    header = ["", *(f"round {number}" for number in range(ROUNDS + 1))]
    lines = [
        [name, *(f"{100 * share:.1f}" for share in energies(algorithm, name, ranks))] for name in aggregations
    ]  # fmt: skip
    caption = (
        f"Without any learning: the energy (squared norm) of the learned W in % of the first, for one "
        f"{WIDTH} x {WIDTH} matrix with singular values i^-1/2 and {CLIENTS} clients whose ranks go "
        f"{', '.join(map(str, ranks))} over and over."
    )
    return f"{caption}\n\n{grid(header, ['---', *('--:' for _ in header[1:])], lines)}"


def energies(algorithm: str, aggregation: str, ranks: Sequence[int]) -> list[float]:
    """Energy of the exported product after 0 to ROUNDS rounds of updates that change nothing; the first is 1."""
    trainable = Lora(r=max(ranks), use_rslora=True)
    config = registry.make_config(algorithm, {"aggregation": aggregation})
    server = registry.server_half(algorithm, config, trainable)
    state = server.start(_facts(max(ranks)), 0, _initial(max(ranks)))
    absolute = [_energy(server, state)]
    for number in range(1, ROUNDS + 1):
        step = RoundFacts(number, "train", ROUNDS, CLIENTS)
        state = server.aggregate(state, _zero_updates(server, state, ranks, step), step).state
        absolute.append(_energy(server, state))
    return [energy / absolute[0] for energy in absolute]


def _zero_updates(server: ServerHalf, state: Payload, ranks: Sequence[int], step: RoundFacts) -> list[ClientUpdate]:
    settings = [{"rank": ranks[ordinal % len(ranks)]} for ordinal in range(CLIENTS)]
    clients = [
        ClientFacts(ordinal, f"client {ordinal}", 1, {}, setting, None, 0) for ordinal, setting in enumerate(settings)
    ]
    updates = []
    for ordinal, instruction in server.plan(state, clients, step).items():
        schema = instruction.facts["expects"]
        zeros = Payload({name: torch.zeros(entry["shape"]) for name, entry in schema.items()})
        updates.append(ClientUpdate(ordinal, 1, 1.0, zeros, {}, None))
    return updates


def _energy(server: ServerHalf, state: Payload) -> float:
    adapter = server.export(state)
    return float((adapter.tensors[_B].double() @ adapter.tensors[_A].double()).square().sum())


def _initial(rank: int) -> Payload:
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(WIDTH, rank, generator=draw))[0] for _ in range(2))
    values = torch.arange(1, rank + 1) ** -0.5
    return Payload({_A: right.T.contiguous(), _B: left * values})


def _facts(rank: int) -> ModelFacts:
    starts = {_A: ((rank, WIDTH), "uniform"), _B: ((WIDTH, rank), "zeros")}
    tensors = [
        TensorFacts(name=name, shape=shape, dtype="F32", initialisation=Initialization.model_validate({"kind": kind}))
        for name, (shape, kind) in sorted(starts.items())
    ]
    return ModelFacts(
        model_type="one matrix",
        task_type="SEQ_CLS",
        tensors=tuple(tensors),
        layers=1,
        hidden=WIDTH,
        kv_width=WIDTH,
        target_modules=("query",),
        weights_digest="sha256:" + "0" * 64,
    )
