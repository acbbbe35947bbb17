"""Who may ask, and how much at once."""

import hmac
from collections.abc import Callable

from fastapi import HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BEARER = HTTPBearer(auto_error=False, description="the server's REGRAFT_TOKEN")


class Limited:
    """A body of more bytes is refused before it is read to its end, whatever length it claims."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._most:
                raise HTTPException(413, f"a request has {self._most:,} bytes at most: send fewer rows")
            return message

        await self._app(scope, counted if scope["type"] == "http" else receive, send)


def demand(token: str) -> Callable[..., object]:
    """A dependency that lets those pass who bear `token`; everybody where there is none."""

    async def check(request: Request) -> None:
        if not token:
            return
        borne: HTTPAuthorizationCredentials | None = await BEARER(request)
        said = borne.credentials.encode() if borne else b""
        if not hmac.compare_digest(said, token.encode()):
            raise HTTPException(
                401, "this server wants a token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"}
            )

    return check
