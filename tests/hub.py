"""A small server that speaks the Hugging Face Hub's language, for tests."""

import base64
import hashlib
import json
import os
import re
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import unquote

from helpers.checkpoints import HUB_FILE, copies, load_checkpoint

REVISION = "0" * 40


def digest(data):
    return hashlib.sha1(data).hexdigest()


def published(checkpoint: Path) -> dict[str, bytes]:
    """The files of a model's repository: a checkpoint, and copies of what it holds."""
    model, tokenizer, metadata = load_checkpoint(checkpoint)
    parts = {"model": asdict(model.config), "metadata": metadata, "tokenizer": tokenizer.state()}
    texts = {name: text.encode() for name, text in copies(parts).items()}
    return {HUB_FILE: checkpoint.read_bytes()} | texts


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: {name: {path: bytes}}. Without a token, one may read.

    asked: the method and the path of each request, in order.
    """

    protocol_version = "HTTP/1.1"
    repositories: ClassVar[dict] = {}
    asked: ClassVar[list] = []

    def log_message(self, *_):
        pass

    def log_request(self, *_):
        self.asked.append(f"{self.command} {self.path}")

    def answer(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = {"Content-Length": len(body), "X-Repo-Commit": REVISION} | headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        parts, here = self.path.split("/"), f"http://{self.headers['Host']}"
        name = "/".join(parts[3:5])
        if not self.headers.get("Authorization"):
            self.answer(401, {"error": "no token"})
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.repositories.setdefault(name, {})
            self.answer(200, {"url": f"{here}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif parts[5] == "preupload":
            how = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"]} | how for file in json.loads(body)["files"]]
            self.answer(200, {"files": files})
        elif parts[5] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            for file in [line["value"] for line in lines if line["key"] == "file"]:
                self.repositories[name][file["path"]] = base64.b64decode(file["content"])
            place = f"{here}/{name}/commit/{REVISION}"
            self.answer(200, {"commitOid": REVISION, "commitUrl": place})
        else:
            self.answer(500, {"error": f"this server does not know {self.path}"})

    def do_GET(self):
        parts = unquote(self.path.partition("?")[0]).split("/")
        if parts[1] == "api":
            name = "/".join(parts[3:5])
            files = self.repositories.get(name)
            if files is None:
                self.answer(401, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
            elif parts[5:6] == ["tree"]:
                self.answer(200, self.tree(files, parts[7:]))
            else:
                self.answer(200, {"id": name, "sha": REVISION})
        else:
            if parts[1] == "datasets":
                del parts[1]
            content = self.repositories["/".join(parts[1:3])].get("/".join(parts[5:]))
            if content is None:
                self.answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
            else:
                self.send(content)

    def tree(self, files, folder):
        """What is in a folder, given as the parts of its path; and in those below, if asked for."""
        entries, depth = {}, len(folder)
        everything = "recursive=true" in self.path.lower()
        for name, data in files.items():
            parts = name.split("/")
            if parts[:depth] != folder:
                continue
            if everything or len(parts) == depth + 1:
                entry = {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
            else:
                name = "/".join(parts[: depth + 1])
                entry = {"type": "directory", "path": name, "size": 0, "oid": REVISION}
            entries[name] = entry
        return list(entries.values())

    def send(self, content):
        """A file, or the part of it that was asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"ETag": f'"{digest(content)}"', "Accept-Ranges": "bytes"}
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self.answer(206, content[start : end + 1], **headers)
        else:
            self.answer(200, content, **headers)

    do_HEAD = do_GET


@contextmanager
def hub_at(handler: type[Hub], home: Path):
    """Run the server. Gives an environment in which it is the Hub, and `home` holds its cache.

    Nobody is logged in.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Hub.repositories, Hub.asked = {}, []
    Thread(target=server.serve_forever, daemon=True).start()
    ours = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home)}
    theirs = ("HF_", "HUGGING")
    yield {name: value for name, value in os.environ.items() if not name.startswith(theirs)} | ours
    server.shutdown()
    server.server_close()
