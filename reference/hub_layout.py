"""Holds `gpt4roi pull` against Python's `huggingface_hub`: both pull the same model from the same hub (a small one on
the loopback interface, below), and have to leave the same cache and to find what the other has left.

    pip install huggingface_hub
    python reference/hub_layout.py target/debug/gpt4roi
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = ("model.safetensors", "vision_tower/pytorch_model.bin")
FILES = {
    "config.json": b"{}",
    "README.md": b"read me",
    "tokenizer.model": b"",
    "vision_tower/config.json": b"{}",  # the content of another file
    LARGE[0]: bytes(i * i // 7 % 256 for i in range(100_000)),
    LARGE[1]: bytes(i * i // 5 % 256 for i in range(50_000)),
}


def git(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path):
    return hashlib.sha256(FILES[path]).hexdigest() if path in LARGE else git(FILES[path])


def listing():
    siblings = []
    for path, content in FILES.items():
        sibling = {"rfilename": path, "size": len(content), "blobId": git(content)}
        if path in LARGE:
            sibling["lfs"] = {"sha256": etag(path), "size": len(content), "pointerSize": 130}
        siblings.append(sibling)
    return {"id": "org/name", "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": siblings}


def tree():
    entries = []
    for path, content in FILES.items():
        entry = {"type": "file", "path": path, "size": len(content), "oid": git(content)}
        if path in LARGE:
            entry["lfs"] = {"oid": etag(path), "size": len(content), "pointerSize": 130}
        entries.append(entry)
    return entries


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    contents_sent = 0

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in [("Content-Length", str(len(body))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/name/tree/"):
            return self.answer(200, json.dumps(tree()).encode())
        if path.startswith("/api/models/org/name"):
            return self.answer(200, json.dumps(listing()).encode())
        file = path.removeprefix("/org/name/resolve/").partition("/")[2]
        if file not in FILES:
            return self.answer(404, b"", [("X-Error-Code", "EntryNotFound")])
        if self.command == "GET":
            Hub.contents_sent += 1
        self.answer(200, FILES[file], [("ETag", f'"{etag(file)}"'), ("X-Repo-Commit", COMMIT)])

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def cache_of(home):
    """Every file and link of the shared layout, with what it holds or leads to."""
    model = Path(home, "hub", "models--org--name")
    return {
        str(path.relative_to(model)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for part in ("blobs", "refs", "snapshots")
        for path in sorted((model / part).rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def python_pull(home, **more):
    code = "import huggingface_hub as h; print(h.snapshot_download('org/name'))"
    return run([sys.executable, "-c", code], home, **more)


def rust_pull(home, **more):
    return run([os.path.abspath(sys.argv[1]), "pull", "org/name", "--all"], home, **more)


def run(command, home, **more):
    environment = {**os.environ, "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:%d" % server.server_port
    os.environ["NO_PROXY"] = "127.0.0.1"
    with tempfile.TemporaryDirectory() as python, tempfile.TemporaryDirectory() as rust:
        python_pull(python)
        rust_pull(rust)
        theirs, ours = cache_of(python), cache_of(rust)
        differing = {path for path in theirs.keys() | ours.keys() if theirs.get(path) != ours.get(path)}
        assert not differing, differing
        print(f"the same {len(ours)} files, links and references")

        sent = Hub.contents_sent
        assert python_pull(rust) == rust_pull(rust) == f"{rust}/hub/models--org--name/snapshots/{COMMIT}"
        assert python_pull(python) == rust_pull(python)
        assert Hub.contents_sent == sent, "something was downloaded twice"
        assert python_pull(rust, HF_HUB_OFFLINE="1") == rust_pull(rust, HF_HUB_OFFLINE="1")
        assert python_pull(python, HF_HUB_OFFLINE="1") == rust_pull(python, HF_HUB_OFFLINE="1")
        print("each finds what the other has left, online and offline")

        code = "import huggingface_hub as h; c = h.scan_cache_dir(); print(len(c.warnings), c.size_on_disk)"
        bytes_listed = json.loads(run([os.path.abspath(sys.argv[1]), "cache", "list", "--json"], rust))["bytes"]
        assert run([sys.executable, "-c", code], rust) == f"0 {bytes_listed}"
        print(f"both count {bytes_listed} bytes")


main()
