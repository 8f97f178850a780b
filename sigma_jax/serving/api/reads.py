"""Plain reads of the U2I index, answered without the parts of FastAPI that they do not need.

The route `recommendations` in routes/recommendations.py describes these calls, checks them, and
words their errors. `IndexReads` stands before it and answers the plain ones: known parameters, each
at most once, in their plain form. All others go on to the route. Both call
`ArmService.recommendations_of`, so their answers are the same. Lists of reads that come at once are
read from the store together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sigma_jax.serving.api.context import context_of, tenant_of
from sigma_jax.serving.api.models import LONGEST_ID, plain_text
from sigma_jax.serving.api.routes.recommendations import HOME, counted, of_known_list, router
from sigma_jax.serving.api.service import Filters, Read
from sigma_jax.serving.batcher import TooBusyError
from sigma_jax.serving.stores.base import StoreError

ROUTE = next(
    route for route in router.routes if getattr(route, "name", "") == "recommendations"
)  # metrics count these calls as those of the route
BEGIN, END = "/v1/users/", "/recommendations"
QUERY = re.compile(
    rb"(?:(?:count=(?P<count>[1-9]\d?|100)|task=(?P<task>[A-Za-z0-9_-]{1,64})"
    rb"|explain=(?P<explain>true|false))(?:&(?=[a-z])|$))*"
)
NAMES = (b"count=", b"task=", b"explain=")
ErrorAnswer = Callable[[Request, Exception], Any]  # an awaitable of a response


class IndexReads:
    """Answers plain reads of the index; passes everything else on."""

    def __init__(self, app: ASGIApp, on_error: ErrorAnswer):
        """Args:
        on_error: the response to an error, as routes give it.
        """
        self.app, self._on_error = app, on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        read = read_of(scope)
        if read is None:
            await self.app(scope, receive, send)
            return
        request, scope["route"] = Request(scope), ROUTE
        try:
            tenant = tenant_of(request, "read")
            answer = of_known_list(tenant, read.name, await tenant.reads.submit(read))
            answer = counted(context_of(request), tenant, answer)
            response = Response(answer.model_dump_json(), media_type="application/json")
        except (HTTPException, StoreError, TooBusyError) as error:
            response = await self._on_error(request, error)
        await response(scope, receive, send)


def read_of(scope: Scope) -> Read | None:
    """The read that a request asks for; None if it is another call, or not a plain one.

    >>> read_of({"type": "http", "method": "GET", "path": "/v1/users/ann/recommendations",
    ...          "query_string": b"count=5"}).user_id
    'ann'
    """
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    path, query = scope["path"], scope["query_string"]
    if not (path.startswith(BEGIN) and path.endswith(END)):
        return None
    user_id = path[len(BEGIN) : -len(END)]
    found = QUERY.fullmatch(query)
    is_plain = found is not None and all(query.count(name) < 2 for name in NAMES)
    if not is_plain or "/" in user_id or not 0 < len(user_id) <= LONGEST_ID:
        return None
    try:
        plain_text(user_id)
    except ValueError:
        return None
    task, count = found["task"], found["count"]
    filters = Filters(int(count or 10), explain=found["explain"] == b"true")
    return Read(user_id, task.decode() if task else HOME, filters)
