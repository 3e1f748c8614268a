"""Models and stories from the Hub: against a small server that speaks its language."""

from itertools import count
from pathlib import Path

import datasets
import pytest
from datasets import IterableDataset
from hub import Hub, hub_at, published
from huggingface_hub import HfApi, constants
from support import ROOT, TOKENIZER, made_model, on_a_small_disk, start

from helpers.checkpoints import save_checkpoint
from helpers.support.hub import download_model, first_texts

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
    for broken in (LogIn, Forgets):  # what came earlier serves, however the Hub fails
        with hub_at(broken, tmp_path / "hub") as environment:
            assert downloaded(environment) == (folder, files)


class LogIn(Hub):
    """A page in place of whatever was asked for, as in a hotel."""

    def do_GET(self):
        self.answer(200, b"<!DOCTYPE html><html>Please log in</html>")

    do_HEAD = do_GET


class Forgets(Hub):
    """It hangs up."""

    def do_GET(self):
        self.close_connection = True

    do_HEAD = do_GET


class FailsOnce(Hub):
    """The first file of weights ends early, and is said to be as short as that."""

    def send(self, content):
        first = f"GET {self.path}" not in self.asked
        weights = self.command == "GET" and self.path.endswith(".safetensors")
        super().send(content[:-100] if first and weights else content)


def test_what_is_left_of_a_download_that_failed_is_not_taken_for_the_whole(tmp_path, small):
    with hub_at(FailsOnce, tmp_path / "hub") as environment:
        Hub.repositories = {NAME: small}
        assert "and try again" in refusal(environment)
        assert downloaded(environment)[1] == small


def test_a_full_disk_is_said_and_not_taken_for_the_hubs_fault(tmp_path):
    folder = tmp_path / "small disk"
    folder.mkdir()
    with hub_at(Hub, folder) as environment:
        Hub.repositories = {NAME: published(ROOT / "checkpoints" / "bundled.safetensors")}
        done = on_a_small_disk(1_000, folder, "download_model", NAME, environment=environment)
    assert done.returncode == 1
    told = f"cannot write {folder / 'hub'} (No space left on device): make room"
    assert told in done.stderr.strip().splitlines()[-1]


def test_a_silent_hub_is_given_up_after_twenty_seconds(monkeypatch, tmp_path):
    """The downloading itself would wait for ever."""

    def repo_info(self, name, timeout):
        raise TimeoutError(f"no answer from {name} in {timeout} s")

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=rf"\(TimeoutError: no answer from {NAME} in 20 s\)"):
        download_model(NAME)


def test_the_first_texts_are_the_first_with_a_word_and_little_more_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # a home may be locked
    asked, read = [], []

    def rows():
        for i in count():
            read.append(i)
            yield {"text": " \n" if i % 2 else f" story {i}", "author": "nobody"}

    def load(*name, **how):
        asked.append((*name, how))
        return IterableDataset.from_generator(rows)

    texts = list(first_texts(load, NAME, "train", 3))
    assert texts == [{"text": " story 0"}, {"text": " story 2"}, {"text": " story 4"}]
    assert max(read) < 10
    assert asked == [(NAME, {"split": "train", "streaming": True})]
