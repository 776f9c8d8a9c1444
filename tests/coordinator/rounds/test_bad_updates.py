"""Updates that no honest client sends: each is refused with its tensor, and the round goes on without it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from federated.payloads.payload import Payload
from federated.protocol import Capabilities, DatasetFacts
from tests.support.federation_rig import DATASET, MODEL, A, Actor, B, FederationRig, definition, update_of
from tests.support.service import problem

CAPABILITIES = Capabilities(algorithms={"flexlora": 1, "fedkseed": 1}, datasets=(DatasetFacts(name=DATASET),))
SEEDS, SCALARS = torch.tensor([5, 6], dtype=torch.int32), torch.tensor([1.0, -2.0])
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "flexlora": {"local_steps": 1, "rank": "auto"},
    "fedkseed": {"local_steps": 2, "candidates": 128, "max_scalar": 50},
}


def good(instruction: Payload) -> Payload:
    """What an honest client might send."""
    return pairs() if "seeds" in instruction.facts["expects"] else update_of(1.0, instruction)


def pairs(seeds: torch.Tensor = SEEDS, scalars: torch.Tensor = SCALARS) -> Payload:
    return Payload({"seeds": seeds, "scalars": scalars})


def running(rig: FederationRig, algorithm: str) -> list[Actor]:
    """A round of two of three described clients."""
    rig.create(algorithm=algorithm, config=CONFIGS[algorithm], rounds=1, max_round_retries=1)
    made = [rig.join(rig.actor(capabilities=CAPABILITIES, make_update=good)) for _ in range(3)]
    rig.post("start")
    for actor in made:
        assert actor.work() == "describe"
    rig.settle()
    return made


class TestOfAnotherForm:
    """The header alone shows it: refused before the answer, and the same job is still the client's."""

    @pytest.mark.parametrize(
        ("algorithm", "update", "tensor", "words"),
        [
            ("flexlora", Payload({A: torch.ones(1, 4), B: torch.ones(4, 1)}), A, "has shape [1, 4], expected [2, 4]"),
            ("flexlora", Payload({"other.lora_A.weight": torch.ones(2, 4)}), A, "is missing"),
            ("fedkseed", pairs(torch.ones(3, dtype=torch.int32), torch.ones(3)), "scalars", "at most [2]"),
        ],
        ids=["another rank", "other modules", "more pairs than steps"],
    )
    def test_it_is_refused_at_once_and_a_good_one_counts(
        self, rig: FederationRig, algorithm: str, update: Payload, tensor: str, words: str
    ) -> None:
        actors = running(rig, algorithm)
        cohort = rig.get("rounds", "1")["cohort"]
        bad, other = (actors[ordinal] for ordinal in cohort)
        lease = bad.lease()
        assert lease is not None
        body = {"update": bad.signed(lease, bad.put(update), 1.0, 10)}
        told = problem(bad.http.post(f"/v1/jobs/{lease['job_id']}/submit", json=body), 422, "update_refused")
        assert told["tensor"] == tensor
        assert words in told["detail"]
        bad.submit(lease).raise_for_status()
        assert other.work() == "train"
        rig.settle()
        assert rig.show()["state"] == "completed"
        assert rig.get("rounds", "1")["accepted"] == sorted(cohort)


