"""Worker agents as real processes beside a real installation, and a federation of them driven over REST."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from coordinator.artifacts.store import objects
from examples.quickstart.rest import FINAL_STATES, Api, Federation, Participant
from federated.payloads.payload import Payload
from tests.support.faulty_proxy import FaultyProxy
from tests.support.installation import Installation, installed
from tests.support.places import within
from tests.support.recording_proxy import RecordingProxy
from tests.support.service import created
from tests.support.tiny_models import WORDS, bert_folder, color_rows, write_rows
from worker_agent.settings import FILE_VARIABLE, AgentSettings, load_settings

LABELS = WORDS[:3]
MODEL = "tiny-bert"
DATASET = "Befunde Ärzte"
START_SECONDS = 120.0
END_SECONDS = 240.0
POLLING_SECONDS = 0.1
EVENT_SECONDS = 0.2  # that somebody began to train is no event


@dataclass
class Node:
    """An organization with one worker agent, whose process can be killed and started again."""

    name: str
    organization_id: str
    http: httpx.Client
    folder: Path
    worker_id: str = ""
    process: subprocess.Popen[bytes] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.folder / "agent.log"

    def enroll(self, token: str) -> None:
        """Enrolls through the command line, as its owner would."""
        done = subprocess.run(
            [sys.executable, "-m", "worker_agent", "enroll", "--config", str(self.settings)],
            env=_environment() | {"FEDLOOM_ENROLLMENT_TOKEN": token},
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (worker,) = self.http.get("/v1/workers").json()["items"]
        self.worker_id = worker["id"]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What one `worker-agent …` command of this node's owner did."""
        return subprocess.run(
            [sys.executable, "-m", "worker_agent", *arguments, "--config", str(self.settings)],
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
        )

    @property
    def settings(self) -> Path:
        return self.folder / "worker-agent.toml"

    def start(self) -> None:
        """Starts the agent; it leases as soon as it is there."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker_agent", "run", "--config", str(self.settings)],
                env=_environment() | dict(self.environment),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def restart(self, environment: Mapping[str, str]) -> None:
        """Ends the agent and starts it with these variables beside the usual ones."""
        self.end()
        self.environment = environment
        self.start()

    def kill(self) -> None:
        """SIGKILL, and nothing of it goes on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(START_SECONDS)

    def end(self) -> None:
        """Ends the agent as a service manager would."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(START_SECONDS)

    def close(self) -> None:
        """Leaves nothing running, whatever the test did."""
        self.end()
        self.http.close()


@dataclass
class Consortium:
    """A running installation, its nodes, and the owner's view of their federations."""

    installation: Installation
    model: Path
    nodes: list[Node] = field(default_factory=list)
    agents_url: str | None = None

    @property
    def owner(self) -> Node:
        return self.nodes[0]

    def definition(self, **changes: Any) -> dict[str, Any]:
        """A federation of all nodes that always take part."""
        return {
            "name": "colors",
            "task": {"task": "sequence_classification", "labels": LABELS, "max_length": 16},
            "base_model": {"id": MODEL},
            "trainable": {"kind": "lora", "r": 2, "lora_alpha": 8},
            "algorithm": "fedavg",
            "config": {"local_steps": 10, "batch_size": 8, "learning_rate": 0.02},
            "rounds": 3,
            "clients_per_round": len(self.nodes),
            "evaluation": {"every": None},
            "seed": 3,
        } | changes

    def start(self, settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({}), **changes: Any) -> str:
        """Creates a federation, has everybody accept and register with settings by node, and starts it."""
        participants = [
            Participant(
                Api(node.http),
                node.organization_id,
                {"worker_id": node.worker_id, "dataset": DATASET, "settings": settings.get(node.name, {})},
            )
            for node in self.nodes
        ]
        federation = Federation.create(self.definition(**changes), participants)
        federation.start()
        return federation.id

    def sites(self) -> list[AgentSettings]:
        """The settings of the nodes' agents, in this process, which has its own again when this returns."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(FILE_VARIABLE, "")
            return [load_settings(node.settings) for node in self.nodes]

    def get(self, federation_id: str, *parts: str) -> Any:
        """What the owner reads; waits while the web process is being restarted."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                answer = self.owner.http.get("/".join(["/v1/federations", federation_id, *parts]))
                answer.raise_for_status()
                return answer.json()
            except httpx.TransportError:
                assert time.monotonic() < deadline, self.story()
                time.sleep(POLLING_SECONDS)

    def wait(
        self, federation_id: str, holds: Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], bool]
    ) -> None:
        """Waits until this holds of the federation and its rounds: asked after each event, else every 200 ms."""
        deadline = time.monotonic() + END_SECONDS
        after = 0
        while not holds(self.get(federation_id), self.get(federation_id, "rounds")["items"]):
            assert time.monotonic() < deadline, self.story()
            page = self.get(federation_id, f"events?after={after}&wait={EVENT_SECONDS}")
            after = page["next_after"]

    def events(self, federation_id: str) -> list[str]:
        """Types of what happened, in order."""
        return [event["type"] for event in self.get(federation_id, "events")["items"]]

    def end(self, federation_id: str) -> dict[str, Any]:
        """Waits for the end and returns the federation as it is then."""
        self.wait(federation_id, lambda federation, rounds: federation["state"] in FINAL_STATES)
        shown: dict[str, Any] = self.get(federation_id)
        assert shown["state"] == "completed", (shown["reason"], shown["reason_detail"], self.story())
        return shown

    def of_organization(self, node: Node, *parts: str) -> Any:
        """What a node's owner reads about the organization."""
        answer = node.http.get("/".join(["/v1/organizations", node.organization_id, *parts]))
        answer.raise_for_status()
        return answer.json()

    def update(self, federation_id: str, round_number: int, ordinal: int) -> Payload:
        """What the coordinator keeps of a client's update in a round of training."""
        told = json.loads(self.file(federation_id, "provenance.json"))
        (digest,) = [
            update["digest"] for update in told["rounds"][round_number - 1]["updates"] if update["ordinal"] == ordinal
        ]
        with within(self.installation.environment):
            return Payload.open(objects.local_file(digest))

    def capabilities(self, node: Node) -> dict[str, Any]:
        """What a node's worker said it can; waits until its agent has said so."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            answer = node.http.get(f"/v1/workers/{node.worker_id}")
            answer.raise_for_status()
            told: dict[str, Any] = answer.json()["capabilities"]
            if told["memory_bytes"] is not None:
                return told
            assert time.monotonic() < deadline, self.story()
            time.sleep(POLLING_SECONDS)

    def file(self, federation_id: str, name: str) -> bytes:
        """A file of the newest adapter."""
        answer = self.owner.http.get(f"/v1/federations/{federation_id}/adapter/{name}")
        answer.raise_for_status()
        return answer.content

    def story(self) -> str:
        """All logs, for a test that failed."""
        logs = [self.installation.log, *(node.log for node in self.nodes)]
        return "\n".join(
            f"== {log}\n" + "\n".join(log.read_text().splitlines()[-60:]) for log in logs if log.exists()
        )


@contextmanager
def consortium(
    folder: Path, names: Sequence[str], proxy: RecordingProxy | FaultyProxy | None = None, **settings: object
) -> Iterator[Consortium]:
    """An installation with one running agent for each organization, all of them with data of their own.

    Agents reach the installation through the proxy, if one is given.
    """
    with installed(folder / "coordinator", **settings) as installation:
        with joined(installation, folder, names, proxy) as made:
            yield made


@contextmanager
def joined(
    installation: Installation,
    folder: Path,
    names: Sequence[str],
    proxy: RecordingProxy | FaultyProxy | None = None,
    policy: str = "",
) -> Iterator[Consortium]:
    """As `consortium`, over an installation that runs already. `policy`: more lines of the nodes' policies."""
    model = bert_folder(folder / "model")
    with ExitStack() as running:
        url = None if proxy is None else running.enter_context(proxy.before(installation.url))
        made = Consortium(installation, model, agents_url=url)
        admin = running.enter_context(installation.client(installation.create_admin_key()))
        for index, name in enumerate(names):
            node = _node(made, admin, folder / name, name, index, policy)
            running.callback(node.close)
            made.nodes.append(node)
            node.start()
        yield made


def _node(made: Consortium, admin: httpx.Client, folder: Path, name: str, index: int, policy: str) -> Node:
    organization_id, (key,) = Api(admin).new_organization(name, "owner")
    path = f"/v1/organizations/{organization_id}"
    token = created(admin.post(f"{path}/enrollment-tokens", json={"name": "nodes"}))["token"]
    folder.mkdir(exist_ok=True)
    rows = write_rows(folder / "rows.jsonl", color_rows(40 + 8 * index, seed=index))
    node = Node(name, organization_id, made.installation.client(key), folder)
    url = made.agents_url or made.installation.url_of(index)
    node.settings.write_text(
        f'url = "{url}"\nname = "{name}"\nfolder = "state"\ndevice = "cpu"\n'
        f'[models]\n"{MODEL}" = "{made.model}"\n[datasets."{DATASET}"]\npath = "{rows}"\nheld_out = 0.25\n'
        f"[policy]\nmin_examples = 4\nmin_held_out = 4\n{policy}",
        encoding="utf-8",
    )
    node.enroll(token)
    return node


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
