"""Which calls a service without keys answers, and ids with a "/" in paths.

A page of any website can let a browser call a service on the same machine. Without keys, such calls
must be told from those of the user's own programs:

- The header Host names this machine. A website whose name leads to 127.0.0.1 keeps its own name.
- A header Origin, where there is one, names this machine too.
- Sec-Fetch-Site, where there is one, is not `cross-site`. A link to the page may be followed.
"""

from __future__ import annotations

import functools
import ipaddress
import urllib.parse
from collections.abc import Collection

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

API = "/v1/"
# In a decoded path, a "/" that a path has as %2F. No UTF-8 is decoded to it.
SLASH = "\udc2f"


class LocalOnly:
    """Refuses calls of other websites, with the status 403."""

    def __init__(self, app: ASGIApp, names: Collection[str] = ()):
        """Args:
        names: of hosts that are this machine, beside localhost and loopback addresses.
        """
        self.app, self._names = app, frozenset(["localhost", *map(str.lower, names)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "http" and (why := self._refusal(scope)):
            error = {
                "error": f"{why}; a service without keys answers programs and its own page on "
                "this machine only; start it with --keys=FILE for others",
                "where": "header",
            }
            await JSONResponse(error, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str:
        """Why a request is refused; "" if it is not."""
        fetched: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name == b"host":
                if not is_local(value, self._names):
                    return f"Host: {value.decode('latin-1')[:100]} is no name of this machine"
            elif name == b"origin":
                if not is_local(value.partition(b"://")[2], self._names):
                    return f"Origin: {value.decode('latin-1')[:100]} is another website"
            elif name.startswith(b"sec-fetch-"):
                fetched[name] = value
        if fetched.get(b"sec-fetch-site") == b"cross-site" and not _follows_link(scope, fetched):
            return "Sec-Fetch-Site: cross-site is a call of another website"
        return ""


@functools.lru_cache(256)
def is_local(place: bytes, names: frozenset[str]) -> bool:
    """Whether HOST or HOST:PORT is this machine: a loopback address, or one of its names."""
    try:
        host = urllib.parse.urlsplit(b"//" + place).hostname or b""
    except ValueError:
        return False
    name = host.decode("latin-1")
    if name.rstrip(".") in names:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _follows_link(scope: Scope, fetched: dict[bytes, bytes]) -> bool:
    """Whether a browser shows a page because the user followed a link. It is no call of the API."""
    return (
        scope["method"] == "GET"
        and not scope["path"].startswith(API)
        and fetched.get(b"sec-fetch-mode") == b"navigate"
        and fetched.get(b"sec-fetch-dest") == b"document"
    )


class EncodedSlashes:
    """Keeps a %2F in the path of a route apart from the "/" between the parts of the path.

    DELETE /v1/users/a%2Fevents deletes the user "a/events", not the events of the user "a".
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        raw = scope.get("raw_path") or b""
        if b"%2" in raw and scope["path"].startswith(API):
            parts = raw.partition(b"?")[0].decode("ascii").split("/")
            decoded = (urllib.parse.unquote(part).replace("/", SLASH) for part in parts)
            scope["path"] = "/".join(decoded)
        await self.app(scope, receive, send)


def with_slashes(text: str) -> str:
    """A part of a path with its slashes."""
    return text.replace(SLASH, "/")
