"""HTTP endpoints of the installed algorithms, computed from the registry."""

from functools import cache

from fastapi import APIRouter

from coordinator.algorithms.schemas import AlgorithmListing, AlgorithmResponse, UnavailableAlgorithm
from coordinator.auth.principals import AnyPrincipal
from coordinator.errors import NotFound
from coordinator.web.body_limits import PathName
from coordinator.web.pagination import Paging
from coordinator.web.problem_details import problem_responses
from coordinator.web.routes import Route
from federated import registry

router = APIRouter(prefix="/v1/algorithms", tags=["algorithms"], route_class=Route)


@router.get("", operation_id="list_algorithms", responses=problem_responses(400))
def list_algorithms(principal: AnyPrincipal, page: Paging) -> AlgorithmListing:
    """List the algorithms with the JSON Schemas of their configs, and those that are installed but unusable."""
    names = page.of(list(registry.algorithms()), str)
    unavailable = [
        UnavailableAlgorithm(name=entry.name, distribution=entry.distribution, reason=entry.reason)
        for entry in registry.unavailable_algorithms()
    ]
    return AlgorithmListing(
        items=[_response(name) for name in names.rows], next_cursor=names.next_cursor, unavailable=unavailable
    )


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
        distribution=registry.distribution_of(name),
        config_schema=algorithm.config.model_json_schema(),
    )


def _summary(name: str) -> str:
    """The first paragraph, without headings, of the algorithm's README."""
    paragraphs = (part.strip() for part in registry.readme_of(name).split("\n\n"))
    return next((" ".join(part.split()) for part in paragraphs if part and not part.startswith("#")), "")
