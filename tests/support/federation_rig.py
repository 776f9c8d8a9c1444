"""Federation rig: organizations and hand-made workers over real HTTP, and background tasks that the test runs.

`FederationRig.settle()` takes messages from the real queue and runs their tasks in this process, until none is left.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import torch

from coordinator.celery_app import load_tasks
from coordinator.queue.wakeups import celery
from federated.payloads.payload import Payload
from federated.protocol import Capabilities, DatasetFacts
from federated.signed_statement import Statement
from federated.trainable import Initialization, ModelFacts, TensorFacts
from tests.support.queue import run_all, take
from tests.support.service import EnrolledWorker, Organization, Service, created, upload

A, B = "layer.lora_A.weight", "layer.lora_B.weight"
DATASET = "messages"
MODEL = ModelFacts(
    model_type="bert",
    task_type="SEQ_CLS",
    tensors=(
        TensorFacts(name=A, shape=(2, 4), dtype="F32", initialisation=Initialization(kind="uniform", scale=0.5)),
        TensorFacts(name=B, shape=(4, 2), dtype="F32", initialisation=Initialization(kind="zeros")),
    ),
    layers=1,
    hidden=4,
    kv_width=4,
    target_modules=("layer",),
    weights_digest="sha256:" + "0" * 64,
)
CAPABILITIES = Capabilities(algorithms={"fedavg": 1}, datasets=(DatasetFacts(name=DATASET),), max_rank=64)


def definition(**changes: Any) -> dict[str, Any]:
    """A request for a small federation of two clients that always take part."""
    return {
        "name": "messages",
        "task": {"task": "sequence_classification", "labels": ["no", "yes"]},
        "base_model": {"id": "tiny"},
        "trainable": {"kind": "lora", "r": 2, "target_modules": ["layer"]},
        "algorithm": "fedavg",
        "config": {"local_steps": 1},
        "rounds": 2,
        "clients_per_round": 2,
        "evaluation": {"every": None},
        "seed": 7,
    } | changes


def update_of(value: float, instruction: Payload) -> Payload:
    """An update that is `value` everywhere, of the form that the instruction expects."""
    expects = instruction.facts["expects"]
    return Payload({name: torch.full(tuple(row["shape"]), value) for name, row in expects.items()})


@dataclass
class Actor:
    """A worker played by hand: a data set, and what it answers."""

    worker: EnrolledWorker
    organization: Organization
    examples: int = 10
    evaluation_examples: int = 4
    model: ModelFacts = MODEL
    make_update: Callable[[Payload], Payload] = field(default=lambda instruction: update_of(1.0, instruction))
    evaluation: Mapping[str, float] = field(default_factory=lambda: {"loss": 0.5, "accuracy": 0.75})
    client_id: str = ""

    @property
    def http(self) -> httpx.Client:
        return self.worker.http

    def lease(self) -> dict[str, Any] | None:
        """The next job, if there is one now."""
        body = {"boot_id": self.worker.boot_id, "wait_seconds": 0}
        answer = self.http.post("/v1/jobs/lease", json=body)
        answer.raise_for_status()
        return None if answer.status_code == 204 else answer.json()

    def work(self) -> str | None:
        """Does the next job well; returns its kind."""
        lease = self.lease()
        if lease is None:
            return None
        self.submit(lease).raise_for_status()
        return str(lease["kind"])

    def submit(self, lease: Mapping[str, Any], **changes: Any) -> httpx.Response:
        """Submits what this actor answers to a leased job."""
        return self.http.post(f"/v1/jobs/{lease['job_id']}/submit", json=self.result(lease) | changes)

    def result(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        """What this actor hands in for a leased job; an update is uploaded."""
        body: dict[str, Any] = getattr(self, f"_{lease['kind']}")(lease)
        return body

    def instruction(self, lease: Mapping[str, Any]) -> Payload:
        """The instruction of a leased job."""
        answer = self.http.get(f"/v1/artifacts/{lease['instruction']['digest']}")
        answer.raise_for_status()
        return Payload.decode(answer.content)

    def put(self, payload: Payload) -> str:
        """Uploads a payload and returns its digest."""
        content = payload.encode()
        digest = payload.write_to(_Nowhere())  # type: ignore[arg-type]
        assert upload(self.http, content, digest)["state"] == "complete"
        return digest

    def _describe(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "description": {
                "model": self.model.model_dump(mode="json"),
                "examples": self.examples,
                "evaluation_examples": self.evaluation_examples,
            }
        }

    def signed(self, lease: Mapping[str, Any], digest: str, weight: float, examples: int) -> dict[str, Any]:
        """The `update` of a submission."""
        work = lease["work"]
        said = Statement(
            lease["federation_id"], lease["job_id"], lease["round_kind"], lease["round_number"],
            work["algorithm"], work["algorithm_revision"], digest, weight, examples,
        )  # fmt: skip
        signature = self.worker.identity.sign(said.encode())
        return {"digest": digest, "weight": weight, "examples": examples, "signature": signature}

    def _train(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        digest = self.put(self.make_update(self.instruction(lease)))
        return {
            "update": self.signed(lease, digest, float(self.examples), self.examples),
            "metrics": {"loss": 0.25},
            "seconds": {"training": 1.5},
            "upload_bytes": 100,
            "download_bytes": 50,
        }

    def _evaluate(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        self.instruction(lease)
        return {"evaluation": {"shared": {**self.evaluation, "examples": float(self.evaluation_examples)}}}


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


class FederationRig:
    """An owner with a federation, and one actor for each client."""

    def __init__(self, service: Service) -> None:
        load_tasks()
        self.service = service
        self.owner = service.new_organization("owner")
        self.actors: list[Actor] = []
        self.federation_id = ""

    def actor(self, organization: Organization | None = None, **fields: Any) -> Actor:
        """An enrolled worker of the owner or of another organization; not yet a client."""
        capabilities = fields.pop("capabilities", CAPABILITIES)
        organization = organization or self.owner
        worker = self.service.new_worker(organization, f"worker {len(self.actors)}", capabilities)
        actor = Actor(worker, organization, **fields)
        self.actors.append(actor)
        return actor

    def create(self, **changes: Any) -> str:
        """A draft of the owner's."""
        self.federation_id = created(self.owner.owner.post("/v1/federations", json=definition(**changes)))["id"]
        return self.federation_id

    def join(self, actor: Actor, **fields: Any) -> Actor:
        """Registers the actor's data set; its organization accepted before."""
        body = {"worker_id": actor.worker.id, "dataset": DATASET, **fields}
        actor.client_id = created(actor.organization.owner.post(self.path("clients"), json=body))["id"]
        return actor

    def path(self, *parts: str) -> str:
        """Path of the federation or of something in it."""
        return "/".join(["/v1/federations", self.federation_id, *parts])

    def post(self, action: str, **parameters: Any) -> dict[str, Any]:
        """Start, pause, resume or cancel, as the owner; then whatever follows of it."""
        answer = self.owner.owner.post(self.path(action), params=parameters)
        answer.raise_for_status()
        self.settle()
        return self.show()

    def show(self) -> dict[str, Any]:
        """The federation."""
        return self.get()

    def get(self, *parts: str, **parameters: Any) -> dict[str, Any]:
        """A JSON answer about the federation."""
        answer = self.owner.owner.get(self.path(*parts), params=parameters)
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    def rounds(self) -> list[dict[str, Any]]:
        """All rounds, oldest first."""
        items: list[dict[str, Any]] = self.get("rounds", limit=200)["items"]
        return items

    def events(self) -> list[str]:
        """Types of all events."""
        return [event["type"] for event in self.get("events")["items"]]

    def running(self, actors: int = 2, **changes: Any) -> list[Actor]:
        """A started federation whose clients have described what they have: its first round collects."""
        self.create(**changes)
        made = [self.join(self.actor(examples=10 * (index + 1))) for index in range(actors)]
        self.post("start")
        for actor in made:
            assert actor.work() == "describe"
        self.settle()
        return made

    def reconcile(self) -> None:
        """One turn of the reconciler, and what follows of it."""
        celery.tasks["federations.reconcile"]()
        self.settle()

    def settle(self) -> int:
        """Runs queued tasks until there are none; returns how many ran."""
        return run_all()

    def drop_messages(self) -> int:
        """Loses all queued messages; returns how many."""
        lost = 0
        while take() is not None:
            lost += 1
        return lost

    def play(self, rounds: int) -> None:
        """Lets all actors work until so many more rounds are closed, or nothing is left to do."""
        wanted = self.show()["rounds_done"] + rounds
        while self.show()["rounds_done"] < wanted:
            worked = [actor.work() for actor in self.actors]
            assert self.settle() or any(worked), self.show()["waiting_for"]
