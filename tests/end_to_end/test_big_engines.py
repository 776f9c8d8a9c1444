"""Several processes of each kind over PostgreSQL, Redis and S3: the bits of one machine, whatever Redis loses."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import clustered
from tests.support.installation import installed
from tests.support.nodes import Consortium, joined
from tests.support.places import Files, Places, Servers, places

pytestmark = pytest.mark.engines

ADAPTER = "adapter_model.safetensors"
CONFIG = {"local_steps": 40, "batch_size": 8, "learning_rate": 0.02}
NAMES = ["north", "south"]
PACE = {"claim_seconds": 3, "reconcile_seconds": 1}


def adapter(nodes: Consortium, federation_id: str) -> bytes:
    """The adapter of a federation that ends with no reason to differ."""
    nodes.end(federation_id)
    rounds = nodes.get(federation_id, "rounds")["items"]
    assert [(row["attempt"], row["not_reproducible"]) for row in rounds] == [(1, [])] * 3
    return nodes.file(federation_id, ADAPTER)


@pytest.fixture(scope="module")
def of_one_machine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of a run on SQLite, the filesystem queue and a folder."""
    folder = tmp_path_factory.mktemp("one")
    with installed(folder / "coordinator", Files(), **PACE) as one, joined(one, folder, NAMES) as nodes:
        return adapter(nodes, nodes.start(config=CONFIG))


@pytest.fixture(scope="module")
def several(engine: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Two web and two background processes; each agent knows one of the web processes."""
    folder = tmp_path_factory.mktemp("several")
    with clustered(folder / "coordinator", **PACE) as cluster, joined(cluster, folder, NAMES) as nodes:
        yield nodes


def servers() -> Servers:
    found = places()
    assert isinstance(found, Servers)
    return found


def collecting(number: int) -> Any:
    """Whether somebody trains in that round."""

    def holds(federation: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> bool:
        assert federation["state"] == "running", federation
        return len(rounds) == number and "training" in str(rounds[-1]["waiting_for"])

    return holds


def test_they_make_the_bytes_of_one_machine(several: Consortium, of_one_machine: bytes) -> None:
    assert adapter(several, several.start(config=CONFIG)) == of_one_machine


def test_a_broker_that_forgets_everything_changes_no_bit(several: Consortium, of_one_machine: bytes) -> None:
    federation_id = several.start(config=CONFIG)
    several.wait(federation_id, collecting(2))
    with servers().redis.client() as redis:
        redis.flushall()
    assert adapter(several, federation_id) == of_one_machine


def test_a_broker_that_is_killed_changes_no_bit(several: Consortium, of_one_machine: bytes) -> None:
    federation_id = several.start(config=CONFIG)
    several.wait(federation_id, collecting(2))
    servers().redis.kill()
    servers().redis.start()
    assert adapter(several, federation_id) == of_one_machine


def test_nothing_of_value_lies_in_the_data_folders(several: Consortium, tmp_path: Path) -> None:
    kept = [path for path in several.installation.folder.rglob("*") if path.is_file()]
    assert {path.relative_to(several.installation.folder).parts[1] for path in kept} <= {"cache"}
