"""A stand-in for the Hugging Face Hub on this machine: repositories in memory, by the parts of its API that we use."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN, READ_ONLY = "hf_writes", "hf_reads"


class Hub(ThreadingHTTPServer):
    """Holds repositories: by name, the files of the newest commit, whether it is private, and its commits."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: dict[str, list[str]] = {}
        self.fails_commit = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, name: str) -> str:
        return hashlib.sha1(f"{name} {self.commits[name]}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _say(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, why: str, code: str = "") -> None:
        self._say(status, {"error": why}, X_Error_Message=why, **({"X_Error_Code": code} if code else {}))

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":
            return self._say(200, {"errors": [], "warnings": []})
        if self.token not in (TOKEN, READ_ONLY):
            return self._refuse(401, "Invalid username or password.")
        if self.token == READ_ONLY:
            return self._refuse(403, "Forbidden: you must use a write token")
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main.*", self.path)
        if match is None or match[1] not in self.server.files:
            return self._refuse(404, "Repository not found", "RepoNotFound")
        if match[2] == "preupload":
            asked = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            return self._say(200, {"files": modes})
        return self._commit(match[1], [json.loads(line) for line in body.splitlines()])

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server.files:
            return self._say(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        self.server.files[name], self.server.commits[name] = {}, ["initial commit"]
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        self._say(200, {"url": f"{self.server.url}/{name}"})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        if self.server.fails_commit:
            return self._refuse(400, "the disk of the Hub is full")
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits[name].append(value["summary"])
            elif line["key"] == "file":
                self.server.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                self.server.files[name].pop(value["path"], None)
        sha = self.server.sha(name)
        self._say(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        match = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(?:/(resolve|tree|revision)/([^/]+))?(?:/(.+))?", path)
        name = match[1] if match else ""
        if name not in self.server.files or (name in self.server.private and self.token != TOKEN):
            return self._refuse(401 if not self.token else 404, "Repository not found", "RepoNotFound")
        assert match is not None
        files, sha = self.server.files[name], self.server.sha(name)
        if match[2] == "resolve":
            if match[4] not in files:
                return self._refuse(404, "Entry not found", "EntryNotFound")
            etag = hashlib.sha1(files[match[4]]).hexdigest()
            return self._say(200, files[match[4]], ETag=f'"{etag}"', X_Repo_Commit=sha)
        if match[2] == "tree":
            listed = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in sorted(files.items())
            ]
            return self._say(200, listed)
        self._say(200, {"id": name, "sha": sha, "siblings": [{"rfilename": file} for file in files], "private": False})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run the stand-in while the block lasts."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
