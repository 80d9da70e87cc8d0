"""The guard in front of Prefect's and MLflow's servers: it checks the host, origin and login of every request.

Both servers listen on loopback, where every page open in a browser and every user of the machine can reach them. The
guard applies three checks, in this order, before the server sees a request:

1. ``Host`` must be one of the server's own names; otherwise the response is 421. A page that points its own name to
   loopback (DNS rebinding) sends that name.
2. ``Origin``, if the browser sends it, must be the server's own origin; otherwise the response is 403. Another origin
   is refused even if the browser asks for no permission (no CORS preflight), as for a plain form. ``Sec-Fetch-Site``
   shows the source of a request without ``Origin``: another site may open our pages, and nothing else.
3. The request must carry the login; otherwise the response is 401. Prefect checks its login itself
   (`PREFECT_SERVER_API_AUTH_STRING`), in its API and web sockets; for MLflow the guard checks it, on every path.

Every response tells the browser to load nothing from elsewhere, and to let no other page frame ours.

Settings come from the environment, never from the command line, which every user of the machine can read:

``CLAPCUR_GUARD_HOSTS``
    Names under which the server answers, separated by commas, such as ``127.0.0.1:4200,localhost:4200``; ``:*`` matches
    any port.
``CLAPCUR_LOGIN``
    ``user:password``.

::

    python -m uvicorn --factory clapcur.servers.guard:prefect
    mlflow server --app-name clapcur            # an entry point of the group mlflow.app
"""

import base64
import binascii
import hmac
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from fnmatch import fnmatchcase
from typing import Any

HOSTS, LOGIN = "CLAPCUR_GUARD_HOSTS", "CLAPCUR_LOGIN"
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)  # the pages of both servers run generated scripts and workers, and show files of runs in frames
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
SITES = (b"same-origin", b"none")  # allowed sources of a request: our own page, or the user

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware around a whole server, including its web sockets.

    Parameters
    ----------
    app : ASGI application
    hosts : iterable of str
        ``name:port`` under which the server answers; ``name:*`` for any port.
    login : str, optional
        ``user:password`` that each request must carry; None: the server checks logins itself.

    Raises
    ------
    ValueError
        `hosts` is empty, or `login` lacks a user or a password.
    """

    def __init__(self, app: App, hosts: Iterable[str], login: str | None = None) -> None:
        self._app, self._hosts = app, tuple(hosts)
        if not self._hosts:
            raise ValueError(f"a guarded server needs its allowed host names: set {HOSTS}")
        if login is not None:
            check_login(login)
        self._login = login

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse one connection, or pass it to the server."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await _refuse(scope, receive, send, *refusal)
        else:
            await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Return the status and text with which a request is refused; None if the server may see it."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or not self.is_ours(hosts[0].decode("latin-1")):
            return 421, "unknown host name"
        for origin in headers.get(b"origin", []):
            if not _is_of(origin.decode("latin-1"), hosts[0].decode("latin-1")):
                return 403, "a page of another origin may not ask this server"
        site, mode = headers.get(b"sec-fetch-site", []), headers.get(b"sec-fetch-mode", [])
        opens_a_page = mode == [b"navigate"] and scope.get("method") == "GET"
        if any(one not in SITES for one in site) and not opens_a_page:
            return 403, "a page of another origin may not ask this server"
        if self._login is not None and not _carries(headers.get(b"authorization", []), self._login):
            return 401, "login required: `clapcur up` prints the user name and the password"
        return None

    def is_ours(self, host: str) -> bool:
        """Return whether a ``Host`` header names this server."""
        host = host.lower()
        return any(fnmatchcase(host if ":" in host else f"{host}:80", pattern) for pattern in self._hosts)


def _is_of(origin: str, host: str) -> bool:
    """Return whether an ``Origin`` belongs to this ``Host``, by HTTP or, behind a proxy, by HTTPS."""
    return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


def check_login(login: str) -> str:
    """Return a login unchanged; raise ValueError unless it is ``user:password``."""
    user, separator, password = login.partition(":")
    if not (user and separator and password):
        raise ValueError(f"{LOGIN} must be user:password, got one without {'a user' if separator else 'a colon'}")
    return login


def _carries(headers: list[bytes], login: str) -> bool:
    scheme, _, given = headers[0].partition(b" ") if len(headers) == 1 else (b"", b"", b"")
    if scheme.lower() != b"basic":
        return False
    try:
        return hmac.compare_digest(base64.b64decode(given.strip(), validate=True), login.encode())
    except binascii.Error:
        return False


async def _refuse(scope: Message, receive: Receive, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": text})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="clapcur", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


def _with_headers(send: Send) -> Send:
    ours = {name for name, _ in HEADERS}

    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [item for item in message.get("headers", ()) if item[0].lower() not in ours]
            message = {**message, "headers": [*kept, *HEADERS]}
        await send(message)

    return send_on


def hosts_from_environment() -> list[str]:
    """Return the names under which this process's server answers."""
    return [host.strip().lower() for host in os.environ.get(HOSTS, "").split(",") if host.strip()]


def prefect() -> App:
    """Return Prefect's server behind the guard.

    Raises
    ------
    ValueError
        No login or no host is set.
    """
    check_login(os.environ.get("PREFECT_SERVER_API_AUTH_STRING", ""))
    from prefect.server.api.server import create_app

    return Guard(create_app(final=True), hosts_from_environment())


def mlflow() -> App:
    """Return MLflow's server behind the guard.

    Raises
    ------
    ValueError
        No login or no host is set.
    """
    login = check_login(os.environ.get(LOGIN, ""))
    from mlflow.server.fastapi_app import app

    return Guard(app, hosts_from_environment(), login)
