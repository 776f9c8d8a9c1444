"""Privacy of client memory: no request of a worker holds any of it, with any algorithm, and in both directions only
shared tensors are sent.
"""

import hashlib
import importlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from federated import registry
from federated.payloads.header import HeaderError
from federated.payloads.payload import Payload
from tests.support.nodes import Consortium, joined
from tests.support.recording_proxy import RecordingProxy

pytestmark = pytest.mark.slow

PERSONAL = sorted(name for name, algorithm in registry.algorithms().items() if algorithm.personal)
LAYERS = 2
ROUNDS = 2
SCORES = "layer_scores"
WINDOW_BYTES = 64
# Of a shorter tensor too little is left to tell it from chance.
FEWEST_BYTES = 16
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)
HEAD = {"classifier.bias", "classifier.weight"}


def factors(layer: int) -> set[str]:
    """Of the tiny BERT, adapted at queries and values."""
    modules = [f"bert.encoder.layer.{layer}.attention.self.{name}" for name in ("query", "value")]
    return {f"{module}.lora_{factor}.weight" for module in modules for factor in "AB"}


def prompts(layer: int) -> set[str]:
    return {f"prompt_embeddings/layer.{layer}"}


@dataclass(frozen=True, slots=True)
class Names:
    """By the text of the method: tensors of a layer, what goes down before the choice, what one stays under."""

    of_layer: Callable[[int], set[str]]
    before: set[str]
    remembered: Callable[[str], set[str]]
    beside: set[str]


