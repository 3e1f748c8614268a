"""From a corpus to a trained model: in Python, as a command, and the model that is here already."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import QUICK, ROOT, TOKENIZER, made_model, made_stories

from helpers import recipe
from helpers.checkpoints import CHECKPOINTS, load_checkpoint
from helpers.grammar import entropy_floor
from helpers.loss import mean_loss
from helpers.recipe import VALIDATION, load_or_train, new_model, save_trained
from helpers.stories import load_stories
from helpers.training import TrainingConfig, encode_stories, train
from helpers.vectors import TextVectors

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A file of 560 stories: 60 to train on, and the rest for validation."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "vectors"))
    texts = [f"w{i % 30} w{i // 30} w{i * 7 % 30}." for i in range(60 + VALIDATION)]
    path = tmp_path / "counting.txt"
    path.write_text("<|endoftext|>".join(texts))
    return path


# --- In Python ------------------------------------------------------------------------------------


def test_a_new_model_has_the_assignments_size_and_starts_from_vectors():
    model = new_model(made_stories(), TOKENIZER, seed=3)
    assert model.num_parameters() == 8_940_768
    again, other = (new_model(made_stories(), TOKENIZER, seed=seed) for seed in (3, 4))
    assert torch.equal(model.output.weight, again.output.weight)
    assert not torch.equal(model.output.weight, other.output.weight)
    numbers = np.random.default_rng(0).normal(size=(30, 300)).astype(np.float32)
    vectors = TextVectors(TOKENIZER.words, numbers)
    started = new_model(made_stories(), TOKENIZER, vectors, freeze=True)
    assert not started.embedding.weight.requires_grad
    rows = started.embedding.weight[4:34].detach().numpy()  # (30, 300), those of the words
    assert np.allclose(rows / rows.std(), numbers / numbers.std(), atol=1e-4)
    assert not started.embedding.weight[34:].any()


def test_the_bundled_stories_have_a_vocabulary_of_their_own():
    bundled = replace(made_stories(), name="bundled")
    assert new_model(bundled, TOKENIZER).config.vocab_size == len(TOKENIZER)


def test_a_trained_model_is_saved_at_half_size_with_its_losses(tmp_path):
    model = made_model()
    history = train(model, TOKENIZER, made_stories(), replace(QUICK, epochs=1))
    save_trained(tmp_path / "made", model, TOKENIZER, history, made_stories())
    _, _, metadata = load_checkpoint(tmp_path / "made")
    told = ("step", "tokens", "train_loss", "validation_loss")
    known = {"corpus": "made", "stories": made_stories().digest}
    assert metadata == known | {name: history.rows[-1][name] for name in told}
    weights = load_file(tmp_path / "made.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_a_missing_model_is_trained_once_and_kept(corpus, tmp_path, monkeypatch, capsys):
    """Two files of one name are two corpora, told by their content."""
    monkeypatch.setattr(recipe, "CHECKPOINTS", tmp_path / "models")
    monkeypatch.setattr(recipe, "VALIDATION", 20)
    config, other = replace(QUICK, epochs=1, max_steps=2), tmp_path / "other" / corpus.name
    model, _, metadata = load_or_train(corpus, config)
    (path,) = (tmp_path / "models").iterdir()
    assert re.fullmatch(r"counting-[0-9a-f]{8}\.safetensors", path.name)
    told = f"{path.stem}: there is no trained model yet, so it is trained now\n"
    assert capsys.readouterr().out == told
    assert model.num_parameters() == 8_940_768
    assert (metadata["corpus"], metadata["step"]) == ("counting", 2)
    before = path.read_bytes()
    other.parent.mkdir()
    shutil.copy(corpus, other)
    for place in ({}, {"path": path}, {"path": path.with_suffix("")}):
        again, _, _ = load_or_train(other, config, **place)
        pairs = zip(model.parameters(), again.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert (path.read_bytes(), capsys.readouterr().out) == (before, "")
    other.write_text(corpus.read_text().replace("w1 ", "z1 "))
    _, tokenizer, _ = load_or_train(other, config)
    assert ("z1" in tokenizer.words, len([*path.parent.iterdir()])) == (True, 2)
    for wrong in (other, "bundled"):
        with pytest.raises(ValueError, match=rf"{path.name} was trained on other stories than"):
            load_or_train(wrong, config, path)
    whole, _, _ = load_or_train(other, config, context_length=96)
    assert whole.config.context_length == 96
    assert load_or_train(other, config, context_length=96)[0].config == whole.config
    assert sorted(p.stem.count("-") for p in path.parent.iterdir()) == [1, 1, 2]
    with pytest.raises(ValueError, match="has a context of 64, not of 96"):
        load_or_train(corpus, config, path, context_length=96)


def test_the_committed_model_is_the_one_it_says():
    """It reaches the loss that its metadata claims, which is close above the floor."""
    model, tokenizer, metadata = load_or_train("bundled")
    stories = load_stories("bundled", train=1, validation=100)
    ids = encode_stories(tokenizer, stories.validation, 64)
    loss, floor = mean_loss(model, ids, tokenizer.pad_id, "fp32"), entropy_floor(stories, 64)
    assert floor < loss < floor + 0.1
    # The mean of 500 stories, not of 100.
    assert loss == pytest.approx(metadata["validation_loss"], abs=0.05)
    assert (CHECKPOINTS / "bundled.safetensors").stat().st_size < 10e6


# --- The command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_trains_resumes_and_refuses(corpus, tmp_path, capsys):
    model, folder = tmp_path / "model", tmp_path / "run"
    options = ["--corpus", corpus, "--folder", folder, "--checkpoint", model, "--epochs", 1]
    options += ["--batch-size", 8, "--accumulation-steps", 2, "--betas", "(0.9, 0.99)"]
    options += ["--precision", "fp32", "--device", "cpu", "--overwrite-eos", "false"]
    options = [*map(str, options), "--clip-norm", "none", "--context-length", "48"]

    def refused(*more):
        """What the command says when it fails: a sentence."""
        with pytest.raises(SystemExit) as ended:
            recipe.main([*options, *map(str, more)])
        assert ended.value.code == 1
        return capsys.readouterr().err

    done = run(*TORCHRUN, "2", "-m", "helpers.training", *options)
    assert done.returncode == 0, done.stderr
    told = r"step 2: validation loss \d+\.\d+ nats per token; model in .*/model\.safetensors\n"
    assert re.search(told, done.stdout)
    trained, _, metadata = load_checkpoint(model)
    assert (metadata["step"], trained.num_parameters()) == (2, 8_940_768)
    assert "model.safetensors is there already: name another place" in refused("--resume")
    model.with_suffix(".safetensors").rename(tmp_path / "old")
    assert "run holds a run already: continue it with --resume" in refused()
    told = r"helpers\.training: \S+ holds another run .*processes: 2 there, 1 here.*\n"
    assert re.fullmatch(told, refused("--resume"))
    told = "helpers.training: epochs='many': must be a whole number of at least 1\n"
    assert refused("--epochs", "many") == told
    (tmp_path / "file").touch()
    told = r"helpers\.training: .*cannot write \S+file \(File exists\): make room, or name .*\n"
    assert re.fullmatch(told, refused("--checkpoint", tmp_path / "file" / "model", "--resume"))
    corpus.write_text("")
    empty = refused("--folder", tmp_path / "2026")  # a number may be a name
    assert re.fullmatch(r"helpers\.training: \S*counting\.txt is empty: give .*\n", empty)


def test_resuming_needs_a_folder_to_resume_from(capsys):
    with pytest.raises(SystemExit) as ended:
        recipe.main(["--resume", "--checkpoint", "nowhere/model"])
    assert ended.value.code == 1
    assert (
        "helpers.training: --resume needs the --folder of the run to continue\n"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_command_says_how_it_is_called():
    """Every setting is an option; `-m helpers.training` is the recipe's command."""
    done = run(sys.executable, "-m", "helpers.training", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: helpers.training [-h] [--corpus CORPUS]")
    for setting in fields(TrainingConfig):
        assert f"--{setting.name.replace('_', '-')} " in done.stdout
