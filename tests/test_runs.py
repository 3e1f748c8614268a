"""Runs that are recorded: none is made twice, none is lost, and each says what it was made on."""

import json
from concurrent.futures import Future

import pytest
import torch
from support import TOKENIZER, made_model, made_stories, report_script

runs, vectors = report_script("runs"), report_script("vectors")
ORIGIN = {"recipe": "r", "tokenizer": "t", "stories": "s"}


class Here:
    """An executor that runs what it is given in this process."""

    def __init__(self, *_, **__):
        pass

    __enter__ = lambda self: self
    __exit__ = lambda self, *error: None

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future


def test_a_run_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FIGURES_DIR", str(tmp_path))
    monkeypatch.setattr(runs, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(runs, "as_completed", list)
    made = []

    def work(name, seed):
        made.append((name, seed))
        if len(made) == 2:
            raise KeyboardInterrupt
        return {"loss": seed}

    path = tmp_path / "tinystories" / "tried.json"
    path.parent.mkdir()
    path.write_text(
        json.dumps({"runs": {"old": {"0": {"loss": 7.0}}}, "other": 1, "made_from": ORIGIN})
    )
    todo = [(name, seed) for seed in range(2) for name in ("old", "new")]
    with pytest.raises(KeyboardInterrupt):
        runs.complete("tinystories", "tried", work, todo, 1, ORIGIN)
    assert made == [("new", 0), ("old", 1), ("new", 1)]
    kept = json.loads(path.read_text())
    assert kept["other"] == 1
    assert kept["runs"]["old"]["0"] == {"loss": 7.0}
    assert {name: sorted(found) for name, found in kept["runs"].items()} == {
        "old": ["0"],
        "new": ["0", "1"],
    }
    assert kept["runs"]["new"]["0"] == {"loss": 0, "device": runs.processor()}
    known = runs.complete("tinystories", "tried", work, todo, 1, ORIGIN)
    assert made[3:] == [("old", 1)]
    assert sorted(known["runs"]["old"]) == ["0", "1"]
    # Of other stories nothing counts.
    runs.complete("tinystories", "tried", work, todo, 1, ORIGIN | {"stories": "others"})
    assert len(made) == 4 + len(todo)


@pytest.mark.parametrize("kind", ["tuned", "frozen"])
def test_frozen_vectors_stay_as_they_are(monkeypatch, kind):
    stories, model = made_stories(), made_model()
    before = model.embedding.weight.detach().clone()
    data = {"stories": stories, "tokenizer": TOKENIZER, "starts": {"random": None}, "covered": 1.0}
    monkeypatch.setattr(vectors, "prepared", lambda *_: data)
    monkeypatch.setattr(vectors, "new_model", lambda *_: model)
    found = vectors.made_run("folder", "file", f"random, {kind}, 60 stories", 0)
    assert found["loss"] > 0
    assert torch.equal(model.embedding.weight, before) == (kind == "frozen")
