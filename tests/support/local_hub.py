"""A model hub on this machine, for tests: one repository, and the refusals of the real hub.

Not a test. `huggingface_hub` talks to it when HF_ENDPOINT says so; it answers the few questions
that a download asks.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "fp16", COMMIT)


class _Handler(BaseHTTPRequestHandler):
    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _refuse(self, status: int, code: str, text: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", text)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        words = self.path.partition("?")[0].strip("/").split("/")
        if words[0] == "api":
            owner, name, rest = words[2], words[3], words[4:]
        else:
            owner, name, rest = words[0], words[1], words[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        if name == "gated":
            return self._refuse(403, "GatedRepo", "Access to model owner/gated is restricted.")
        if name != "model":
            return self._refuse(404, "RepoNotFound", "Repository not found")
        if revision not in REVISIONS:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if words[0] == "api" and rest[:1] == ["tree"]:
            listed = [
                {
                    "type": "file",
                    "path": file,
                    "size": len(body),
                    "oid": hashlib.sha1(body).hexdigest(),
                }
                for file, body in self.files.items()
            ]
            return self._send(json.dumps(listed).encode(), Content_Type="application/json")
        if words[0] == "api":
            siblings = [{"rfilename": file} for file in self.files]
            about = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}
            return self._send(json.dumps(about).encode(), Content_Type="application/json")
        file = "/".join(rest[2:])
        if file not in self.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        body = self.files[file]
        if self.command == "GET":
            self.asked.append(file)
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        return self._send(body, ETag=tag, X_Repo_Commit=COMMIT)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub whose `owner/model` is `folder`, and the files asked of it so far."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"files": files, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
