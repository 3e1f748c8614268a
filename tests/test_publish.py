"""A trained model goes to the Hub and comes back: against a small server that speaks the Hub's language."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": REVISION, **headers}.items():
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
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.answer(200, {"files": [file | {"shouldIgnore": False} for file in files]})
        elif parts[5] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.repositories[name] |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            self.answer(200, {"commitOid": REVISION, "commitUrl": f"{here}/{name}/commit/{REVISION}"})
        else:
            self.answer(500, {"error": f"this server does not know {self.path}"})

    def do_GET(self):
        parts = unquote(self.path.partition("?")[0]).split("/")
        if parts[1] == "api":
            files = self.repositories.get("/".join(parts[3:5]))
            if files is None:
                self.answer(401, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
            else:
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                    for name, data in files.items()
                ]
                self.answer(200, tree if parts[5:6] == ["tree"] else {"id": "/".join(parts[3:5]), "sha": REVISION})
        else:
            content = self.repositories["/".join(parts[1:3])]["/".join(parts[5:])]
            self.answer(200, content, ETag=f'"{digest(content)}"')

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path):
    """Such a server. Returns an environment in which it is the Hub, and nobody is logged in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.repositories = {}
    Thread(target=server.serve_forever, daemon=True).start()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    yield environment | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
    server.shutdown()
    server.server_close()


@pytest.fixture
def project(tmp_path):
    """What publishing reads, in a folder of its own."""
    for name in ("helpers", "report", "checkpoints/bundled", "figures/bundled"):
        shutil.copytree(ROOT / name, tmp_path / "project" / name, ignore=shutil.ignore_patterns("__pycache__", "*.svg"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "project")
    return tmp_path / "project"


def run(*command, where, environment):
    return subprocess.run([sys.executable, *command], cwd=where, env=environment, capture_output=True, text=True)


def publish(*arguments, where, environment):
    return run("report/publish.py", "bundled", *arguments, where=where, environment=environment)


LOAD = """
import sys
from helpers.training import load_checkpoint
for name in sys.argv[1:]:
    print(load_checkpoint(name)[0].num_parameters())
"""


def test_it_goes_there_and_comes_back(hub, project):
    done = publish("--to", "someone/stories", where=project, environment=hub | {"HF_TOKEN": "hf_abc"})
    assert done.returncode == 0, done.stderr
    assert f"published: {hub['HF_ENDPOINT']}/someone/stories" in done.stdout
    files = dict(Hub.repositories["someone/stories"])
    card = files.pop("README.md").decode()
    assert files == {path.name: path.read_bytes() for path in (project / "checkpoints/bundled").iterdir()}

    stored = json.loads(files["config.json"])
    training, decoding = (json.loads((project / f"figures/bundled/{n}.json").read_text()) for n in ("04", "05"))
    continued = decoding["continuations"]["greedy"]
    assert f"validation loss to {stored['metadata']['validation_loss']:.3f}: a perplexity" in card
    assert f"| greedy | {continued['perplexity']:.2f} | {continued['bleu']:.1f} |" in card
    assert f"| vocab size | {stored['model']['vocab_size']:,} |" in card
    assert re.search(r"^license: mit$", card, re.MULTILINE)
    assert re.search(r"^\s+value: \d+\.\d+$", card, re.MULTILINE)  # the perplexity, for the Hub to show

    shutil.rmtree(project / "checkpoints")  # from now on there is the Hub alone
    done = run("-c", LOAD, "someone/stories", "someone/else", where=project, environment=hub)
    assert done.stdout == f"{training['parameters']}\n", done.stderr
    assert "there is no folder someone/else here, and the model someone/else did not come from" in done.stderr


def test_files_of_two_runs_are_not_published(hub, project):
    path = project / "figures/bundled/04.json"
    numbers = json.loads(path.read_text())
    numbers["history"][-1]["validation_loss"] += 0.1
    path.write_text(json.dumps(numbers))
    done = publish(where=project, environment=hub)
    assert done.returncode == 1
    assert "files of two runs" in done.stderr
    assert not (project / "build").exists()


def test_a_model_that_is_not_there_is_said_in_a_line(hub, project):
    done = run("report/publish.py", "elsewhere", where=project, environment=hub)
    assert done.returncode == 1
    assert "is no complete checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "logged_in", "message"),
    [
        ("someone/stories", False, "not logged in: run `hf auth login`"),
        ("no such name", True, "the Hub did not take no such name"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(hub, project, name, logged_in, message):
    environment = hub | ({"HF_TOKEN": "hf_abc"} if logged_in else {})
    done = publish("--to", name, where=project, environment=environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert Hub.repositories == {}
    assert (project / "build/hub/bundled/model.safetensors").is_file()
