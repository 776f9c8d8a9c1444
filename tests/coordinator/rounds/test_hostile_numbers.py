"""Aggregation by every algorithm with one client's hostile numbers, which no check would accept."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from coordinator.artifacts import service as artifacts
from coordinator.rounds import conductor
from coordinator.rounds.schemas import AggregateInput, AggregateResult, Method, Omission, ShardLayout, UpdateInput
from federated.contract import ClientUpdate
from federated.payloads.payload import Payload
from tests.coordinator.rounds.test_norms import every_sample, method_of
from tests.support import rounds_by_hand as rounds
from tests.support.rounds_by_hand import Sample

HOSTILE = (3.3e38, -3.3e38, 1e30, 1e-45)
LIAR = 1


def stored(payload: Payload, folder: Path) -> str:
    payload.write(folder / "payload")
    return artifacts.put_file(folder / "payload").digest


def full_of(update: Payload, value: float) -> Payload:
    """The update with this value wherever a float stands, but for base values."""
    return Payload(
        {
            name: torch.full_like(update[name], value)
            if update[name].is_floating_point() and not name.endswith("/base")
            else update[name]
            for name in update
        }
    )


def aggregated(
    sample: Sample, state: Payload, updates: Mapping[int, ClientUpdate], liar: float, folder: Path
) -> Iterator[AggregateResult | Omission | ShardLayout]:
    """What the conductor makes; after an omission also what it makes without."""
    kind = rounds.step_of(state, sample).kind
    method = method_of(sample)
    inputs = [
        UpdateInput(
            ordinal=ordinal,
            examples=update.examples,
            weight=update.weight,
            digest=stored(update.payload if ordinal != LIAR else full_of(update.payload, liar), folder),
            metrics={"loss": 1.7e308 if ordinal == LIAR else 1.0},
            note_digest=None,
            norm=1e38 if ordinal == LIAR else 1.0,
        )
        for ordinal, update in updates.items()
    ]
    left_out: set[int] = set()
    for _ in range(2):
        rest = tuple(one for one in inputs if one.ordinal not in left_out)
        given = AggregateInput(_of_kind(method, kind), stored(state, folder), rest, "tiny", {})
        made = conductor.aggregate(given)
        yield made
        if not isinstance(made, Omission):
            return
        left_out |= set(made.problems)


def _of_kind(method: Method, kind: str) -> Method:
    return replace(method, kind=kind)


@every_sample
def test_no_numbers_end_a_federation(sample: Sample, data_folder: Path, tmp_path: Path) -> None:
    state = rounds.first_state(sample)
    updates = {update.ordinal: update for update in rounds.updates(sample, state)}
    ended = set()
    for value in HOSTILE:
        *omissions, made = aggregated(sample, state, updates, value, tmp_path)
        ended |= {value} if omissions else set()
        assert all(set(one.problems) == {LIAR} for one in omissions if isinstance(one, Omission))
        assert isinstance(made, AggregateResult)
        kept = Payload.open(artifacts.whole_file(made.state.state.digest))
        for name in kept:
            assert bool(torch.isfinite(kept[name].double()).all()), name
        assert made.metrics.get("train_loss", 1.0) == 1.0
    if sample.algorithm == "flexlora":  # its factorization takes no infinity
        assert 3.3e38 in ended
