"""Limits on what comes over a connection: bodies that are too long, heads and bodies too slow."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_BODY = 8 * 2**20  # bytes
BODY_SECONDS = 30.0  # for a whole body
HEAD_SECONDS = 10.0  # from the first byte of a request, or the connection, to the end of its head
CLOSE = {"Connection": "close"}  # the rest of a refused body is not read


class BodyLimit:
    """Refuses bodies that are too long before they are read, and those that come too slowly."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, with limits on what can be received."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_long = f"the body has more than {LONGEST_BODY} bytes"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > LONGEST_BODY:
            await JSONResponse({"error": too_long, "where": "body"}, 413, CLOSE)(
                scope, receive, send
            )
            return
        received, is_whole = 0, False
        loop = asyncio.get_running_loop()
        end = loop.time() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal received, is_whole
            if is_whole:  # what comes now is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                text = f"the body did not come within {BODY_SECONDS:g} s"
                raise HTTPException(408, text, CLOSE) from None
            received += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if received > LONGEST_BODY:
                raise HTTPException(413, too_long, CLOSE)
            return message

        await self.app(scope, limited, send)


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which ends connections whose requests do not get past their head."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._end()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first bytes of a request have come."""
        if self._timer is None:
            self._begin()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head of a request has come."""
        self._end()
        super().on_headers_complete()

    def _begin(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
