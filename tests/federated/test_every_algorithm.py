"""Contract tests that every algorithm of the registry must pass.

Configs come from `tests/federated/algorithms/NAME/samples.py`, trainables from the kinds that the algorithm declares.
"""

import dataclasses
import importlib
import io
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError

from federated import registry
from federated.contract import UpdateRefused
from federated.payloads.header import check_expected, parse_header
from federated.payloads.payload import Payload
from tests.support import rounds_by_hand as rounds
from tests.support.rounds_by_hand import Sample

NAMES = sorted(registry.algorithms())
SAMPLES = rounds.samples()


def described(sample: Sample) -> str:
    changed = sample.config.model_dump(exclude_defaults=True)
    return f"{sample.algorithm}-{sample.trainable.kind}-{'-'.join(map(str, changed.values()))}"


every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=described)
every_algorithm = pytest.mark.parametrize("name", NAMES)


@every_algorithm
class TestConfig:
    def test_its_defaults_are_a_config(self, name: str) -> None:
        assert isinstance(registry.make_config(name, {}), registry.algorithm(name).config)

    def test_it_is_frozen(self, name: str) -> None:
        config = registry.make_config(name, {})
        field = next(iter(type(config).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, field, getattr(config, field))

    def test_it_refuses_unknown_keys(self, name: str) -> None:
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            registry.make_config(name, {"no_such_setting": 1})

    def test_it_has_a_schema_that_is_json_and_survives_json_itself(self, name: str) -> None:
        assert json.loads(json.dumps(registry.algorithm(name).config.model_json_schema()))["properties"]
        module = importlib.import_module(f"tests.federated.algorithms.{name}.samples")
        for values in module.CONFIGS:
            config = registry.make_config(name, values)
            assert registry.make_config(name, json.loads(config.model_dump_json())) == config

    def test_it_has_samples_for_each_of_its_trainables(self, name: str) -> None:
        kinds = {sample.trainable.kind for sample in SAMPLES if sample.algorithm == name}
        assert kinds == registry.algorithm(name).trainables


@every_sample
class TestHalves:
    def test_they_hold_no_state(self, sample: Sample) -> None:
        halves = (sample.server, sample.client)
        before = [held(half) for half in halves]
        state = rounds.first_state(sample)
        told = rounds.instructions(sample, state)
        result = halves[1].run(told[1], sample.federation.open(1, 0), None)
        halves[1].apply(told[1], sample.federation.open(1, 0), None, "shared")
        halves[0].check(told[1], result.update)
        halves[0].aggregate(state, rounds.updates(sample, state), rounds.step_of(state, sample))
        assert [held(half) for half in halves] == before
        assert all(is_immutable(value) for half in halves for value in vars(half).values())

    def test_a_round_gives_the_same_bytes_in_halves_used_before_and_in_fresh_ones(self, sample: Sample) -> None:
        state = rounds.first_state(sample)
        client = sample.client
        told = rounds.instructions(sample, state)[2]
        runs = [client.run(told, sample.federation.open(2, 9), None) for client in (client, client, sample.client)]
        assert len({run.update.encode() for run in runs}) == 1

    def test_whether_it_prepares_is_declared(self, sample: Sample) -> None:
        prepares = rounds.first_state(sample).facts.get("phase") == "prepare"
        assert prepares == registry.algorithm(sample.algorithm).prepares

    def test_every_client_is_told_what_is_expected_of_it(self, sample: Sample) -> None:
        state = rounds.first_state(sample)
        told = rounds.instructions(sample, state)
        assert sample.server.plan(state, [], rounds.step_of(state, sample)) == {}
        assert all(isinstance(instruction.facts["expects"], dict) for instruction in told.values())

    def test_the_web_process_accepts_the_header_of_an_update(self, sample: Sample) -> None:
        state = rounds.first_state(sample)
        told = rounds.instructions(sample, state)
        for update in rounds.updates(sample, state):
            check_expected(header_of(update.payload), told[update.ordinal].facts["expects"])


@every_sample
class TestPayloads:
    def test_they_survive_bytes(self, sample: Sample) -> None:
        state = sample.server.start(sample.federation.open(1, 0).facts, 0, None)
        outcome = sample.server.aggregate(
            rounds.through_bytes(state),
            rounds.updates(sample, rounds.through_bytes(state)),
            rounds.step_of(state, sample),
        )
        for payload in (state, outcome.state, *outcome.notes.values(), *rounds.instructions(sample, state).values()):
            decoded = rounds.through_bytes(payload)
            assert decoded.facts == payload.facts
            assert all(torch.equal(decoded[name], payload[name]) for name in payload)
            assert decoded.encode() == payload.encode()

    def test_the_next_state_starts_the_next_round(self, sample: Sample) -> None:
        state = rounds.first_state(sample)
        for _ in range(2):
            step = rounds.step_of(state, sample)
            state = rounds.through_bytes(sample.server.aggregate(state, rounds.updates(sample, state), step).state)
        assert rounds.updates(sample, state)

    def test_the_export_is_finite(self, sample: Sample) -> None:
        state = rounds.first_state(sample)
        state = sample.server.aggregate(state, rounds.updates(sample, state), rounds.step_of(state, sample)).state
        adapter = sample.server.export(state)
        assert adapter.tensors
        assert all(value.isfinite().all() for value in adapter.tensors.values())


@every_sample
class TestClient:
    def test_one_without_memory_works_in_any_round(self, sample: Sample) -> None:
        state = rounds.first_state(sample)
        state = rounds.through_bytes(
            sample.server.aggregate(state, rounds.updates(sample, state), rounds.step_of(state, sample)).state
        )
        told = rounds.instructions(sample, state)[2]
        late = sample.client.run(told, sample.federation.open(2, 1), None)
        sample.server.check(told, rounds.through_bytes(late.update))
        again = sample.client.run(told, sample.federation.open(2, 2), late.memory)
        sample.server.check(told, rounds.through_bytes(again.update))

    def test_its_weight_is_positive_and_at_most_its_examples(self, sample: Sample) -> None:
        for update in rounds.updates(sample, rounds.first_state(sample)):
            assert 0 < update.weight <= update.examples

    def test_an_evaluation_without_memory_works_in_each_view(self, sample: Sample) -> None:
        state = rounds.first_state(sample)
        for view in ("shared", "own") if registry.algorithm(sample.algorithm).personal else ("shared",):
            opened = sample.federation.open(1, 0)
            sample.client.apply(rounds.instructions(sample, state)[1], opened, None, view)
            assert math.isfinite(opened.evaluate()["loss"])


@every_sample
class TestAggregate:
    def test_updates_in_any_order_give_the_same_bytes(self, sample: Sample) -> None:
        state = rounds.first_state(sample)
        answers, step = rounds.updates(sample, state), rounds.step_of(state, sample)
        outcomes = [sample.server.aggregate(state, order, step) for order in itertools.permutations(answers)]
        assert len(outcomes) == 6
        assert len({outcome.state.encode() for outcome in outcomes}) == 1
        assert len({json.dumps(dict(outcome.metrics), sort_keys=True) for outcome in outcomes}) == 1

    def test_an_update_changes_the_state(self, sample: Sample) -> None:
        state = rounds.first_state(sample)
        answers, step = rounds.updates(sample, state), rounds.step_of(state, sample)
        assert sample.server.aggregate(state, answers, step).state.encode() != state.encode()
        fewer = sample.server.aggregate(state, answers[:2], step).state
        assert fewer.encode() != sample.server.aggregate(state, answers, step).state.encode()

    def test_metrics_are_finite_numbers(self, sample: Sample) -> None:
        state = rounds.first_state(sample)
        answers = rounds.updates(sample, state)
        metrics = sample.server.aggregate(state, answers, rounds.step_of(state, sample)).metrics
        assert metrics
        for told in (metrics, *(update.metrics for update in answers)):
            assert all(math.isfinite(value) for value in told.values())


@every_sample
class TestCheck:
    def test_a_dropped_tensor_is_refused(self, sample: Sample) -> None:
        self.refuses(sample, lambda tensors, name: tensors.pop(name))

    def test_an_added_tensor_is_refused(self, sample: Sample) -> None:
        self.refuses(sample, lambda tensors, name: tensors.update({f"{name}.more": torch.zeros(1)}))

    def test_another_shape_is_refused(self, sample: Sample) -> None:
        self.refuses(sample, lambda tensors, name: tensors.update({name: tensors[name].unsqueeze(0)}))

    def test_another_dtype_is_refused(self, sample: Sample) -> None:
        self.refuses(sample, lambda tensors, name: tensors.update({name: tensors[name].to(torch.float64)}))

    def refuses(self, sample: Sample, change: Any) -> None:
        state = rounds.first_state(sample)
        told = rounds.instructions(sample, state)[1]
        update = rounds.updates(sample, state)[0].payload
        assert len(update)
        for name in update:
            tensors = dict(update)
            change(tensors, name)
            with pytest.raises(UpdateRefused) as caught:
                sample.server.check(told, Payload(tensors, update.facts))
            assert caught.value.tensor is not None
            assert caught.value.tensor.startswith(name)


def held(half: Any) -> Mapping[str, str]:
    return {name: repr(value) for name, value in vars(half).items()}


def is_immutable(value: object) -> bool:
    if isinstance(value, BaseModel):
        return bool(value.model_config.get("frozen"))
    if dataclasses.is_dataclass(value):
        return all(is_immutable(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, tuple | frozenset):
        return all(is_immutable(item) for item in value)
    return value is None or isinstance(value, str | int | float | bool | bytes)


def header_of(payload: Payload) -> Any:
    data = payload.encode()
    return parse_header(io.BytesIO(data), len(data))
