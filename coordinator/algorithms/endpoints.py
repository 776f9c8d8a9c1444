"""HTTP endpoints of the installed algorithms, computed from the registry."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter

from coordinator.algorithms.schemas import AlgorithmResponse
from coordinator.auth.principals import AnyPrincipal
from coordinator.errors import NotFound
from coordinator.web.body_limits import PathName
from coordinator.web.pagination import Listing, Paging
from coordinator.web.problem_details import problem_responses
from coordinator.web.routes import Route
from federated import registry

router = APIRouter(prefix="/v1/algorithms", tags=["algorithms"], route_class=Route)


@router.get("", operation_id="list_algorithms", responses=problem_responses(400))
def list_algorithms(principal: AnyPrincipal, page: Paging) -> Listing[AlgorithmResponse]:
    """List the algorithms with the JSON Schemas of their configs."""
    names = page.of(list(registry.algorithms()), str)
    return Listing(items=[_response(name) for name in names.rows], next_cursor=names.next_cursor)


@router.get("/{name}", operation_id="show_algorithm", responses=problem_responses(404))
def show_algorithm(name: PathName, principal: AnyPrincipal) -> AlgorithmResponse:
    """Show an algorithm with the JSON Schema of its config."""
    if name not in registry.algorithms():
        names = ", ".join(registry.algorithms())
        raise NotFound("algorithm_unknown", f"There is no algorithm {name!r} here; there are: {names}.")
    return _response(name)


@cache
def _response(name: str) -> AlgorithmResponse:
    algorithm = registry.algorithm(name)
    return AlgorithmResponse(
        name=name,
        title=algorithm.title,
        revision=algorithm.revision,
        summary=_summary(name),
        trainables=sorted(algorithm.trainables),
        personal=algorithm.personal,
        config_schema=algorithm.config.model_json_schema(),
    )


def _summary(name: str) -> str:
    """The first paragraph, without headings, of the algorithm's README."""
    text = files("federated.algorithms").joinpath(name, "README.md").read_text(encoding="utf-8")
    paragraphs = (part.strip() for part in text.split("\n\n"))
    return next((" ".join(part.split()) for part in paragraphs if part and not part.startswith("#")), "")