METHODS = {
    "fibecfed": Names(factors, set(), lambda name: {f"{name}/rows", f"{name}/private"}, {"difficulty"}),
    "fedpeptao": Names(prompts, HEAD.union(*map(prompts, range(LAYERS))), lambda name: {name}, set()),
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A federation that ended. `weights`: of each upload, by its digest; `memories`: of its clients alone."""

    algorithm: str
    metrics: dict[str, float]
    sent: bytes
    uploads: list[Payload]
    downloads: list[Payload]
    weights: dict[str, float]
    memories: list[Payload]

    def scores(self) -> list[Payload]:
        """The uploads of the preparation."""
        return [upload for upload in self.uploads if SCORES in upload]

    def chosen(self) -> list[int]:
        """The half of the layers with the highest scores, by the clients' weighted sum."""
        told = [(self.weights[digest_of(upload)], upload[SCORES].tolist()) for upload in self.scores()]
        sums = [sum(weight * scores[layer] for weight, scores in told) for layer in range(LAYERS)]
        return sorted(sorted(range(LAYERS), key=lambda layer: -sums[layer])[: LAYERS // 2])


def digest_of(payload: Payload) -> str:
    return "sha256:" + hashlib.sha256(payload.encode()).hexdigest()


@pytest.fixture(scope="module")
def proxy() -> RecordingProxy:
    return RecordingProxy()


@pytest.fixture(scope="module")
def running(
    two_nodes: Consortium, tmp_path_factory: pytest.TempPathFactory, proxy: RecordingProxy
) -> Iterator[Consortium]:
    """Two more agents, all of whose requests are recorded."""
    with joined(two_nodes.installation, tmp_path_factory.mktemp("recorded"), ["east", "west"], proxy) as made:
        yield made


@pytest.fixture(scope="module", params=PERSONAL)
def recorded(request: pytest.FixtureRequest, running: Consortium, proxy: RecordingProxy) -> Recorded:
    proxy.forget()
    before = memory_files(running)
    federation_id = run_to_end(running, request.param, ROUNDS)
    requests = list(proxy.requests)
    bodies = [json.loads(body) for _, path, _, body in requests if path.endswith("/submit")]
    updates = [body["update"] for body in bodies if body.get("update")]
    return Recorded(
        algorithm=request.param,
        metrics=running.get(federation_id, "rounds")["items"][-1]["metrics"],
        sent=b"\n".join(text.encode() + body for _, path, head, body in requests for text in (path, head)),
        uploads=payloads([body for _, _, _, body in requests]),
        downloads=payloads(proxy.answers),
        weights={update["digest"]: update["weight"] for update in updates},
        memories=[Payload.open(file) for file in sorted(memory_files(running) - before)],
    )


def run_to_end(running: Consortium, algorithm: str, rounds: int) -> str:
    samples: Any = importlib.import_module(f"tests.federated.algorithms.{algorithm}.samples")
    federation_id = running.start(
        name=algorithm,
        algorithm=algorithm,
        config={**samples.CONFIGS[0], "layer_count": "fixed", "layer_share": 0.5},
        trainable=registry.algorithm(algorithm).example_trainable,
        rounds=rounds,
        evaluation={"every": 1},
    )
    running.end(federation_id)
    return federation_id


def memory_files(running: Consortium) -> set[Path]:
    return {file for node in running.nodes for file in Path(node.folder).rglob("memory/**/*.safetensors")}


def payloads(bodies: Sequence[bytes]) -> list[Payload]:
    found = []
    for body in bodies:
        try:
            found.append(Payload.decode(body))
        except HeaderError:
            continue
    return found


def forms(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor as it may be written: a mask also as the places it marks, scores also as the order of examples."""
    indices: list[Tensor] = []
    if tensor.dtype == torch.bool and not tensor.all():
        indices = [tensor.flatten().nonzero().flatten()]
    elif tensor.dim() == 1 and len(tensor.unique()) > 1:
        order = torch.argsort(tensor, stable=True)
        indices = [order, torch.argsort(order)]
    yield from (tensor, *(tensor.to(dtype) for dtype in FLOATS))
    if tensor.is_floating_point():
        yield from (tensor.bfloat16().float(), tensor.half().float())
    yield from (index.to(dtype) for index in indices for dtype in (*FLOATS, *INTEGERS))


def windows(tensor: Tensor) -> Iterator[bytes]:
    """Every window of each of a tensor's forms; all of a short one; none that says nothing."""
    for form in forms(tensor):
        data = form.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        length = min(WINDOW_BYTES, len(data))
        for first in range(0, len(data) - length + 1, form.element_size()):
            window = data[first : first + length]
            if length >= FEWEST_BYTES and says_something(window, form.element_size()):
                yield window


def says_something(window: bytes, size: int) -> bool:
    """Rows that start at zero and were never trained do not, nor does a mask of two or three runs."""
    if len(set(window)) > 4:
        return True
    values = [window[first : first + size] for first in range(0, len(window), size)]
    return sum(one != other for one, other in itertools.pairwise(values)) >= 4


SECRETS = {
    "values": torch.linspace(-1, 1, 50),
    "mask": torch.tensor([True, False, False, True, True, False, True, False, True, True, False, True, False] * 4),
    "difficulty": torch.linspace(1, -1, 50).sin() * torch.tensor([1.0, -1.0]).repeat(25),
}


@pytest.mark.parametrize("kind", SECRETS)
def test_the_search_finds_a_secret_in_each_of_its_forms(kind: str) -> None:
    secret = SECRETS[kind]
    written = [secret, secret.float(), secret.bfloat16(), secret.half(), secret.half().float()]
    if kind == "mask":
        places = secret.nonzero().flatten()
        written += [places, places.int(), places.float()]
    else:
        order = torch.argsort(secret, stable=True)
        written += [order, order.int(), order.float(), order.bfloat16(), order.half(), torch.argsort(order)]
    for form in written:
        told = b"x" * 7 + form.view(torch.uint8).numpy().tobytes() + b"y"
        assert any(window in told for window in windows(secret)), form.dtype


def test_what_says_nothing_is_not_searched_for() -> None:
    assert list(windows(torch.zeros(50))) == []
    assert list(windows(torch.ones(50, dtype=torch.bool))) == []


class TestRequests:
    def test_nothing_that_is_remembered_is_ever_sent(self, recorded: Recorded) -> None:
        assert {f"own_{name}" for name in ("accuracy", "loss")} <= set(recorded.metrics)
        assert len(recorded.memories) >= 2
        for memory in recorded.memories:
            for name in memory:
                searched = 0
                for window in windows(memory[name]):
                    assert window not in recorded.sent, f"{recorded.algorithm}: a part of {name!r} was sent"
                    searched += 1
                assert searched, f"{recorded.algorithm}: nothing of {name!r} was looked for"

    def test_a_preparation_sends_a_number_for_each_layer_and_nothing_else(
        self, recorded: Recorded, running: Consortium
    ) -> None:
        names = METHODS[recorded.algorithm]
        scores = recorded.scores()
        assert [(list(one), one.dtype(SCORES), one.shape(SCORES)) for one in scores] == (
            [([SCORES], "F32", (LAYERS,))] * len(running.nodes)
        )
        told = [one for one in recorded.downloads if SCORES in one.facts["expects"]]
        assert [set(one) for one in told] == [names.before] * len(running.nodes)

    def test_the_chosen_layers_and_the_head_travel_both_ways_and_nothing_else(
        self, recorded: Recorded, running: Consortium
    ) -> None:
        chosen = recorded.chosen()
        shared_names = HEAD.union(*map(METHODS[recorded.algorithm].of_layer, chosen))
        updates = [one for one in recorded.uploads if SCORES not in one]
        assert [set(one) for one in updates] == [shared_names] * ROUNDS * len(running.nodes)
        told = [one for one in recorded.downloads if SCORES not in one.facts["expects"]]
        # Of each round an instruction to train and one to evaluate; the latter may be that of the next round.
        assert len(told) >= (ROUNDS + 1) * len(running.nodes)
        assert {frozenset(one) for one in told} == {frozenset(shared_names)}
        assert all(one.facts.get("layers", one.facts.get("travelling")) == chosen for one in told)

    def test_an_upload_has_no_facts_to_hide_something_in(self, recorded: Recorded) -> None:
        assert [dict(upload.facts) for upload in recorded.uploads] == [{}] * len(recorded.uploads)

    def test_what_does_not_travel_is_what_is_remembered(self, recorded: Recorded) -> None:
        names = METHODS[recorded.algorithm]
        private = set[str]().union(*(names.of_layer(n) for n in range(LAYERS) if n not in recorded.chosen()))
        trained = [memory for memory in recorded.memories if set(memory) - names.beside]
        assert len(trained) >= 2
        for memory in trained:
            assert set(memory) == names.beside.union(*map(names.remembered, private))


def test_a_worker_writes_its_clients_own_adapter(running: Consortium, tmp_path: Path) -> None:
    """PEFT opens it, and it holds what this client alone trained: no two are the same."""
    federation_id = run_to_end(running, PERSONAL[-1], 1)
    clients = running.get(federation_id, "clients")["items"]
    written = []
    for node in running.nodes:
        client = next(row["id"] for row in clients if row["worker_id"] == node.worker_id)
        done = node.command("export", federation_id, client, str(tmp_path / node.name))
        assert done.returncode == 0, done.stdout + done.stderr
        stock = AutoModelForSequenceClassification.from_pretrained(running.model, num_labels=3)
        peft.PeftModel.from_pretrained(stock, tmp_path / node.name)
        written.append((tmp_path / node.name / "adapter_model.safetensors").read_bytes())
    shared = running.file(federation_id, "adapter_model.safetensors")
    assert len({shared, *written}) == 3
    refused = running.owner.command("export", federation_id, "cli_unknown", str(tmp_path / "none"))
    assert refused.returncode == 1
    assert "has no memory of client cli_unknown" in refused.stderr