class TestOfBadNumbers:
    @pytest.mark.parametrize(
        ("algorithm", "spoil", "code", "tensor", "words"),
        [
            ("flexlora", lambda told: update_of(math.nan, told), "update_not_finite", A, "NaN or infinity"),
            ("flexlora", lambda told: update_of(math.inf, told), "update_not_finite", A, "NaN or infinity"),
            ("fedkseed", lambda _: pairs(scalars=SCALARS * math.nan), "update_not_finite", "scalars", "NaN"),
            ("fedkseed", lambda _: pairs(scalars=SCALARS * 50), "update_refused", "scalars", "is -100 at position 1"),
            (
                "fedkseed",
                lambda _: pairs(SEEDS + 122),
                "update_refused",
                "seeds",
                "names direction 128 at position 1",
            ),
            ("fedkseed", lambda _: pairs(-SEEDS), "update_refused", "seeds", "names direction -5 at position 0"),
        ],
    )
    def test_it_is_rejected_and_somebody_else_is_asked(
        self,
        rig: FederationRig,
        algorithm: str,
        spoil: Callable[[Payload], Payload],
        code: str,
        tensor: str,
        words: str,
    ) -> None:
        actors = running(rig, algorithm)
        cohort = rig.get("rounds", "1")["cohort"]
        bad, other = (actors[ordinal] for ordinal in cohort)
        (spare,) = set(range(3)) - set(cohort)
        bad.make_update = spoil
        assert [bad.work(), other.work()] == ["train", "train"]
        rig.settle()
        (refused,) = [job for job in rig.get("rounds", "1", "jobs", attempt=1)["items"] if job["problem"]]
        assert (refused["ordinal"], refused["state"]) == (cohort[0], "rejected")
        assert (refused["problem"]["code"], refused["problem"]["tensor"]) == (code, tensor)
        assert words in refused["problem"]["detail"]
        assert actors[spare].work() == "train"
        rig.settle()
        assert rig.show()["state"] == "completed"
        assert rig.get("rounds", "1")["accepted"] == sorted([cohort[1], spare])


class TestBeforeAnythingRuns:
    @pytest.mark.parametrize(
        ("algorithm", "config", "code", "pointer", "words"),
        [
            ("flexlora", {"rank": 0}, "request_invalid", "/config/rank", "greater than or equal to 1"),
            ("flexlora", {"rank": 3}, "trainable_refused", "/trainable", "rank: 3 is above the trainable's largest"),
            ("fedkseed", {"candidates": 1000}, "request_invalid", "/config", "candidates must be a power of two"),
        ],
    )
    def test_a_setting_that_no_round_could_have_is_refused_by_its_field(
        self, rig: FederationRig, algorithm: str, config: dict[str, Any], code: str, pointer: str, words: str
    ) -> None:
        body = definition(algorithm=algorithm, config=config)
        told = problem(rig.owner.owner.post("/v1/federations", json=body), 422, code)
        assert any(fault["pointer"].startswith(pointer) and words in fault["detail"] for fault in told["errors"]), (
            told
        )
        assert rig.owner.owner.get("/v1/federations").json()["items"] == []

    def test_a_clients_rank_of_nothing_is_refused_by_its_field(self, rig: FederationRig) -> None:
        rig.create(algorithm="flexlora", config={})
        worker = rig.actor(capabilities=CAPABILITIES).worker
        body = {"worker_id": worker.id, "dataset": DATASET, "settings": {"rank": 0}}
        told = problem(rig.owner.owner.post(rig.path("clients"), json=body), 422, "settings_refused")
        assert told["errors"][0]["pointer"] == "/settings"
        assert "'rank' must be an integer in 1 ... 4096, not 0" in told["detail"]
        assert rig.get("clients")["items"] == []

    def test_a_rank_above_what_the_matrix_has_ends_it_before_anybody_trains(self, rig: FederationRig) -> None:
        shapes = {A: (5, 4), B: (4, 5)}
        wide = tuple(tensor.model_copy(update={"shape": shapes[tensor.name]}) for tensor in MODEL.tensors)
        trainable = {"kind": "lora", "r": 5, "target_modules": ["layer"]}
        rig.create(algorithm="flexlora", config={}, trainable=trainable, clients_per_round=1)
        model = MODEL.model_copy(update={"tensors": wide})
        actor = rig.join(rig.actor(capabilities=CAPABILITIES, model=model))
        rig.post("start")
        assert actor.work() == "describe"
        rig.settle()
        shown = rig.show()
        assert (shown["state"], shown["reason"]) == ("failed", "algorithm_failed")
        assert shown["reason_detail"] == "start: layer: rank 5 is above 4, all that 4 x 4 has"
