"""Who gets in while `clapcur up` runs: pages of other origins, other names, other users; and what our pages ask for."""

import base64
import http.server
import json
import stat
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

import pytest
from browser import chromium
from running_servers import running, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ALLOWED_OPEN = {"/api/health", "/api/ready"}  # that a server lives is no secret
# A web page that does all it can: each way of sending a request that browsers know, to the address of one of our pages.
ATTACK = """
async (base, path, body) => {
  const text = JSON.stringify(body), tried = [];
  for (const type of ["application/json", "text/plain", "application/x-www-form-urlencoded"])
    for (const mode of ["cors", "no-cors"])
      try {
        const options = {method: "POST", mode, credentials: "include", headers: {"Content-Type": type}, body: text};
        const answer = await fetch(base + path, options);
        tried.push(mode + " " + answer.type + " " + answer.status);
      } catch (error) { tried.push(mode + " refused"); }
  navigator.sendBeacon(base + path, new Blob([text], {type: "text/plain"}));
  const [form, field, frame] = ["form", "input", "iframe"].map(name => document.createElement(name));
  frame.name = "sink"; document.body.append(frame);
  form.method = "POST"; form.action = base + path; form.enctype = "text/plain"; form.target = "sink";
  field.name = text.slice(0, -1) + ', "x": "'; field.value = '"}'; form.append(field); document.body.append(form);
  form.submit();
  await new Promise(done => { frame.addEventListener("load", done); setTimeout(done, 3000); });
  const socket = new WebSocket(base.replace("http", "ws") + "/api/events/in");
  const opened = new Promise((yes, no) => { socket.onopen = yes; socket.onerror = no; });
  tried.push("socket " + await opened.then(() => "open", () => "refused"));
  return tried;
}
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """Start the servers on a new home; gives the home."""
    from clapcur.store.home import Home

    home = Home.open(tmp_path_factory.mktemp("door") / "home")
    with running(tmp_path_factory.mktemp("folder"), home):
        yield home


@pytest.fixture(scope="module")
def prefect(up):
    """Give Prefect's address without ``/api``, and a client that has the login."""
    return up.servers()["PREFECT_API_URL"].removesuffix("/api")


@pytest.fixture(scope="module")
def mlflow(up):
    return up.servers()["MLFLOW_TRACKING_URI"]


def ask(url, body=None, login=None, **headers):
    """Return status and JSON of an answer."""
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text
    except urllib.error.HTTPError as error:
        return error.code, None


