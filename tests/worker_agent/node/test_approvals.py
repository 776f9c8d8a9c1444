"""Approvals of a node: each covers the digest of one request and nothing else."""

import copy
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from federated.protocol import Lease
from tests.worker_agent.leases import make_lease
from worker_agent.errors import ConfigurationError, NotUnderstood
from worker_agent.node import approvals
from worker_agent.node.approvals import Request, approval_digest, in_words, request_of
from worker_agent.node.policy import Node, check
from worker_agent.settings import AgentSettings, PolicySettings

OF_ONE_JOB = {
    "job_id", "kind", "attempt", "client_id", "ordinal", "round_number", "round_kind", "seed", "views", "instruction",
    "memory", "lease_seconds", "expires_at",
}  # fmt: skip
CLOZE = {
    "task": {
        "task": "sequence_classification", "labels": ["no", "yes"], "metrics": ["accuracy", "f1"],
        "cloze": {"template": "{text} It was {mask} .", "words": ["bad", "good"]},
    },
    "base_model": {"id": "small", "revision": "main", "weights_sha256": "0" * 64},
    "trainable": {
        "kind": "lora", "r": 4, "rank_pattern": {"query": 5}, "alpha_pattern": {"query": 2.0},
        "target_modules": ["query", "value"], "layers_to_transform": [0], "modules_to_save": ["head"],
    },
    "config": {"local_steps": 20, "nested": {"deep": [1, 0.5, None, True]}},
}  # fmt: skip
TEMPLATE = {
    "task": {"task": "causal_lm", "template": {"prompt": "{text}", "response": "{answer}"}},
    "trainable": {"kind": "full", "names": ["encoder.*"]},
}
PREFIX = {"trainable": {"kind": "prefix"}}
OTHER_WORDS = ("other", "all", "f1", "matthews", "causal_lm", "{other} {mask}", "{other}", "1" * 64)
WEIGHTS = ("work", "base_model", "weights_sha256")
UNALONE = {("work", "trainable", "kind")}
"""Cannot change by itself: the other fields belong to it."""
Path_ = tuple[str | int, ...]


def lease_of(work: dict[str, Any]) -> Lease:
    return make_lease(work=work, owner_name="Bank", settings={"rank": 4, "notes": {"a": ["b"]}})


def asking(settings: AgentSettings, *approved: str) -> Node:
    policy = PolicySettings(approve="ask")
    return Node(settings.model_copy(update={"policy": policy}), {"fedavg": 1}, approved)


