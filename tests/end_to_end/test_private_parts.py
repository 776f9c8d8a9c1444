"""What a worker remembers of a client is in no request it sends, whatever the algorithm."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from federated import registry
from federated.header import HeaderError
from federated.payload import Payload
from tests.support.nodes import Consortium, consortium
from tests.support.recording_proxy import RecordingProxy

pytestmark = pytest.mark.slow

PERSONAL = sorted(name for name, algorithm in registry.algorithms().items() if algorithm.personal)
LAYERS = 2
WINDOW_BYTES = 64
# Of a shorter tensor too little is left to tell it from chance.
FEWEST_BYTES = 16


@pytest.fixture(scope="module")
def proxy() -> RecordingProxy:
    return RecordingProxy()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, proxy: RecordingProxy) -> Iterator[Consortium]:
    with consortium(tmp_path_factory.mktemp("recorded"), ["north", "south"], proxy) as running:
        yield running


def windows(tensor: Tensor) -> Iterator[bytes]:
    """Every window of a tensor's bytes and of its order as indices; all of a short one; none that says nothing."""
    forms = [tensor]
    if tensor.is_floating_point():
        forms += [tensor.bfloat16(), tensor.half()]
        if tensor.dim() == 1 and len(tensor.unique()) > 1:
            forms += [torch.argsort(tensor, stable=True).to(dtype) for dtype in (torch.int32, torch.int64)]
    for form in forms:
        data = form.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        length = min(WINDOW_BYTES, len(data))
        for first in range(0, len(data) - length + 1, form.element_size()):
            window = data[first : first + length]
            # Rows that start at zero and were never trained say nothing.
            if length >= FEWEST_BYTES and len(set(window)) > 4:
                yield window


def memories(running: Consortium) -> list[Payload]:
    files = [file for node in running.nodes for file in Path(node.folder).rglob("memory/**/*.safetensors")]
    return [Payload.open(file) for file in files]


def payloads(bodies: list[bytes]) -> list[Payload]:
    found = []
    for body in bodies:
        try:
            found.append(Payload.decode(body))
        except HeaderError:
            continue
    return found


def test_the_search_finds_a_tensor_in_each_of_its_forms() -> None:
    secret = torch.linspace(-1, 1, 50)
    order = torch.argsort(secret, stable=True)
    for form in (secret, secret.bfloat16(), secret.half(), order, order.int()):
        told = b"x" * 7 + form.view(torch.uint8).numpy().tobytes() + b"y"
        assert any(window in told for window in windows(secret))
    assert list(windows(torch.zeros(50))) == []


@pytest.mark.parametrize("algorithm", PERSONAL)
def test_nothing_that_is_remembered_is_ever_sent(algorithm: str, recorded: Consortium, proxy: RecordingProxy) -> None:
    proxy.requests.clear()
    samples: Any = importlib.import_module(f"tests.federated.algorithms.{algorithm}.samples")
    trainable = registry.algorithm(algorithm).example_trainable
    config = {**samples.CONFIGS[0], "layer_count": "fixed", "layer_share": 0.5}
    federation_id = recorded.start(
        name=algorithm,
        algorithm=algorithm,
        config=config,
        trainable=trainable,
        rounds=2,
        evaluation={"every": 1},
    )
    recorded.end(federation_id)
    rounds = recorded.get(federation_id, "rounds")["items"]
    assert {f"own_{name}" for name in ("accuracy", "loss")} <= set(rounds[-1]["metrics"])
    sent = b"\n".join(text.encode() + body for _, path, headers, body in proxy.requests for text in (path, headers))
    remembered = memories(recorded)
    assert len(remembered) >= 2
    checked = 0
    for memory in remembered:
        for name in memory:
            for window in windows(memory[name]):
                assert window not in sent, f"{algorithm}: a part of {name!r} was sent"
                checked += 1
    assert checked > 100
    updates = payloads([body for _, _, _, body in proxy.requests])
    private = {name.removesuffix("/private") for memory in remembered for name in memory if name.endswith("/private")}
    assert updates
    assert not private & {name for update in updates for name in update}
    scores = [update for update in updates if "layer_scores" in update]
    assert [(list(update), update.shape("layer_scores")) for update in scores] in (
        [],
        [(["layer_scores"], (LAYERS,))] * len(recorded.nodes),
    )


def test_a_worker_writes_its_clients_own_adapter(recorded: Consortium, tmp_path: Path) -> None:
    """PEFT opens it, and it holds what this client alone trained: no two are the same."""
    algorithm = PERSONAL[-1]
    samples: Any = importlib.import_module(f"tests.federated.algorithms.{algorithm}.samples")
    config = {**samples.CONFIGS[0], "layer_count": "fixed", "layer_share": 0.5}
    trainable = registry.algorithm(algorithm).example_trainable
    federation_id = recorded.start(
        name="own", algorithm=algorithm, config=config, trainable=trainable, rounds=1, evaluation={"every": 1}
    )
    recorded.end(federation_id)
    clients = recorded.get(federation_id, "clients")["items"]
    written = []
    for node in recorded.nodes:
        client = next(row["id"] for row in clients if row["worker_id"] == node.worker_id)
        done = node.command("export", federation_id, client, str(tmp_path / node.name))
        assert done.returncode == 0, done.stdout + done.stderr
        stock = AutoModelForSequenceClassification.from_pretrained(recorded.model, num_labels=3)
        peft.PeftModel.from_pretrained(stock, tmp_path / node.name)
        written.append((tmp_path / node.name / "adapter_model.safetensors").read_bytes())
    shared = recorded.file(federation_id, "adapter_model.safetensors")
    assert len({shared, *written}) == 3
    refused = recorded.owner.command("export", federation_id, "cli_unknown", str(tmp_path / "none"))
    assert refused.returncode == 1
    assert "remembers nothing of client cli_unknown" in refused.stderr
