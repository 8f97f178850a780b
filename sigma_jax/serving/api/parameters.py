"""Query parameters that a route does not have are refused: one that is ignored misleads callers."""

from __future__ import annotations

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from sigma_jax.runtime.config import did_you_mean


def check_parameters(request: Request) -> None:
    """RequestValidationError for a query parameter that the route of a request does not have."""
    if not request.scope["query_string"]:
        return
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    known = parameters_of(route.dependant)
    for name in request.query_params:
        if name not in known:
            remedy = did_you_mean(name, known)
            if known:
                remedy = f"{remedy.rstrip('?')}? It has {', '.join(sorted(known))}."
            text = f"the route has no parameter {name[:100]!r}; {remedy}"
            raise RequestValidationError([{"loc": ("query", name[:100]), "msg": text}])


async def only_known_parameters(request: Request) -> None:
    """A dependency: `check_parameters`."""
    check_parameters(request)


def parameters_of(dependant: Dependant) -> frozenset[str]:
    """The names of the query parameters of a route and of what it depends on."""
    own = frozenset(field.alias for field in dependant.query_params)
    return own.union(*map(parameters_of, dependant.dependencies))
