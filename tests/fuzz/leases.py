"""Jobs for the node of `tests.fuzz.node`: good ones, and what a hostile coordinator makes of them."""

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok

from federated import registry
from federated.protocol import HeartbeatResponse, JobResponse, Lease, Problem, RenewResponse, UploadResponse, Work
from tests.fuzz.payloads import almost
from tests.fuzz.values import JSON_TEXTS, changed
from tests.support.hostile_values import Place
from tests.support.training import first_instruction
from tests.worker_agent.canaries import WORK
from tests.worker_agent.leases import make_lease
from tests.worker_agent.running_agent import digest_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import open_session

ALGORITHMS = ("fedavg", "flexlora", "fedkseed", "fedpeptao", "fibecfed")
MODELS: tuple[type[BaseModel], ...] = (
    Lease, Work, HeartbeatResponse, RenewResponse, JobResponse, UploadResponse, Problem,
)  # fmt: skip
CLOZE = {"cloze": {"template": "{text} {mask}", "words": ["one", "two", "three"]}}
REPEAT = {"task": "causal_lm", "template": {"prompt": "{instruction} {input}", "response": "{output}"}}
SIZE: Place = ("instruction", "size_bytes")
"""An agent rests for seconds when other bytes come than were announced: it has a turn of its own."""
TRIES = 6
"""An agent looks no further at a lease that it cannot read, and then it waits: most are to be readable."""
Document = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A lease, and the bytes of its instruction."""

    lease: Document = field(repr=False)
    instruction: bytes = field(repr=False)

    def named(self, job_id: str) -> Document:
        """The lease under another id."""
        return self.lease | {"job_id": job_id}


def good_jobs(settings: AgentSettings) -> list[Job]:
    """What this node does well: every kind of job of every algorithm, and of more tasks of the first."""
    works = [(_work(name), "good") for name in ALGORITHMS]
    llama = {"base_model": {"id": "llama"}, "trainable": {"kind": "lora", "r": 2}}
    works.append((_work("fedavg", task=WORK["task"] | CLOZE, **llama), "good"))
    works.append((_work("fedavg", task=REPEAT, **llama), "instructions"))
    return [job for work, dataset in works for job in _jobs(settings, work, dataset)]


def _work(algorithm: str, **fields: Any) -> Document:
    samples: Any = importlib.import_module(f"tests.federated.algorithms.{algorithm}.samples")
    found = registry.algorithm(algorithm)
    about = {"algorithm": algorithm, "algorithm_revision": found.revision, "trainable": found.example_trainable}
    return {**WORK, **about, "config": samples.CONFIGS[0], **fields}


def _jobs(settings: AgentSettings, work: Document, dataset: str) -> Iterator[Job]:
    asked = Work.model_validate(work)
    facts = open_session(asked, dataset, settings, 0, {}).facts
    for kind in ("describe", "train", "evaluate"):
        fields: Document = {"kind": kind, "dataset": dataset, "instruction": None}
        content = b""
        if kind == "describe":
            fields |= {"round_number": None, "round_kind": None}
        else:
            content = first_instruction(asked, facts, "evaluate" if kind == "evaluate" else "train").encode()
            fields["instruction"] = {"digest": digest_of(content), "size_bytes": len(content)}
        lease = make_lease(**fields).model_dump(mode="json")
        yield Job(lease | {"work": lease["work"] | work}, content)


@st.composite
def hostile(draw: st.DrawFn, good: Job, job_id: str) -> tuple[bytes, bytes]:
    """The bytes of a lease, and those of its instruction, as nobody should send them."""
    content = draw(st.just(good.instruction) | almost(good.instruction)) if good.instruction else b""
    lease = good.named(job_id)
    if content:
        lease["instruction"] = {"digest": digest_of(content), "size_bytes": len(content)}
    for _ in range(draw(st.sampled_from([1, TRIES, TRIES, TRIES]))):
        text = draw(st.sampled_from([*[_changed] * 6, _made, _made_work]))(draw, lease)
        if _can_be_read(text):
            break
    return text.encode(errors="surrogatepass"), content


def _can_be_read(text: str) -> bool:
    try:
        Lease.model_validate_json(text.encode(errors="surrogatepass"))
    except ValidationError:
        return False
    return True


def _changed(draw: st.DrawFn, lease: Document) -> str:
    """Anything at one or two of its places."""
    return draw(changed(lease, 2, frozenset({(), SIZE}), alike=True))


def _made(draw: st.DrawFn, lease: Document) -> str:
    """Whatever keeps to the protocol or does not, with some fields as they are in a good one."""
    return json.dumps(_mixed(draw, "Lease", lease, "instruction"))


def _made_work(draw: st.DrawFn, lease: Document) -> str:
    """The same of the work."""
    return json.dumps(lease | {"work": _mixed(draw, "Work", lease["work"], "algorithm_revision")})


def _mixed(draw: st.DrawFn, name: str, good: Document, *always: str) -> Document:
    made = draw(made_as(name))
    kept = [*always, *draw(st.lists(st.sampled_from(sorted(good)), unique=True))]
    return {**(made if isinstance(made, dict) else {}), **{field: good[field] for field in kept}}


def made_as(name: str) -> st.SearchStrategy[Any]:
    """JSON values that keep to this model of the protocol, or do not."""
    return st.one_of(*(OPERATIONS[name].as_strategy(mode) for mode in GenerationMode)).map(_body)


def answers(name: str) -> st.SearchStrategy[bytes]:
    """Bodies of answers that might be of this model."""
    texts = st.one_of(made_as(name).map(json.dumps), JSON_TEXTS).map(lambda text: text.encode(errors="surrogatepass"))
    return texts | st.binary(max_size=100)


def _body(case: Case[Any]) -> Any:
    """What was made; nothing where that was not to be a body at all."""
    return case.body if isinstance(case.body, dict | list | str | int | float | bool) else None


def _document() -> Document:
    """An OpenAPI document whose operations take the models of the protocol."""
    paths: Document = {}
    schemas: Document = {}
    for model in MODELS:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
        body = {"required": True, "content": content}
        operation = {"operationId": model.__name__, "requestBody": body, "responses": {"200": {"description": "-"}}}
        paths[f"/{model.__name__}"] = {"post": operation}
    info = {"title": "-", "version": "-"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


OPERATIONS = {
    found.ok().definition.raw["operationId"]: found.ok()
    for found in schemathesis.openapi.from_dict(_document()).get_all_operations()
    if isinstance(found, Ok)
}