def leaves(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Paths of all values that hold no other ones."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for key, part in inner for leaf in leaves(part, (*path, key))]
    yield from found or [path]


def others(value: Any) -> Iterator[Any]:
    """Values that may stand in its place."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (other for other in (value + 1, value / 2, value + 0.25) if other != value)
    elif isinstance(value, str):
        yield from (value + "x", *(word for word in OTHER_WORDS if word != value))
    elif value is None:
        yield from ("other", ["other"], [1], {"prompt": "{other}", "response": "{other}"},
                    {"template": "{mask}", "words": ["a", "b"]}, ["a", "b"], "1" * 64)  # fmt: skip
    else:
        yield from (["other"], {"other": 1})


def changed(document: Any, path: Path_, value: Any) -> Any:
    made = copy.deepcopy(document)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


def valid_changes(lease: Lease, path: Path_) -> Iterator[Lease]:
    document = lease.model_dump(mode="json")
    value = document
    for key in path:
        value = value[key]
    for other in others(value):
        try:
            yield Lease.model_validate(changed(document, path, other))
        except ValidationError:
            continue


class TestDigest:
    @pytest.mark.parametrize("work", [CLOZE, TEMPLATE, PREFIX])
    def test_each_value_of_what_is_asked_asks_anew(self, settings: AgentSettings, work: dict[str, Any]) -> None:
        lease = lease_of(work)
        node = asking(settings, approval_digest(lease))
        assert check(lease, node) is None
        unchanged = set()
        for path in set(leaves(request_of(lease).model_dump(mode="json"))) - {WEIGHTS}:
            variants = list(valid_changes(lease, path))
            if not variants:
                unchanged.add(path)
            for variant in variants:
                refusal = check(variant, node)
                assert refusal is not None, (path, variant)
                assert refusal.rule == "policy_approval", (path, refusal)
        # A task's kind and a trainable's cannot change alone; nor can what only another kind of task may have.
        assert unchanged <= UNALONE | {("work", "task", name) for name in ("task", "labels", "cloze", "template")}

    def test_another_kind_of_task_or_trainable_asks_anew(self, settings: AgentSettings) -> None:
        digests = {approval_digest(lease_of(work)) for work in (CLOZE, TEMPLATE, PREFIX)}
        assert len(digests) == 3

    def test_what_belongs_to_one_job_does_not_matter(self, settings: AgentSettings) -> None:
        first = lease_of(CLOZE)
        following = first.model_copy(
            update={"job_id": "job_2", "kind": "evaluate", "round_number": 2, "seed": 12, "attempt": 3}
        )
        assert check(following, asking(settings, approval_digest(first))) is None

    def test_nor_does_the_digest_that_the_weights_here_must_have(self, settings: AgentSettings) -> None:
        first = lease_of(CLOZE)
        variants = list(valid_changes(first, WEIGHTS))
        assert variants
        for variant in variants:
            assert check(variant, asking(settings, approval_digest(first))) is None

    def test_every_field_of_a_lease_is_of_one_job_or_approved(self) -> None:
        assert set(Lease.model_fields) == OF_ONE_JOB | set(Request.model_fields)

    @pytest.mark.parametrize("approved", ["fed_1", "small", ""])
    def test_no_id_approves_anything(self, settings: AgentSettings, approved: str) -> None:
        refusal = check(lease_of(CLOZE), asking(settings, approved))
        assert refusal is not None
        assert refusal.rule == "policy_approval"
        assert "worker-agent approve fed_1" in refusal.text

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_what_has_no_digest_is_not_worked_on(self, settings: AgentSettings, number: float) -> None:
        with pytest.raises(NotUnderstood, match="without a digest"):
            check(make_lease(settings={"a": [number]}), asking(settings))


class TestRequests:
    def test_what_was_asked_can_be_read_until_it_is_approved(self, tmp_path: Path) -> None:
        lease = lease_of(CLOZE)
        approvals.keep(tmp_path, lease)
        approvals.keep(tmp_path, lease)
        approvals.keep(tmp_path, lease_of(TEMPLATE))
        newest, first = approvals.pending(tmp_path, "fed_1")
        assert (first, newest) == (request_of(lease), request_of(lease_of(TEMPLATE)))
        approvals.approve(tmp_path, first)
        assert approvals.approvals(tmp_path).digests == {first.digest}
        assert approvals.pending(tmp_path, "fed_1") == [newest]
        approvals.keep(tmp_path, lease)  # as a slot may that had looked before
        assert approvals.pending(tmp_path, "fed_1") == [newest]

    def test_they_are_for_the_owner_alone(self, tmp_path: Path) -> None:
        approvals.keep(tmp_path, lease_of(CLOZE))
        approvals.approve(tmp_path, *approvals.pending(tmp_path, "fed_1"))
        approvals.keep(tmp_path, lease_of(TEMPLATE))
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert len(files) == 2
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert stat.S_IMODE((tmp_path / "asked").stat().st_mode) == 0o700

    def test_another_federation_sees_none_of_it(self, tmp_path: Path) -> None:
        approvals.keep(tmp_path, make_lease(federation_id="fed_10"))
        assert approvals.pending(tmp_path, "fed_1") == []

    def test_the_oldest_make_room(self, tmp_path: Path) -> None:
        for number in range(approvals.MAX_REQUESTS + 5):
            approvals.keep(tmp_path, make_lease(settings={"number": number}))
            for file in (tmp_path / "asked").iterdir():
                os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns - 10**9))
        kept = approvals.pending(tmp_path, "fed_1")
        assert [request.settings["number"] for request in kept] == list(range(approvals.MAX_REQUESTS + 4, 4, -1))
        assert len(list((tmp_path / "asked").iterdir())) == approvals.MAX_REQUESTS

    def test_what_takes_too_much_room_is_not_kept(self, tmp_path: Path) -> None:
        with pytest.raises(NotUnderstood, match="is too long"):
            approvals.keep(tmp_path, make_lease(settings={"a": "x" * approvals.MAX_REQUEST_BYTES}))
        assert not (tmp_path / "asked").exists()

    @pytest.mark.parametrize("federation_id", ["../up", "a/b", "", ".", "x" * 200, "fed 1"])
    def test_what_is_no_id_names_no_file(self, tmp_path: Path, federation_id: str) -> None:
        with pytest.raises(NotUnderstood, match="cannot name a file"):
            approvals.keep(tmp_path, make_lease(federation_id=federation_id))
        with pytest.raises(NotUnderstood, match="cannot name a file"):
            approvals.pending(tmp_path, federation_id)
        assert [file for file in tmp_path.rglob("*") if file.is_file()] == []

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
    def test_a_damaged_file_asks_for_nothing(self, tmp_path: Path, content: str) -> None:
        approvals.keep(tmp_path, lease_of(CLOZE))
        (file,) = (tmp_path / "asked").iterdir()
        file.write_text(content)
        assert approvals.pending(tmp_path, "fed_1") == []

    def test_a_file_that_says_other_than_its_name_asks_for_nothing(self, tmp_path: Path) -> None:
        approvals.keep(tmp_path, lease_of(CLOZE))
        (file,) = (tmp_path / "asked").iterdir()
        file.write_text(request_of(lease_of(TEMPLATE)).model_dump_json())
        assert approvals.pending(tmp_path, "fed_1") == []


class TestApprovals:
    def test_they_add_up_and_last(self, tmp_path: Path) -> None:
        requests = [request_of(lease_of(work)) for work in (CLOZE, TEMPLATE)]
        assert approvals.approvals(tmp_path).digests == frozenset()
        for request in (*requests, requests[0]):
            approvals.approve(tmp_path, request)
        assert approvals.approvals(tmp_path).digests == {request.digest for request in requests}

    def test_ids_of_an_earlier_version_approve_nothing_and_go(self, tmp_path: Path) -> None:
        (tmp_path / "approved.json").write_text(json.dumps({"fed_1": "2026-01-01T00:00:00+00:00"}))
        assert approvals.approvals(tmp_path) == approvals.Approvals(frozenset(), ("fed_1",))
        approvals.approve(tmp_path, request_of(lease_of(CLOZE)))
        assert approvals.approvals(tmp_path).legacy_entries == ()

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_a_damaged_file_is_named(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "approved.json").write_text(content)
        with pytest.raises(ConfigurationError, match=r"approved\.json is damaged"):
            approvals.approvals(tmp_path)


class TestWords:
    @pytest.mark.parametrize("work", [CLOZE, TEMPLATE, PREFIX])
    def test_everything_that_is_approved_is_said(self, work: dict[str, Any]) -> None:
        request = request_of(lease_of(work))
        told = dict(in_words(request))
        said = " ".join(told.values())
        document = request.model_dump(mode="json")
        for path in leaves(document):
            value: Any = document
            for key in path:
                value = value[key]
            text = value if isinstance(value, str) else json.dumps(value)
            assert value in (None, [], {}) or text in said, path
        assert request.work.base_model.weights_sha256 is None
        assert told["digest"] == request.digest

    def test_the_columns_are_named(self) -> None:
        assert dict(in_words(request_of(lease_of(TEMPLATE))))["columns"] == "text, answer"

    texts = st.text(st.characters(codec="utf-8"), max_size=40)

    @hypothesis_settings(max_examples=200, deadline=None)
    @given(owner=texts, name=texts, key=texts, text=texts)
    def test_a_text_from_outside_stays_within_its_line(self, owner: str, name: str, key: str, text: str) -> None:
        lease = make_lease(owner_name=owner, federation_name=name, settings={key: [text]})
        for _, line in in_words(request_of(lease)):
            assert line.isprintable()

    @hypothesis_settings(max_examples=200, deadline=None)
    @given(first=texts, second=texts)
    def test_two_texts_are_never_said_alike(self, first: str, second: str) -> None:
        said = [dict(in_words(request_of(make_lease(owner_name=text))))["owner"] for text in (first, second)]
        assert (said[0] == said[1]) == (first == second)
