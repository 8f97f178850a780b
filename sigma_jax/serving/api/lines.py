"""Bodies of JSON lines: many rows in one call."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

MOST_LINES = 10_000  # of a body
# A browser sends none of them to another website without asking that website first.
MEDIA_TYPES = ("application/x-ndjson", "application/jsonl", "application/json")
Row = TypeVar("Row", bound=BaseModel)


def described_lines(model: type[BaseModel]) -> dict[str, Any]:
    """The description of a body of JSON lines for OpenAPI, by the model of a row."""
    text = f"JSON lines: one object a line, as the schema says; 1 to {MOST_LINES:,} lines."
    schema = model.model_json_schema() | {"description": f"One line. {model.__doc__}"}
    content = {name: {"schema": schema} for name in MEDIA_TYPES}
    return {"requestBody": {"required": True, "description": text, "content": content}}


async def lines_of(request: Request, model: type[Row]) -> list[Row]:
    """The rows of a body of JSON lines.

    HTTPException 415 for another media type; 422 names the line that is wrong.
    """
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() not in MEDIA_TYPES:
        raise HTTPException(
            415, f"Content-Type is {given[:100]!r}; send JSON lines as {MEDIA_TYPES[0]}"
        )
    body = await request.body()
    lines = [line for line in body.split(b"\n") if line.strip()]
    if not 0 < len(lines) <= MOST_LINES:
        raise HTTPException(422, f"the body has {len(lines)} lines; send 1 to {MOST_LINES}")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(model.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            text = first["msg"].removeprefix("Value error, ")
            raise HTTPException(422, f"line {number}: {where} {text}"[:500]) from None
    return rows
