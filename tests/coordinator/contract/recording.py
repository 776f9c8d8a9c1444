"""Records what a running service answers, as the examples of the OpenAPI document (`coordinator/web/examples.json`).

python -m pytest tests/coordinator/contract/recording.py
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.web import openapi
from tests.coordinator.contract.asking import JSON, Operation, ask, operations
from tests.coordinator.contract.table import TRIED_ON

if TYPE_CHECKING:
    from tests.coordinator.contract.world import World

CALLERS = ("owner", "worker", "member", "admin")
SECRETS = {"key", "token", "secret"}
SHORT = {"config_schema": {"type": "object", "properties": {"local_steps": {"type": "integer", "minimum": 1}}}}


def test_record(world: "World") -> None:
    document = world.service.anonymous.get("/openapi.json").json()
    recorded: dict[str, Any] = {}
    for operation in operations(document):
        for status, said in operation.answers():
            reference = said.get("content", {}).get(JSON, {}).get("schema", {}).get("$ref")
            if status < "300" and reference is not None:
                name = reference.rpartition("/")[2]
                recorded.setdefault(name, _answer(world, document, operation))
    told = {
        name: _without_secrets(answer, document["components"]["schemas"][name]) for name, answer in recorded.items()
    }
    text = json.dumps(told, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    Path(openapi.__file__).with_name("examples.json").write_text(text, encoding="utf-8")


def _answer(world: "World", document: Any, operation: Operation) -> Any:
    for role in CALLERS:
        answer = ask(world, document, operation, role, world.ids[TRIED_ON[operation.id]])
        if answer.is_success and answer.status_code != 204:
            world.restore()
            return answer.json()
    raise AssertionError(f"{operation.id} went well for none of {', '.join(CALLERS)}: {answer.text}")


def _without_secrets(answer: Any, schema: Any) -> Any:
    """The answer with one item at most in a list, without secrets and without what would be long."""
    if isinstance(answer.get("items"), list):
        return {**answer, "items": [_shortened(item) for item in answer["items"][:1]]}
    secrets = {name: schema["properties"][name]["examples"][0] for name in SECRETS & answer.keys()}
    return _shortened(answer) | (secrets if "secret_shown" in answer else {})


def _shortened(answer: Any) -> Any:
    return answer | {name: value for name, value in SHORT.items() if name in answer}
