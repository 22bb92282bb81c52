"""Guards before every page: the token, the host, the origin, the size of what is sent."""

import secrets
from collections.abc import Iterable
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MB = 2**20
LARGEST = 64 * MB  # bytes of one request; photos are sent one by one
LOCAL = ("127.0.0.1", "localhost", "[::1]")
_SAFE = ("GET", "HEAD")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# A report holds its own scripts and styles. Without an origin it can ask this server for nothing.
SANDBOX = (
    "sandbox allow-scripts allow-popups; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with "no-referrer" a form's Origin would be "null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


_TOO_LARGE = f"More than {LARGEST // MB} MB in one request. Send photos one by one, smaller ones."


class Guard:
    """An ASGI application that lets through to `app` only what comes from the person at the page.

    token: the secret of the printed address. It is taken once from `?token=`, then from a cookie
      that scripts cannot read and other sites do not send.
    hosts: names that this server may be called by; another one is a rebound DNS entry.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: Iterable[str] = LOCAL) -> None:
        self.app, self.token = app, token
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers by itself what is refused."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope)
        refusal = self._refusal(request)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        await self._answered(scope, receive, _with_headers(send))

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > LARGEST:
                raise HTTPException(413, _TOO_LARGE)
            return message

        await self.app(scope, counted, send)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to what is not let through; a redirection where the token is given."""
        host = request.headers.get("host", "")
        if _name(host) not in self.hosts:
            return PlainTextResponse(
                f"Host {host!r} is not this server's name. Open the address that it printed.\n", 400
            )
        given = request.query_params.get("token")
        if given is not None and request.method in _SAFE:
            return self._admitted(request) if self._is(given) else _unknown()
        if not self._is(request.cookies.get(self._cookie(request), "")):
            return _unknown()
        if request.method not in _SAFE:
            origin = urlsplit(request.headers.get("origin", "")).netloc
            if origin.lower() != host.lower():
                return PlainTextResponse(
                    "This request comes from another page (its Origin is not this server).\n", 403
                )
        length = request.headers.get("content-length", "0")
        return _too_large() if not length.isdigit() or int(length) > LARGEST else None

    def _is(self, word: str) -> bool:
        return secrets.compare_digest(word.encode(), self.token.encode())

    def _cookie(self, request: Request) -> str:
        """The cookie's name: two studios of one host differ in their ports, cookies do not."""
        return f"studio_{(request.scope.get('server') or ('', 0))[1]}"

    def _admitted(self, request: Request) -> Response:
        rest = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
        path = "/" + request.scope["path"].lstrip("/")  # "//host" would lead elsewhere
        query = f"?{urlencode(rest)}" if rest else ""
        answer = RedirectResponse(path + query, status_code=303)
        answer.set_cookie(self._cookie(request), self.token, httponly=True, samesite="strict")
        return answer


def _name(host: str) -> str:
    """The host without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _unknown() -> Response:
    return PlainTextResponse(
        "This page wants its token. Open the address that the studio printed when it started; it "
        "ends in ?token=….\n",
        401,
    )


def _too_large() -> Response:
    return PlainTextResponse(f"{_TOO_LARGE}\n", 413)


def _with_headers(send: Send) -> Send:
    """Adds the headers that every answer has, unless it has its own."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sent
