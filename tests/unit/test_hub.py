"""`uniapl fetch` against a hub on this machine that serves, changes, gates or loses a file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"pickled",
    "modeling.py": b"import os",
}
LARGE = ("model.safetensors", "pytorch_model.bin")


class Hub(ThreadingHTTPServer):
    """Serves owner/model at one commit; `gated` and `changed` say what is wrong with it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.gated, self.changed, self.served = False, "", list[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """The few addresses of the hub that a download uses."""

    server: Hub

    def log_message(self, format: str, *arguments: object) -> None: ...

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self.server.gated:
            self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="restricted")
        elif not path.startswith(("/api/models/owner/model", "/owner/model")):
            self.answer(404, X_Error_Code="RepoNotFound")
        elif path.endswith("/revision/main"):
            self.answer(200, json.dumps({"id": "owner/model", "sha": COMMIT}).encode(), Content_Type="application/json")
        elif COMMIT not in path:
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif "/tree/" in path:
            self.answer(200, json.dumps([entry(name) for name in FILES]).encode(), Content_Type="application/json")
        elif path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "owner/model", "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
        else:
            name = path.rsplit("/", 1)[1]
            content = FILES[name]
            if self.command == "GET":
                self.server.served.append(name)
                content = content[::-1] if name == self.server.changed else content
            self.answer(200, content, ETag=f'"{etag(name)}"', X_Repo_Commit=COMMIT)


def etag(name: str) -> str:
    """The hash that the hub records: sha256 of a large file, git's own of a small one."""
    content = FILES[name]
    if name in LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def entry(name: str) -> dict[str, object]:
    size = len(FILES[name])
    lfs = {"lfs": {"oid": etag(name), "size": size, "pointerSize": 130}} if name in LARGE else {}
    return {"type": "file", "path": name, "oid": etag(name), "size": size} | lfs


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def fetch(cache: Path, url: str, revision: str = COMMIT, name: str = "owner/model") -> subprocess.CompletedProcess[str]:
    """The command, with that hub and an empty cache of its own."""
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    words = ["fetch", "--scale", "laptop", "--config", f"models={name}@{revision}"]
    command = [sys.executable, "-m", "uniapl.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused command says on stderr."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_a_model_is_fetched_once_without_pickled_weights_or_code(hub: Hub, tmp_path: Path) -> None:
    done = fetch(tmp_path, hub.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(hub.served) == ["config.json", "model.safetensors"]
    (folder,) = tmp_path.glob(f"hub/models--owner--model/snapshots/{COMMIT}")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert hashlib.sha256(FILES["model.safetensors"]).hexdigest()[:12] in done.stdout
    again = fetch(tmp_path, hub.url)
    assert again.returncode == 0
    assert len(hub.served) == 2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_not_the_commits_own_is_refused_and_not_kept(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.changed = name
    assert f"{name} is not the file of that commit" in error_of(fetch(tmp_path, hub.url))
    assert not list(tmp_path.glob(f"hub/**/snapshots/**/{name}"))
    hub.changed = ""
    assert fetch(tmp_path, hub.url).returncode == 0


def test_a_gated_model_names_the_page_of_its_licence(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    line = error_of(fetch(tmp_path, hub.url))
    assert f"is gated: accept its licence at {hub.url}/owner/model and set HF_TOKEN" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "owner/other"}, "no such model"),
        ({"revision": "f" * 40}, "no such commit"),
        ({"revision": "main"}, f"revision 'main' is no commit, so what it names can change; today it names {COMMIT}"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub: Hub, tmp_path: Path, options: dict[str, str], message: str) -> None:
    assert message in error_of(fetch(tmp_path, hub.url, **options))


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    line = error_of(fetch(tmp_path, "http://127.0.0.1:9"))
    assert "the hub at http://127.0.0.1:9 cannot be reached" in line
    assert "copy its cache" in line
