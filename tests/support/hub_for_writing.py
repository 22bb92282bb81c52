"""A model hub on this machine that takes commits, for tests, and the refusals of the real hub.

Not a test. It answers what `HfApi.whoami`, `model_info`, `create_repo` and `create_commit` ask, as
the hub's public API documents it; files are sent in the commit itself ("regular").
"""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKENS = {"hf_write": "write", "hf_read": "read"}


class Hub:
    """What the hub holds: files and visibility by repository, and the commits' messages."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.broken = False  # refuses every commit
        self.address = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, text: str, code: str = "") -> None:
        headers = {"X_Error_Message": text} | ({"X_Error_Code": code} if code else {})
        self._answer({"error": text}, status, **headers)

    @property
    def _role(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        if self._role is None:
            return self._refuse(401, "Invalid credentials in Authorization header")
        if self.path == "/api/whoami-v2":
            token = {"displayName": "test", "role": self._role}
            who = {"type": "user", "name": "anna", "orgs": [{"name": "lab"}]}
            return self._answer(who | {"auth": {"type": "access_token", "accessToken": token}})
        name = self.path.partition("?")[0].removeprefix("/api/models/")
        if name not in self.hub.files:
            return self._refuse(404, "Repository not found", "RepoNotFound")
        siblings = [{"rfilename": file} for file in self.hub.files[name]]
        about = {"id": name, "sha": COMMIT, "siblings": siblings}
        return self._answer(about | {"private": self.hub.private[name]})

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self._role != "write":
            return self._refuse(403, "Forbidden: you must use a token that may write.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.files:
                return self._answer({"url": f"{self.hub.address}/{name}"}, 409)
            self.hub.files[name] = {}
            self.hub.private[name] = asked.get("visibility") == "private"
            return self._answer({"url": f"{self.hub.address}/{name}"})
        owner, name, kind = path.removeprefix("/api/models/").split("/")[:3]
        if kind == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if self.hub.broken:
            return self._refuse(403, "Private repository storage limit reached.")
        for line in body.splitlines():
            each = json.loads(line)
            if each["key"] == "header":
                self.hub.messages.append(each["value"]["summary"])
            elif each["key"] == "file":
                content = base64.b64decode(each["value"]["content"])
                self.hub.files[f"{owner}/{name}"][each["value"]["path"]] = content
        made = {"commitUrl": f"{self.hub.address}/{owner}/{name}/commit/{COMMIT}"}
        return self._answer(made | {"commitOid": COMMIT})


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub at its `address`, empty at first."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
