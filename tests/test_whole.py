"""Whole stories: what is measured on a text, and that a run that was stopped goes on."""

from dataclasses import replace

import pytest
from support import QUICK, TOKENIZER, made_model, made_stories, report_script

from helpers.checkpoints import load_checkpoint
from helpers.tokenizer import WordTokenizer

whole = report_script("whole")


def test_names_kept_and_pairs_by_hand():
    texts = [
        "a dog named rex ran . then rex slept .",
        "a dog named rex ran . then it slept .",
        "no name no name .",
    ]
    tokenizer = WordTokenizer.train(texts)
    found = whole.measures([tokenizer.encode(text) for text in texts], tokenizer)
    assert found == {
        "tokens": pytest.approx((10 + 10 + 5) / 3),
        "texts with a name": 2,
        "names kept": 0.5,
        "distinct pairs": pytest.approx((1 + 1 + 3 / 4) / 3),
    }


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    """Its model lies where it is looked for, and its loss is that of the run in one piece."""
    data = {
        "stories": made_stories(),
        "development": made_stories(90).train,
        "tokenizer": TOKENIZER,
    }
    monkeypatch.setattr(whole, "ROOT", tmp_path)
    monkeypatch.setattr(whole, "CONTEXT", 12)
    monkeypatch.setattr(whole, "prepared", lambda _: data)
    monkeypatch.setattr(whole, "new_model", lambda *_: made_model(context_length=12))
    monkeypatch.setattr(whole, "train_vectors", lambda *_: None)
    monkeypatch.setattr(whole, "trained_path", lambda *_: tmp_path / "model.safetensors")
    monkeypatch.setattr(whole, "written", lambda *_: {})
    monkeypatch.setattr(whole, "TrainingConfig", lambda **how: replace(QUICK, **how))
    train, runs = whole.train, []

    def stopped(model, tokenizer, stories, config, resume_from):
        def stop(row, _):
            if row["step"] == 10:  # two steps after it was saved
                raise KeyboardInterrupt

        train(model, tokenizer, stories, config, on_validation=stop)

    whole_run = whole.made_run("folder", whole.OURS, 0)
    monkeypatch.setattr(whole, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        whole.made_run("folder", whole.OURS, 0)
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.setattr(whole, "train", lambda *a, **k: runs.append(k) or train(*a, **k))
    again = whole.made_run("folder", whole.OURS, 0)
    assert runs[0]["resume_from"] is not None
    assert (again["validation"], again["steps"]) == (whole_run["validation"], whole_run["steps"])
    assert not list((tmp_path / "runs").iterdir())
    _, _, told = load_checkpoint(tmp_path / "model")
    assert told["step"] == again["steps"]