def state_of(prefect, mlflow, home):
    """Return what an intruder could have made; the runs that Prefect's scheduler adds meanwhile do not count."""
    runs = [ask(f"{prefect}/api/{kind}/count", {}, home.login)[1] for kind in ("deployments", "flows")]
    found = ask(f"{prefect}/api/flow_runs/filter", {}, home.login)[1]
    runs.append([run["id"] for run in found if "auto-scheduled" not in run["tags"]])
    found = ask(f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=100", login=home.login)[1]
    return runs, sorted(experiment["name"] for experiment in found["experiments"])


def aims(prefect, mlflow, home):
    """Return the requests that an intruder would like to make: server, path and body."""
    deployment = ask(f"{prefect}/api/deployments/name/reconcile/reconcile", login=home.login)[1]["id"]
    command = {"job_variables": {"command": "touch /tmp/intruder"}}
    return [
        (prefect, f"/api/deployments/{deployment}/create_flow_run", command),
        (prefect, "/api/flows/", {"name": "intruder"}),
        (mlflow, "/api/2.0/mlflow/experiments/create", {"name": "intruder"}),
    ]


@contextmanager
def other_page(folder):
    """Serve a page of another origin on this machine; gives its address."""
    (folder / "index.html").write_text("<!doctype html><title>elsewhere</title>")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_page_of_another_origin_starts_nothing(up, prefect, mlflow, tmp_path):
    """It took one second from opening the page to a command of its choice on this machine."""
    before = state_of(prefect, mlflow, up)
    with other_page(tmp_path) as page, chromium() as browser:
        browser.open(page)
        for base, path, body in aims(prefect, mlflow, up):
            tried = browser.run(f"({ATTACK})({json.dumps(base)}, {json.dumps(path)}, {json.dumps(body)})")
            assert tried.count("cors refused") == 3, tried  # no answer can be read
            assert tried[-1] == "socket refused"
    assert state_of(prefect, mlflow, up) == before


def test_a_page_under_another_name_starts_nothing(up, prefect, mlflow):
    """DNS rebinding: the page's own name points to loopback, so that the browser sees one origin."""
    before = state_of(prefect, mlflow, up)
    with chromium("--host-resolver-rules=MAP evil.example 127.0.0.1") as browser:
        for base, path, body in aims(prefect, mlflow, up):
            there = f"http://evil.example:{urlsplit(base).port}"
            browser.open(f"{there}/")
            assert "unknown host name" in browser.run("document.body.innerText")
            tried = browser.run(f"({ATTACK})({json.dumps(there)}, {json.dumps(path)}, {json.dumps(body)})")
            assert all(one.endswith((" 421", " refused")) for one in tried), tried
    assert state_of(prefect, mlflow, up) == before


def test_another_user_of_this_machine_without_the_login_gets_nothing(up, prefect, mlflow):
    """Loopback is open to all users of a machine, the home is not."""
    before = state_of(prefect, mlflow, up)
    for base, path, body in aims(prefect, mlflow, up):
        assert ask(base + path, body)[0] == 401
        assert ask(base + path, body, login="clapcur:guessed")[0] == 401
    paths = ask(f"{prefect}/openapi.json", login=up.login)[1]["paths"]
    assert len(paths) > 100
    open_ones = [
        path for path, verbs in paths.items() if "get" in verbs and "{" not in path and ask(prefect + path)[0] < 400
    ]
    assert set(open_ones) <= ALLOWED_OPEN
    assert ask(f"{mlflow}/")[0] == ask(f"{mlflow}/health")[0] == 401
    for name in ("login", "servers.json"):
        assert stat.S_IMODE((up.root / name).stat().st_mode) == 0o600
    assert state_of(prefect, mlflow, up) == before


def test_not_even_the_login_brings_a_command_environment_or_folder_of_its_own(up, prefect, tmp_path):
    """A flow run's job variables were executed by the worker as they came."""
    proof = tmp_path / "intruder"
    deployment = ask(f"{prefect}/api/deployments/name/reconcile/reconcile", login=up.login)[1]
    assert not deployment["job_variables"]
    pool = ask(f"{prefect}/api/work_pools/cpu", login=up.login)[1]
    assert "{{" not in json.dumps(pool["base_job_template"])
    made = []
    for wish in (
        {"command": f"touch {proof}"},
        {"env": {"PYTHONSTARTUP": str(proof), "LD_PRELOAD": str(proof)}},
        {"env.LD_PRELOAD": str(proof)},
        {"working_dir": str(tmp_path)},
    ):
        status, run = ask(
            f"{prefect}/api/deployments/{deployment['id']}/create_flow_run", {"job_variables": wish}, up.login
        )
        assert status in (201, 404, 409, 422)
        made += [run["id"]] if status == 201 else []
    for run in made:
        ended = wait_until(lambda run=run: final_state(prefect, up, run), 120, "the end of the run")
        assert ended == "COMPLETED"  # as any other: the wish was not heard
    assert not proof.exists()


def final_state(prefect, home, run):
    state = ask(f"{prefect}/api/flow_runs/{run}", login=home.login)[1]["state"]["type"]
    return state if state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def test_our_own_pages_open_with_the_login_and_ask_nobody_else(up, prefect, mlflow):
    """Prefect's newer page asks an analytics host; a lock that locks out the owner gets taken off."""
    user, _, password = up.login.partition(":")
    with chromium() as browser:
        browser.open(f"{prefect}/")
        browser.wait("document.querySelector('input[type=password]')")
        browser.run("document.querySelector('input[type=password]').focus()")
        browser.call("Input.insertText", text=up.login)
        browser.press("Enter")
        browser.wait("/Flow Runs/.test(document.body.innerText) && !document.querySelector('input[type=password]')")
        browser.run(f"location.href = {json.dumps(prefect + '/deployments')}")
        browser.wait("/reconcile/.test(document.body.innerText)")
        asked = browser.requested()

        # what a user types into the browser's own box; from then on the browser sends it by itself
        browser.open(mlflow.replace("//", f"//{user}:{password}@") + "/health")
        browser.open(f"{mlflow}/#/experiments")
        browser.wait("/Experiments/.test(document.body.innerText) && /Default/.test(document.body.innerText)")
        asked += browser.requested()
    ours = {urlsplit(prefect).netloc, urlsplit(mlflow).netloc}
    foreign = {one for one in asked if urlsplit(one).scheme in ("http", "https", "ws", "wss")
               and urlsplit(one).netloc.rpartition("@")[2] not in ours}  # fmt: skip
    assert foreign == set()
    assert len(asked) > 20
