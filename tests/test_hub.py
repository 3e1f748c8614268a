"""Models and stories from the Hub: against a small server that speaks its language."""

from itertools import count
from pathlib import Path

import pytest
from hub import Hub, hub_at, published
from huggingface_hub import HfApi
from support import ROOT, TOKENIZER, made_model, on_a_small_disk, start

from helpers.checkpoints import save_checkpoint
from helpers.support.hub import ANSWER, first_texts

NAME = "someone/stories"


@pytest.fixture
def small(tmp_path):
    """The files of a small model's repository."""
    return published(save_checkpoint(tmp_path / "small", made_model(), TOKENIZER))


def downloaded(environment):
    done = start("download_model", NAME, environment=environment)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(environment, name=NAME):
    done = start("download_model", name, environment=environment)
    assert done.returncode == 1
    assert "\nConnectionError: " in done.stderr
    return done.stderr.rpartition("\nConnectionError: ")[2]


@pytest.mark.slow
def test_a_model_is_downloaded_once_and_stays_when_the_hub_is_gone(tmp_path, small):
    with hub_at(Hub, tmp_path / "hub") as environment:
        assert f"the model {NAME} did not come from the Hugging Face Hub" in refusal(environment)
        Hub.repositories = {NAME: small | {"README.md": b"# A card", "train.py": b"import os"}}
        folder, files = downloaded(environment)
        assert files == small  # and nothing that holds code
        Hub.asked.clear()
        assert downloaded(environment) == (folder, files)
        assert not [request for request in Hub.asked if request.startswith("GET /someone/")]
    assert downloaded(environment) == (folder, files)
    told = refusal(environment, "someone/else")
    assert "ConnectError" in told
    assert "Check the name, connect to the network, and try again" in told


class FailsOnce(Hub):
    """The first file of weights ends early, and is said to be as short as that."""

    def send(self, content):
        first = f"GET {self.path}" not in self.asked
        weights = self.command == "GET" and self.path.endswith(".safetensors")
        super().send(content[:-100] if first and weights else content)


def test_a_download_that_failed_is_tried_again_from_the_beginning(tmp_path, small):
    with hub_at(FailsOnce, tmp_path / "hub") as environment:
        Hub.repositories = {NAME: small}
        assert downloaded(environment)[1] == small
        weights = [one for one in Hub.asked if one.startswith("GET /some") and "tensors" in one]
        assert len(weights) == 2


def test_a_full_disk_is_said_and_not_taken_for_the_hubs_fault(tmp_path):
    folder = tmp_path / "small disk"
    folder.mkdir()
    with hub_at(Hub, folder) as environment:
        Hub.repositories = {NAME: published(ROOT / "checkpoints" / "bundled.safetensors")}
        done = on_a_small_disk(1_000, folder, "download_model", NAME, environment=environment)
    assert done.returncode == 1
    told = f"cannot write {folder / 'hub'} (No space left on device): make room"
    assert told in done.stderr.strip().splitlines()[-1]


def test_the_first_texts_are_the_first_with_a_word_and_no_more_is_read(monkeypatch):
    asked, read = [], []
    monkeypatch.setattr(HfApi, "repo_info", lambda self, *name, **how: asked.append((*name, how)))

    def load(*name, **how):
        asked.append((*name, how))
        for i in count():
            read.append(i)
            yield {"text": " \n" if i % 2 else f" story {i}", "author": "nobody"}

    texts = list(first_texts(load, NAME, "train", 3))
    assert texts == [{"text": " story 0"}, {"text": " story 2"}, {"text": " story 4"}]
    assert read == [0, 1, 2, 3, 4]
    answer = {"repo_type": "dataset", "timeout": ANSWER}
    assert asked == [(NAME, answer), (NAME, {"split": "train", "streaming": True})]


def test_texts_are_not_asked_for_if_the_hub_gives_no_first_answer(monkeypatch):
    def repo_info(*name, **how):
        raise TimeoutError("no answer")

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    with pytest.raises(TimeoutError, match="no answer"):
        next(first_texts(pytest.fail, NAME, "train", 3))
