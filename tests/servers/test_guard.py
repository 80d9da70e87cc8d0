"""The guard before both servers: what each kind of request is answered, without any server behind it."""

import asyncio
import base64

import pytest

from clapcur.servers.guard import Guard, check_login

HOSTS = ("127.0.0.1:4200", "localhost:4200", "prefect.lan:*")
LOGIN = "clapcur:of the home"
OURS = {"host": "127.0.0.1:4200"}


def basic(login):
    return {"authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def ask(headers, *, login=None, kind="http", method="GET"):
    """Send a request through a guard; return status and headers of the answer, and whether the server saw it."""
    seen, sent = [], []

    async def app(scope, receive, send):
        seen.append(scope)
        if kind == "websocket":
            await send({"type": "websocket.accept"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame-options", b"ALLOWALL")]})
        await send({"type": "http.response.body", "body": b"in"})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": f"{kind}.connect"}

    pairs = [item for name, value in headers.items() for item in ([value] if isinstance(value, str) else value)
             for item in [(name.encode(), item.encode("latin-1"))]]  # fmt: skip
    scope = {"type": kind, "method": method, "path": "/api/flow_runs", "headers": pairs}
    asyncio.run(Guard(app, HOSTS, login)(scope, receive, send))
    return sent[0].get("status", sent[0]["type"]), dict(sent[0].get("headers", ())), bool(seen)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:4200", "localhost:4200", "LOCALHOST:4200", "prefect.lan:80", "prefect.lan"]
)
def test_our_own_names_are_answered(host):
    assert ask({"host": host})[::2] == (200, True)


@pytest.mark.parametrize(
    "host",
    ["evil.example:4200", "127.0.0.1:4201", "127.0.0.1", "", "127.0.0.1:4200.evil.example", "evil.example",
     "[::1]:4200",
     ["127.0.0.1:4200", "evil.example:4200"], "127.0.0.1:4200@evil.example", "é:4200"],
)  # fmt: skip
def test_another_name_is_not_answered(host):
    """DNS rebinding: the page's own name points to loopback, and the browser takes the answer for one of its own."""
    assert ask({"host": host})[::2] == (421, False)


def test_a_request_without_a_name_is_not_answered():
    assert ask({})[::2] == (421, False)


@pytest.mark.parametrize("host", ["127.0.0.1:4200", "localhost:4200", "prefect.lan"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_our_own_pages_may_ask(host, scheme):
    """Behind a proxy the page comes by HTTPS."""
    assert ask({"host": host, "origin": f"{scheme}://{host}"}, method="POST")[::2] == (200, True)


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "origin",
    ["http://127.0.0.1:8000", "http://localhost:4200", "https://evil.example", "null", "file://", "", "http://127.0.0.1:4200/x",
     "chrome-extension://abc", "http://127.0.0.1:4200.evil.example"],
)  # fmt: skip
def test_a_page_of_another_origin_may_not_ask(origin, kind):
    """A form or a web socket needs no permission of ours to be sent."""
    status, _, seen = ask(OURS | {"origin": origin}, kind=kind, method="POST")
    assert (status, seen) == (403 if kind == "http" else "websocket.close", False)


def test_a_request_without_an_origin_from_another_site_may_only_open_a_page():
    """An image, a script or a plain link of another page carries no Origin."""
    image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert ask(OURS | image)[::2] == (403, False)
    assert ask(OURS | image | {"sec-fetch-site": "same-site"})[::2] == (403, False)
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert ask(OURS | link)[::2] == (200, True)
    assert ask(OURS | link, method="POST")[::2] == (403, False)
    assert ask(OURS | {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"})[::2] == (200, True)
    assert ask(OURS | {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, method="POST")[::2] == (200, True)


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_the_login_is_asked_for(kind):
    status, headers, seen = ask(OURS, login=LOGIN, kind=kind)
    assert (status, seen) == (401 if kind == "http" else "websocket.close", False)
    if kind == "http":
        assert headers[b"www-authenticate"].startswith(b"Basic ")  # or a browser would not ask its user
    assert ask(OURS | basic(LOGIN), login=LOGIN, kind=kind)[2]


@pytest.mark.parametrize(
    "header",
    [basic("clapcur:other"), basic("clapcur"), basic(""), {"authorization": "Basic ???"}, {"authorization": "Basic"},
     {"authorization": f"Bearer {LOGIN}"}, {"authorization": [basic(LOGIN)["authorization"]] * 2}],
)  # fmt: skip
def test_another_login_is_refused(header):
    assert ask(OURS | header, login=LOGIN)[::2] == (401, False)


def test_every_answer_forbids_what_comes_from_elsewhere():
    """Prefect's newer page asks an analytics host; and a page that frames ours could make its user click there."""
    for headers in (OURS, {"host": "evil.example"}):
        _, found, _ = ask(headers)
        assert found[b"content-security-policy"].startswith(b"default-src 'self'")
        assert b"frame-ancestors 'self'" in found[b"content-security-policy"]
        assert found[b"x-frame-options"] == b"SAMEORIGIN"  # in place of what the server says


def test_a_guard_that_lets_everybody_in_does_not_start(monkeypatch):
    """A variable that was misspelt would leave the door open, and nothing would show it."""
    from clapcur.servers import guard

    for name in ("PREFECT_SERVER_API_AUTH_STRING", guard.LOGIN, guard.HOSTS):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="CLAPCUR_LOGIN must be user:password"):
        guard.mlflow()
    with pytest.raises(ValueError, match="must be user:password"):
        guard.prefect()
    with pytest.raises(ValueError, match="CLAPCUR_GUARD_HOSTS"):
        Guard(None, [])
    for wrong in ("", "word", "user:", ":word"):
        with pytest.raises(ValueError, match="must be user:password"):
            check_login(wrong)
