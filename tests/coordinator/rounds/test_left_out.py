"""Accepted updates that do not fit the others': they are left out by name, and the round goes on without them."""

import pytest
import torch

from coordinator.artifacts import service as artifacts
from coordinator.db.sessions import reading
from coordinator.models import Federation
from coordinator.provenance.document import Provenance, check, digest_of
from coordinator.rounds import conductor, service
from coordinator.rounds.service import provenance_builder
from federated.payloads.payload import Payload
from federated.trainable import Initialization, TensorFacts
from tests.support.federation_rig import MODEL, Actor, B, FederationRig, update_of

HEAD = "classifier.bias"
BASED = MODEL.model_copy(
    update={
        "tensors": (
            TensorFacts(name=HEAD, shape=(3,), dtype="F32", initialisation=Initialization(kind="base")),
            *MODEL.tensors,
        )
    }
)


def of_size(actor: Actor, value: float) -> None:
    actor.make_update = lambda instruction: update_of(value, instruction)


def provenance(rig: FederationRig) -> Provenance:
    with reading() as session:
        federation = session.get_one(Federation, rig.federation_id)
        return provenance_builder.provenance_of(
            session, federation, service.adapter_round(session, federation.id, None)
        )


def aggregated_again(rig: FederationRig) -> list[dict[str, float]]:
    """How what is kept of each round differs from what it aggregates to."""
    told = provenance(rig)
    check(told)
    with reading() as session:
        kept = service.repeatable(session, told)
    return [dict(conductor.repeat(given, {"state": entry.state_digest}).differences) for entry, given in kept]


class TestOutliers:
    def test_one_far_from_the_others_is_left_out_by_name(self, rig: FederationRig) -> None:
        actors = rig.running(4, rounds=1, clients_per_round=4, min_clients=3)
        of_size(actors[2], 1e4)
        assert [actor.work() for actor in actors] == ["train"] * 4
        rig.settle()
        shown = rig.get("rounds", "1")
        assert rig.show()["state"] == "completed"
        assert shown["left_out"] == [{"ordinal": 2, "reason": "norm_outlier"}]
        assert (shown["accepted"], shown["metrics"]["clients"]) == ([0, 1, 3], 3)
        assert float(Payload.open(artifacts.whole_file(shown["state_digest"]))[B].max()) == 1.0
        (job,) = [job for job in rig.get("rounds", "1", "jobs")["items"] if job["problem"]]
        assert (job["ordinal"], job["state"], job["problem"]["code"]) == (2, "accepted", "norm_outlier")
        assert "round.left_out" in rig.events()
        (entry,) = provenance(rig).rounds
        assert [update.ordinal for update in entry.updates] == [0, 1, 3]
        assert [(one.ordinal, one.reason) for one in entry.left_out] == [(2, "norm_outlier")]
        assert aggregated_again(rig) == [{}]

    def test_a_quorum_missed_by_it_opens_another_attempt_without_that_client(self, rig: FederationRig) -> None:
        actors = rig.running(4, rounds=1, clients_per_round=3, min_clients=3, max_round_retries=1)
        cohort = rig.get("rounds", "1")["cohort"]
        (spare,) = set(range(4)) - set(cohort)
        of_size(actors[cohort[0]], -1e5)
        assert [actors[ordinal].work() for ordinal in cohort] == ["train"] * 3
        rig.settle()
        first, second = rig.get("rounds", "1", attempt=1), rig.get("rounds", "1")
        assert (first["state"], first["reason"]) == ("withdrawn", "quorum_missed")
        assert f"client {cohort[0]}: left out" in first["reason_detail"]
        assert (second["attempt"], second["cohort"]) == (2, [spare])
        assert actors[spare].work() == "train"
        rig.settle()
        closed = rig.get("rounds", "1")
        assert closed["accepted"] == sorted({*cohort[1:], spare})
        assert closed["left_out"] == [{"ordinal": cohort[0], "reason": "norm_outlier"}]
        assert rig.show()["state"] == "completed"
        assert aggregated_again(rig) == [{}]

    def test_without_any_the_provenance_is_as_it_was(self, rig: FederationRig) -> None:
        rig.running(3, rounds=1, clients_per_round=3)
        rig.play(1)
        told = provenance(rig)
        assert "left_out" not in told.model_dump_json()
        entry = told.rounds[0]
        assert entry.canonical_digest() == digest_of(entry.model_dump(mode="json", exclude={"left_out"}))
        assert rig.get("rounds", "1")["left_out"] == []


def told(base: float, instruction: Payload, value: float = 0.0) -> Payload:
    """An update of `value`, with this base value of the head where it is asked for."""
    update = dict(update_of(value, instruction))
    return Payload(
        {name: torch.full_like(update[name], base) if "/base" in name else update[name] for name in update}
    )


class TestBaseValues:
    @pytest.mark.parametrize("liar", [0, 1, 2])
    @pytest.mark.parametrize("lie", [777.0, 3.3e38, 0.51])
    def test_those_of_most_clients_are_exported(self, rig: FederationRig, liar: int, lie: float) -> None:
        rig.create(rounds=1, clients_per_round=3, min_clients=2)
        for ordinal in range(3):
            base = lie if ordinal == liar else 0.5
            answer = lambda asked, base=base: told(base, asked)  # noqa: E731
            rig.join(rig.actor(model=BASED, make_update=answer))
        rig.post("start")
        rig.play(1)
        shown = rig.get("rounds", "1")
        assert shown["left_out"] == [{"ordinal": liar, "reason": "base_differs"}]
        (job,) = [job for job in rig.get("rounds", "1", "jobs")["items"] if job["problem"]]
        assert (job["ordinal"], job["problem"]["tensor"]) == (liar, HEAD + "/base")
        file = shown["adapter"]["files"]["adapter_model.safetensors"]["digest"]
        exported = [value for name, value in Payload.open(artifacts.whole_file(file)).items() if "classifier" in name]
        assert [value.tolist() for value in exported] == [[0.5, 0.5, 0.5]]
        assert aggregated_again(rig) == [{}]

    def test_a_loaded_precision_makes_no_liar(self, rig: FederationRig) -> None:
        rig.create(rounds=1, clients_per_round=3)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            base = float(torch.tensor(0.1234567).to(dtype))
            answer = lambda asked, base=base: told(base, asked)  # noqa: E731
            rig.join(rig.actor(model=BASED, make_update=answer))
        rig.post("start")
        rig.play(1)
        assert rig.get("rounds", "1")["left_out"] == []
