"""A Hub that stalls, breaks off, lies about a length, or sends something else: refused in words,
and the next try works.
"""

import io
import subprocess
import sys
from pathlib import Path
from threading import Event

import datasets
import pytest
from hub import REVISION, Hub, digest, hub_at
from torture import MANY

pytestmark = pytest.mark.torture
ROOT = Path(__file__).resolve().parents[1]


class Broken(Hub):
    """The Hub with one fault: in what it answers about the repository ("api"), or in the weights or
    stories ("file").
    """

    where, fault, closing = "", "", Event()

    def do_GET(self):
        if self.where == "api" and self.path.startswith(("/api/models/", "/api/datasets/")):
            self.fail()
        else:
            super().do_GET()

    do_HEAD = do_GET

    def send(self, content):
        if (
            self.where == "file"
            and self.command == "GET"
            and self.path.endswith((".safetensors", ".parquet"))
        ):
            self.fail(content)
        else:
            super().send(content)

    def fail(self, content=b"{}"):
        if self.fault == "silent":
            self.closing.wait(100)
        elif self.fault in ("404", "500"):
            self.answer(int(self.fault), {"error": "broken"})
        elif self.fault == "page":
            self.answer(200, b"<!DOCTYPE html><html>Please log in</html>", ETag='"0"')
        else:
            self.send_a_part(content)

    def send_a_part(self, content):
        """Fewer bytes than were promised and then the end, or silence; or fewer promised than there
        are.
        """
        promised = len(content) - 1_000 if self.fault == "promises less" else len(content)
        self.send_response(206 if "Range" in self.headers else 200)
        for name, value in {
            "Content-Length": promised,
            "Content-Range": f"bytes 0-{promised - 1}/{promised}",
            "ETag": f'"{digest(content)}"',
            "X-Repo-Commit": REVISION,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(
            content[:promised] if self.fault == "promises less" else content[: len(content) // 2]
        )
        self.wfile.flush()
        if self.fault == "stalls":
            self.closing.wait(100)
        self.close_connection = True


def table(name, count):
    """A .parquet file of stories."""
    file = io.BytesIO()
    datasets.Dataset.from_dict(
        {"text": [f"{name} {i} was told." for i in range(count)]}
    ).to_parquet(file)
    return file.getvalue()


LOAD = {
    "a model": """
from helpers.training import load_checkpoint
print(load_checkpoint("someone/stories")[0].num_parameters() > 4_000_000)
""",
    "stories": """
import sys
from helpers import stories
stories.SILENCE = float(sys.argv[1])
found = stories.load_stories("tinystories", train=500, validation=50)
last = ("one 499 was told.", "other 49 was told.")
print((len(found.train), found.train[-1], found.validation[-1]) == (500, *last))
""",
}


def load(what, environment, silence):
    """In a process of its own. silence: seconds without an answer after which it gives up."""
    environment = environment | {"HF_HUB_DOWNLOAD_TIMEOUT": f"{silence // 3}"}
    command = [sys.executable, "-c", LOAD[what], str(silence)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


QUICK = [
    ("a model", "api", "page"),
    ("a model", "file", "promises less"),
    ("stories", "file", "stalls"),
]
SLOW = [
    ("api", "silent"),
    ("api", "404"),
    ("api", "500"),
    ("api", "page"),
]  # the client waits, or tries again
SLOW += [
    ("file", fault)
    for fault in ("silent", "404", "500", "page", "breaks off", "stalls", "promises less")
]
CASES = [(what, *fault) for what in LOAD for fault in SLOW] if MANY else QUICK


@pytest.mark.parametrize(("what", "where", "fault"), CASES)
def test_a_broken_hub_is_refused_in_words_and_the_next_try_is_whole(
    tmp_path, monkeypatch, what, where, fault
):
    folder = ROOT / "checkpoints" / "bundled"
    monkeypatch.setattr(Broken, "where", where)
    monkeypatch.setattr(Broken, "fault", fault)
    with hub_at(Broken, tmp_path / "hub") as environment:
        Hub.repositories = {
            "someone/stories": {path.name: path.read_bytes() for path in folder.iterdir()},
            "roneneldan/TinyStories": {
                "data/train-00000-of-00001.parquet": table("one", 2_000),
                "data/validation-00000-of-00001.parquet": table("other", 200),
            },
        }
        done = load(what, environment, silence=6)
        assert done.returncode == 1
        assert "again" in done.stderr.strip().splitlines()[-1], done.stderr
        Broken.where = "nowhere"  # mended
        done = load(what, environment, silence=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "True"
        Broken.closing.set()
