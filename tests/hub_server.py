"""A stand-in for the Hugging Face hub: folders of this machine over HTTP, what is pushed kept."""

import base64
import json
import re
from contextlib import contextmanager
from functools import partial
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

SHA = "0" * 39 + "1"
_REPO = r"(?P<repo>[^/]+/[^/]+)"


class Hub:
    """What it has, and what it was asked for.

    Attributes:
        repositories: id -> its folder.
        gated: ids that nobody may read.
        read: (id, file) of everything that was downloaded.
        pushed: id -> file -> its bytes.
    """

    def __init__(self):
        self.repositories, self.gated, self.read, self.pushed = {}, set(), [], {}


@contextmanager
def serving(monkeypatch, cache):
    """A hub that huggingface_hub asks in place of the real one, as HF_ENDPOINT makes it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    thread = Thread(target=partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub, *args):
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def answer(self, body=b"", status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(
            rf"/api/models/{_REPO}(?:/(?P<what>tree|revision)/(?P<revision>[^/]+))?"
            rf"|/(?P<of>[^/]+/[^/]+)/resolve/(?P<at>[^/]+)/(?P<file>.+)",
            path,
        )
        if found is None:
            return self.answer(status=404)
        repo = found["repo"] or found["of"]
        folder, revision = self.hub.repositories.get(repo), found["revision"] or found["at"]
        if repo in self.hub.gated:
            return self.answer(status=403, X_Error_Code="GatedRepo")
        if folder is None:
            return self.answer(status=404, X_Error_Code="RepoNotFound")
        if revision not in (None, "main", SHA):
            return self.answer(status=404, X_Error_Code="RevisionNotFound")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        if found["what"] == "tree":
            return self.answer([
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _oid(file)}
                for name, file in zip(names, files, strict=True)
            ])  # fmt: skip
        if found["file"] is None:
            siblings = [{"rfilename": name} for name in names]
            return self.answer({"id": repo, "sha": SHA, "siblings": siblings})
        if self.command == "GET":
            self.hub.read.append((repo, found["file"]))
        file = folder / found["file"]
        return self.answer(file.read_bytes(), ETag=f'"{_oid(file)}"', X_Repo_Commit=SHA)

    do_HEAD = do_GET

    def do_POST(self):
        size = self.headers.get("Content-Length")
        body = self._chunks() if size is None else self.rfile.read(int(size))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            self.hub.pushed.setdefault(name, {})
            return self.answer({"url": f"{constants.ENDPOINT}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.hub.pushed[repo][line["value"]["path"]] = content
        url = f"{constants.ENDPOINT}/{repo}/commit/{SHA}"
        return self.answer({"commitUrl": url, "commitOid": SHA, "success": True})

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def _oid(file):
    return sha1(file.read_bytes()).hexdigest()
