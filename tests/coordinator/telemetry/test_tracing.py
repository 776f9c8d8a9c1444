"""Traces as an OpenTelemetry collector receives them, and none without an endpoint."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.installation import Installation
from tests.support.places import Places
from tests.support.receiver import Receiver, receiving
from tests.support.service import created, upload

pytestmark = pytest.mark.once

WAIT_SECONDS = 60.0
CHUNK_BYTES = 64 * 1024


class Span(NamedTuple):
    process: str
    name: str
    trace: str
    ids: list[str]


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def traced(engine: Places, tmp_path: Path, collector: Receiver) -> Iterator[Installation]:
    """An installation that sends its traces to the collector."""
    installation = Installation(tmp_path / "coordinator", chunk_bytes=CHUNK_BYTES)
    installation.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    try:
        installation.start()
        yield installation
    finally:
        installation.close()


def spans(collector: Receiver) -> list[Span]:
    """All that came so far."""
    found = []
    for message in list(collector.messages):
        assert message.path == "/v1/traces"
        for of_resource in ExportTraceServiceRequest.FromString(message.body).resource_spans:
            facts = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            assert facts["service.name"] == "fedloom-coordinator"
            for span in (span for scope in of_resource.scope_spans for span in scope.spans):
                ids = [value.string_value for each in span.attributes if each.key == "fedloom.ids"
                       for value in each.value.array_value.values]  # fmt: skip
                found.append(Span(facts["fedloom.process"], span.name, span.trace_id.hex(), ids))
    return found


def until(collector: Receiver, wanted: Callable[[Span], bool]) -> Span:
    """The first such span, as soon as it has come."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        for span in spans(collector):
            if wanted(span):
                return span
        assert time.monotonic() < deadline, spans(collector)
        time.sleep(0.1)


class TestTraces:
    def test_a_task_stands_in_the_trace_of_the_request_that_woke_it(
        self, traced: Installation, collector: Receiver
    ) -> None:
        admin_key = traced.create_admin_key()
        with traced.client(admin_key) as admin:
            organization = created(admin.post("/v1/organizations", json={"name": "Bank"}))["id"]
            path = f"/v1/organizations/{organization}/api-keys"
            key = created(admin.post(path, json={"name": "owner", "role": "owner"}))["key"]
        with traced.client(key) as owner:
            content = bytes(CHUNK_BYTES + 1)
            upload(owner, content, "sha256:" + hashlib.sha256(content).hexdigest())
        shown = until(collector, lambda span: span.name == "POST /v1/artifacts/uploads/{upload_id}/complete")
        assert shown.process == "web"
        assert f'"trace_id": "{shown.trace}"' in traced.text_of_log(), "the access log names the trace"
        task = until(collector, lambda span: span.process == "background" and span.trace == shown.trace)
        assert "artifacts.assemble" in task.name
        assert [name[:4] for name in task.ids] == ["upl_"]
        beat = until(collector, lambda span: span.process == "beat" and "federations.reconcile" in span.name)
        task = until(collector, lambda span: span.process == "background" and span.trace == beat.trace)
        assert "federations.reconcile" in task.name
        told = b"".join(message.body for message in collector.messages)
        assert admin_key.encode() not in told
        assert key.encode() not in told
        assert not [span for span in spans(collector) if "readyz" in span.name]


def test_nothing_of_it_is_loaded_unless_somebody_asks() -> None:
    look = (
        "import sys; from coordinator.telemetry import tracing; from coordinator.app import create_app;"
        "tracing.start('web', create_app()); print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
