"""A Hub that stalls, breaks off, lies about a length, or sends something else: refused in words,
and the next try works.
"""

import io
from threading import Event

import datasets
import pytest
from hub import REVISION, Hub, digest, hub_at, published
from support import MANY, ROOT, start

from helpers.checkpoints import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.torture]


class Broken(Hub):
    """The Hub with one fault: in what it answers about the repository ("api"), or in the weights or
    stories ("file").
    """

    where, fault, closing = "", "", Event()

    def do_GET(self):
        about = self.path.startswith(("/api/models/", "/api/datasets/"))
        if self.where == "api" and about:
            self.fail()
        else:
            super().do_GET()

    do_HEAD = do_GET

    def send(self, content):
        weights_or_stories = self.path.endswith((".safetensors", ".parquet"))
        if self.where == "file" and self.command == "GET" and weights_or_stories:
            self.fail(content)
        else:
            super().send(content)

    def fail(self, content=b"{}"):
        if self.fault == "silent":
            self.closing.wait(300)
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
        promised = sent = len(content) - 1_000
        if self.fault != "promises less":
            promised, sent = len(content), len(content) // 2
        headers = {"Content-Length": promised, "ETag": f'"{digest(content)}"'}
        headers["Content-Range"] = f"bytes 0-{promised - 1}/{promised}"
        self.send_response(206 if "Range" in self.headers else 200)
        for name, value in (headers | {"X-Repo-Commit": REVISION}).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content[:sent])
        self.wfile.flush()
        if self.fault == "stalls":
            self.closing.wait(100)
        self.close_connection = True


def table(name, count):
    """A .parquet file of stories."""
    file, texts = io.BytesIO(), [f"{name} {i} was told." for i in range(count)]
    datasets.Dataset.from_dict({"text": texts}).to_parquet(file)
    return file.getvalue()


MODEL = ROOT / "checkpoints" / "bundled.safetensors"
LOAD = {
    "a model": ("load_model", "someone/stories"),
    "stories": ("load_tinystories", 500, 50),
}
EXPECTED = {
    "a model": f"{load_checkpoint(MODEL)[0].num_parameters()}\n",
    "stories": "500 50\none 499 was told.\nother 49 was told.\n",
}
TABLES = {
    "data/train-00000-of-00001.parquet": table("one", 2_000),
    "data/validation-00000-of-00001.parquet": table("other", 200),
}


@pytest.fixture(scope="module")
def repositories():
    return {"someone/stories": published(MODEL), "roneneldan/TinyStories": TABLES}


def load(what, environment, silence):
    """In a process of its own. silence: seconds without an answer after which a client tries again.

    That of `datasets` tries six times, and waits for 28 seconds in between; for a first answer it
    waits for 100.
    """
    seconds = {"HF_HUB_DOWNLOAD_TIMEOUT": str(silence)}
    return start(*LOAD[what], environment=environment | seconds, timeout=300)


QUICK = [
    ("a model", "api", "page"),
    ("a model", "file", "promises less"),
    ("stories", "file", "stalls"),
]
API, FILE = ("silent", "404", "500", "page"), ("breaks off", "stalls", "promises less")
SLOW = [*(("api", fault) for fault in API), *(("file", fault) for fault in (*API, *FILE))]
CASES = [(what, *fault) for what in LOAD for fault in SLOW] if MANY else QUICK


@pytest.mark.parametrize(("what", "where", "fault"), CASES)
def test_a_broken_hub_is_refused_in_words_and_the_next_try_is_whole(
    tmp_path, monkeypatch, repositories, what, where, fault
):
    for name, value in {"where": where, "fault": fault, "closing": Event()}.items():
        monkeypatch.setattr(Broken, name, value)
    with hub_at(Broken, tmp_path / "hub") as environment:
        Hub.repositories = repositories
        done = load(what, environment, silence=1)
        Broken.closing.set()
        assert done.returncode == 1
        assert "again" in done.stderr.strip().splitlines()[-1], done.stderr
        Broken.where = "nowhere"  # mended
        done = load(what, environment, silence=20)
        assert done.returncode == 0, done.stderr
        assert done.stdout == EXPECTED[what]
