"""A Hub that stalls, breaks off, lies about a length, or sends something else: refused in words, and the next try works."""

import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest
from hub import REVISION, Hub, digest, hub_at
from torture import MANY

pytestmark = pytest.mark.torture
ROOT = Path(__file__).resolve().parents[1]
MODEL = "model.safetensors"


class Broken(Hub):
    """The Hub with one fault: in what it answers about the repository ("api"), or in the weights ("file")."""

    where, fault, closing = "", "", Event()

    def do_GET(self):
        asked = "api" if "/api/models/" in self.path else "file" if MODEL in self.path else ""
        if asked != self.where or (asked == "file" and self.command == "HEAD"):
            super().do_GET()
        elif self.fault == "silent":
            self.closing.wait(100)
        elif self.fault in ("404", "500"):
            self.answer(int(self.fault), {"error": "broken"})
        elif self.fault == "page":
            self.answer(200, b"<!DOCTYPE html><html>Please log in</html>", ETag='"0"')
        else:
            self.send_a_part(self.repositories["someone/stories"][MODEL])

    def send_a_part(self, content):
        """Fewer bytes than were promised and then the end, or silence; or fewer promised than there are."""
        promised = len(content) - 1_000 if self.fault == "promises less" else len(content)
        self.send_response(200)
        for name, value in {
            "Content-Length": promised,
            "ETag": f'"{digest(content)}"',
            "X-Repo-Commit": REVISION,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content[:promised] if self.fault == "promises less" else content[: len(content) // 2])
        self.wfile.flush()
        if self.fault == "stalls":
            self.closing.wait(100)
        self.close_connection = True

    do_HEAD = do_GET


LOAD = """
from helpers.training import load_checkpoint
print(load_checkpoint("someone/stories")[0].num_parameters())
"""


def load(environment, seconds):
    command = [sys.executable, "-c", LOAD]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)


QUICK = [("api", "page"), ("file", "promises less")]
SLOW = [("api", fault) for fault in ("silent", "404", "500")]  # the client waits, or tries again
SLOW += [("file", fault) for fault in ("404", "500", "page", "breaks off", "stalls")]


@pytest.mark.parametrize(("where", "fault"), [*QUICK, *(SLOW if MANY else [])])
def test_a_broken_hub_is_refused_in_words_and_the_next_try_is_whole(tmp_path, monkeypatch, where, fault):
    folder = ROOT / "checkpoints" / "bundled"
    monkeypatch.setattr(Broken, "where", where)
    monkeypatch.setattr(Broken, "fault", fault)
    with hub_at(Broken, tmp_path / "hub") as environment:
        Hub.repositories = {"someone/stories": {path.name: path.read_bytes() for path in folder.iterdir()}}
        done = load(environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "2"}, seconds=90)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert "try again" in last or "again" in last, done.stderr
        Broken.where = "nowhere"  # mended
        done = load(environment, seconds=60)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 4_000_000
        Broken.closing.set()
