"""Descriptions of models that are too large for any coordinator: they are refused when they are submitted."""

from typing import Any

import psutil
import pytest

from tests.coordinator.clients import scene
from tests.coordinator.jobs.job_rig import DIGEST, Site
from tests.support.service import problem

GIB = 1024**3


def tensor(shape: list[int], name: str = "a.lora_A.weight", dtype: str = "F32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": dtype, "initialisation": {"kind": "zeros", "scale": 0}}


def description(tensors: list[dict[str, Any]], **model: Any) -> dict[str, Any]:
    facts = {
        "model_type": "bert", "task_type": "SEQ_CLS", "tensors": tensors, "layers": 1, "hidden": 4, "kv_width": 4,
        "weights_digest": DIGEST, **model,
    }  # fmt: skip
    return {"description": {"model": facts, "examples": 12, "evaluation_examples": 3}}


def refused(site: Site, body: dict[str, Any], code: str) -> list[str]:
    """The pointers of a refusal, after which everything is as before."""
    job_id = site.rig.leased("describe")
    before = scene.everything()
    told = problem(site.call(job_id, "submit", **body), 422, code)
    assert scene.everything() == before
    return [error["pointer"] for error in told["errors"]]


class TestDescribedShapes:
    @pytest.mark.parametrize(
        ("tensors", "code", "pointer"),
        [
            ([tensor([300_000_000])], "model_too_large", "tensors/0/shape"),
            ([tensor([60_000_000], f"a.b{index}") for index in range(9)], "model_too_large", "tensors/4/shape"),
            ([tensor([2**31 - 1] * 8)], "model_too_large", "tensors/0/shape"),
            ([tensor([GIB // 8 + 1], dtype="F64")], "model_too_large", "tensors/0/shape"),
            ([tensor([2**62, 4])], "request_invalid", "tensors/0/shape/0"),
            ([tensor([2**70])], "request_invalid", "tensors/0/shape/0"),
            ([tensor([-5, 7])], "request_invalid", "tensors/0/shape/0"),
            ([tensor([4, -1])], "request_invalid", "tensors/0/shape/1"),
        ],
    )
    def test_a_state_that_is_too_large_is_refused(
        self, site: Site, tensors: list[dict[str, Any]], code: str, pointer: str
    ) -> None:
        resident = psutil.Process().memory_info().rss
        assert refused(site, description(tensors), code) == [f"/description/model/{pointer}"]
        assert psutil.Process().memory_info().rss - resident < 64 * 1024**2

    def test_what_is_seeded_counts(self, site: Site) -> None:
        body = description([tensor([GIB // 8])], seeded=[tensor([GIB // 8 + 1], "pooler.weight")])
        assert refused(site, body, "model_too_large") == ["/description/model/seeded/0/shape"]

    def test_a_state_as_large_as_is_allowed_is_taken(self, site: Site) -> None:
        job_id = site.rig.leased("describe")
        body = description([tensor([GIB // 8])], seeded=[tensor([GIB // 8], "pooler.weight"), tensor([0], "empty")])
        assert site.call(job_id, "submit", **body).json()["state"] == "submitted"

    @pytest.mark.parametrize(
        ("facts", "pointer"),
        [
            ({"tensors": [tensor([1] * 9)]}, "tensors/0/shape"),
            ({"tensors": [tensor([1], dtype="F" * 17)]}, "tensors/0/dtype"),
            ({"layers": -1}, "layers"),
            ({"layers": 10**6}, "layers"),
            ({"hidden": 2**31}, "hidden"),
            ({"kv_width": -(2**70)}, "kv_width"),
            ({"kv_heads": 2**40}, "kv_heads"),
            ({"model_type": "b" * 129}, "model_type"),
        ],
    )
    def test_a_number_or_a_text_beyond_its_bound_is_refused(
        self, site: Site, facts: dict[str, Any], pointer: str
    ) -> None:
        job_id = site.rig.leased("describe")
        body = description(**({"tensors": []} | facts))
        errors = problem(site.call(job_id, "submit", **body), 422, "request_invalid")["errors"]
        assert [error["pointer"] for error in errors] == [f"/description/model/{pointer}"]

    def test_a_million_tensors_are_refused_unread(self, site: Site) -> None:
        job_id = site.rig.leased("describe")
        many = [tensor([1], f"a.b{index}") for index in range(10_000)] * 100
        problem(site.call(job_id, "submit", **description(many)), 413, "body_too_large")

    def test_a_body_full_of_empty_tensors_is_refused(self, site: Site) -> None:
        job_id = site.rig.leased("describe")
        told = problem(site.call(job_id, "submit", **description([{}] * 200_000)), 422, "request_invalid")
        assert [error["pointer"] for error in told["errors"]] == [""]
