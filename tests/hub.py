"""A small server that speaks the Hugging Face Hub's language, for tests."""

import base64
import hashlib
import json
import os
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import unquote

REVISION = "0" * 40


def digest(data):
    return hashlib.sha1(data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: {name: {path: bytes}}. Who has no token may read."""

    protocol_version = "HTTP/1.1"
    repositories: ClassVar[dict] = {}

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": len(body),
            "X-Repo-Commit": REVISION,
            **headers,
        }.items():
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
            files = [
                {"path": file["path"], "uploadMode": "regular"}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": [file | {"shouldIgnore": False} for file in files]})
        elif parts[5] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.repositories[name] |= {
                file["path"]: base64.b64decode(file["content"]) for file in files
            }
            self.answer(
                200, {"commitOid": REVISION, "commitUrl": f"{here}/{name}/commit/{REVISION}"}
            )
        else:
            self.answer(500, {"error": f"this server does not know {self.path}"})

    def do_GET(self):
        parts = unquote(self.path.partition("?")[0]).split("/")
        if parts[1] == "api":
            files = self.repositories.get("/".join(parts[3:5]))
            if files is None:
                self.answer(401, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
            else:
                listed = parts[5:6] == ["tree"]
                self.answer(
                    200,
                    self.tree(files, parts[7:])
                    if listed
                    else {"id": "/".join(parts[3:5]), "sha": REVISION},
                )
        else:
            if parts[1] == "datasets":
                del parts[1]
            content = self.repositories["/".join(parts[1:3])].get("/".join(parts[5:]))
            if content is None:
                self.answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
            else:
                self.send(content)

    def tree(self, files, folder):
        """What is in a folder, given as the parts of its path; that of its folders too, where it
        was asked for.
        """
        entries, depth = {}, len(folder)
        for name, data in files.items():
            parts = name.split("/")
            if parts[:depth] == folder and (
                "recursive=true" in self.path.lower() or len(parts) == depth + 1
            ):
                entries[name] = {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": digest(data),
                }
            elif parts[:depth] == folder:
                inner = "/".join(parts[: depth + 1])
                entries[inner] = {"type": "directory", "path": inner, "size": 0, "oid": REVISION}
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
    """Run the server. Gives an environment in which it is the Hub, `home` its cache, and nobody is
    logged in.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Hub.repositories = {}
    Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    yield environment | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(home),
    }
    server.shutdown()
    server.server_close()
