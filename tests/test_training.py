"""Training: the schedule, accumulation, exact resume, and what is said when something is wrong."""

import json
import math
import re
import runpy
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import PROGRAMS, QUICK, TOKENIZER, made_model, made_stories, start

from helpers import training
from helpers.decoding import generate
from helpers.loss import mean_loss
from helpers.model import Decoder
from helpers.tokenizer import WordTokenizer
from helpers.training import (
    TrainingConfig,
    encode_stories,
    learning_rate_at,
    make_optimizer,
    optimizer_step,
    train,
)


@pytest.fixture
def run_here(monkeypatch):
    """Run a program as `start` does, but in this process."""

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        runpy.run_path(str(PROGRAMS / f"{program}.py"), run_name="__main__")

    return run


# --- Settings, stories, the learning rate ---------------------------------------------------------


def test_the_comparison_protocol_overwrites_the_last_token_of_a_cut_story():
    texts = ["w1 w2 w3 w4 w5", "w1 w2", "w1 w2 w3"]
    whole = [[1, 5, 6, 2, 0], [1, 5, 6, 7, 2]]
    assert encode_stories(TOKENIZER, texts, 5).tolist() == [[1, 5, 6, 7, 8], *whole]
    overwritten = encode_stories(TOKENIZER, texts, 5, overwrite_eos=True)
    assert overwritten.tolist() == [[1, 5, 6, 7, 2], *whole]


def test_baseline_is_the_assignments_recipe():
    config = TrainingConfig.baseline(epochs=1)
    assert (config.learning_rate, config.schedule, config.warmup_steps) == (3e-4, "constant", 0)
    assert (config.weight_decay, config.batch_size) == (0.0, 32)
    assert (config.betas, config.clip_norm, config.muon) == ((0.9, 0.999), None, None)
    assert (config.dropout, config.overwrite_eos, config.epochs) == (0.1, True, 1)
    assert TrainingConfig.baseline().epochs == 3
    assert TrainingConfig().overwrite_eos is False


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": "many"},
        {"accumulation_steps": 0},
        {"validate_every": 1.5},
        {"max_steps": 0},
        {"save_every": 0},
        {"warmup_steps": -1},
        {"learning_rate": float("nan")},
        {"weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
        {"betas": 0.9},
        {"clip_norm": 0},
        {"dropout": 1.0},
        {"recompute_segments": 3},
        {"recompute_segments": (0,)},
        {"muon": 0},
        {"schedule": "linear"},
        {"precision": "fp16"},
        {"overwrite_eos": "no"},
        {"seed": None},
        {"seed": True},
        {"learning_rate": "fast"},
        {"betas": [0.9]},
        {"dropout": "0.1"},
        {"folder": 5},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))}: must be [\w']"):
        TrainingConfig(**changes)


def test_the_trapezoid_warms_up_stays_and_falls_in_a_line_to_zero():
    config = TrainingConfig(learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate_at(step, 110, config) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:67] == [1.0] * 57
    assert rates[66:] == pytest.approx([(110 - step) / 44 for step in range(66, 111)])


def test_cosine_warms_up_then_falls_to_zero():
    config = TrainingConfig(learning_rate=1.0, warmup_steps=10, schedule="cosine")
    rates = [learning_rate_at(step, 110, config) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    constant = replace(config, schedule="constant")
    assert learning_rate_at(100, 110, constant) == 1.0


@pytest.mark.parametrize("muon", [2.0, None])
def test_muon_is_for_the_matrices_of_the_blocks(muon):
    model = made_model()
    groups = make_optimizer(model, replace(QUICK, muon=muon)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(group["params"][0])]: (group["orthogonal"], group["share"]) for group in groups
    }
    matrices = {"qkv": 3, "output": 1, "expand": 1, "contract": 1}
    for name, (parts, share) in found.items():
        layer, kind = name.split(".")[-2:]
        orthogonal = muon and name.startswith("blocks") and layer in matrices and kind == "weight"
        assert (parts, share) == ((matrices[layer], muon) if orthogonal else (0, 1.0)), name


def test_weight_decay_is_for_matrices_that_are_not_word_vectors():
    model = made_model()
    model.projection.weight.requires_grad_(False)
    optimizer = make_optimizer(model, replace(QUICK, weight_decay=0.1))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    names = {name: decay.get(id(p)) for name, p in model.named_parameters()}
    assert names.pop("projection.weight") is None  # frozen: not trained at all
    decayed = {name for name, number in names.items() if number == 0.1}
    others = {name for name, number in names.items() if number == 0.0}
    assert decayed | others == set(names)
    assert "embedding.weight" in others
    assert decayed == {n for n in names if n.endswith("weight") and not n.startswith("embedding")}


# --- The loop -------------------------------------------------------------------------------------


def test_training_learns_and_records():
    model, seen = made_model(), []
    config = replace(QUICK, epochs=10, learning_rate=1e-2)
    note = lambda row, _: seen.append(row["step"])
    history = train(model, TOKENIZER, made_stories(), config, on_validation=note)
    steps = sorted({1, 2, 4, 8, 16, 32, 64, *range(5, 81, 5), *range(8, 81, 8)})
    assert history.column("step") == seen == steps
    losses = {"train_loss", "validation_loss"}
    first, last = history.rows[0], history.rows[-1]
    assert set(first) == {"step", "tokens", "learning_rate", "seconds"} | losses
    # The first word (1 of 30) and the end cannot be foreseen; all between can.
    assert last["validation_loss"] < 1.3 < 3.0 < first["train_loss"] < math.log(40) + 0.3
    ids = encode_stories(TOKENIZER, made_stories().train, 12)
    assert last["tokens"] == 10 * (ids[:, 1:] != 0).sum().item()
    assert not model.training


def test_training_leaves_the_callers_random_stream_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    model = made_model(seed=7)  # draws, so set the stream again
    torch.manual_seed(7)
    train(model, TOKENIZER, made_stories(), QUICK)
    assert torch.equal(torch.rand(3), expected)


def test_writing_samples_during_a_run_changes_nothing():
    """Dropout stays on, and the random stream is the run's own."""
    config = replace(QUICK, dropout=0.2)
    plain = train(made_model(), TOKENIZER, made_stories(), config)
    sample = lambda row, model: generate(model, TOKENIZER, [""], max_new_tokens=3)
    sampled = train(made_model(), TOKENIZER, made_stories(), config, on_validation=sample)
    assert sampled.column("train_loss") == plain.column("train_loss")
    assert sampled.column("validation_loss") == plain.column("validation_loss")


def test_frozen_vectors_do_not_move():
    model = made_model()
    model.start_from_vectors(torch.randn(40, 12), freeze=True)
    before = model.embedding.weight.clone()
    train(model, TOKENIZER, made_stories(), replace(QUICK, weight_decay=0.1))
    assert torch.equal(model.embedding.weight, before)


def test_training_and_generation_call_the_models_own_forward(monkeypatch):
    """What notebook 03 shows is what learns, and what writes."""
    forward, calls = Decoder.forward, []

    def noted(self, ids, *arguments, **named):
        calls.append((self.training, tuple(ids.shape), {k for k in named if named[k] is not None}))
        return forward(self, ids, *arguments, **named)

    monkeypatch.setattr(Decoder, "forward", noted)
    stories, model = made_stories(), made_model()
    config = replace(QUICK, epochs=1, batch_size=4, accumulation_steps=2, recompute_segments=(2,))
    history = train(model, TOKENIZER, stories, config)
    learned = [call for call in calls if call[0]]
    assert learned == [(True, (4, 11), {"targets"})] * 15  # 60 stories, four at a time
    validated = [call for call in calls if not call[0]]
    assert validated == [(False, (10, 11), {"targets"})] * len(history.rows)
    calls.clear()
    (result,) = generate(model, TOKENIZER, ["w1 w2"], max_new_tokens=3, strategy="greedy")
    read = [(False, (1, 3)), *[(False, (1, 1))] * (len(result.ids) - 1)]  # with the cache
    assert [call[:2] for call in calls] == read
    assert all("last_only" in named and "targets" not in named for *_, named in calls)


# --- Accumulated gradients, recomputation, several processes --------------------------------------


def accumulated_gradient(model, ids, batch_size):
    """What one optimizer step leaves in .grad, its mini-batches being of batch_size stories."""
    nothing = torch.optim.SGD(model.parameters(), lr=0.0)
    steps = math.ceil(len(ids) / batch_size)
    config = replace(QUICK, batch_size=batch_size, accumulation_steps=steps, clip_norm=None)
    optimizer_step(model, nothing, ids, 0.0, config, "fp32")
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.slow
@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 11), min_size=2, max_size=16),
    batch_size=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_the_accumulated_gradient_is_that_of_one_large_batch(lengths, batch_size, seed):
    """Stories of unequal lengths, the last mini-batch often smaller: all the same, to float64's
    last digits.
    """
    random = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, 30, (n,), generator=random).tolist() for n in lengths]
    texts = [" ".join(f"w{i}" for i in words) for words in drawn]
    ids = encode_stories(TOKENIZER, texts, 12).long()
    model = made_model(seed).double()
    whole = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
    gradients = torch.autograd.grad(whole, list(model.parameters()))
    expected = torch.cat([gradient.flatten() for gradient in gradients])
    difference = accumulated_gradient(model, ids, batch_size) - expected
    assert difference.abs().max() < 1e-12 * expected.abs().max()


def test_a_step_returns_its_losses_and_clips_the_gradient():
    model, ids = made_model(), encode_stories(TOKENIZER, made_stories().train, 12).long()
    expected = mean_loss(model, ids, precision="fp32")
    nothing = torch.optim.SGD(model.parameters(), lr=0.0)
    config = replace(QUICK, clip_norm=1e-3)
    total, count = optimizer_step(model, nothing, ids, 0.5, config, "fp32")
    assert count == (ids[:, 1:] != 0).sum().item()
    assert total / count == pytest.approx(expected, rel=1e-6)
    assert nothing.param_groups[0]["lr"] == 0.5
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_accumulation_counts_optimizer_steps_and_steps_the_rest_of_an_epoch():
    """60 stories in mini-batches of 8, three to a step: 24, 24 and 12. The same run with
    mini-batches of 24 is the same.
    """
    runs = []
    for batch_size, steps in ((8, 3), (24, 1)):
        config = replace(QUICK, epochs=2, batch_size=batch_size, accumulation_steps=steps)
        runs.append(train(made_model().double(), TOKENIZER, made_stories(), config))
    assert runs[0].column("step") == [1, 2, 3, 4, 5, 6]
    assert runs[0].column("tokens") == runs[1].column("tokens")
    assert runs[0].column("learning_rate") == runs[1].column("learning_rate")
    for name in ("train_loss", "validation_loss"):
        assert runs[0].column(name) == pytest.approx(runs[1].column(name), rel=1e-12)


def test_a_run_that_recomputes_is_the_same_run():
    runs = []
    for segments in ((), (2,)):
        config = replace(QUICK, dropout=0.1, recompute_segments=segments)
        runs.append(train(made_model(), TOKENIZER, made_stories(), config))
    assert runs[0].column("validation_loss") == runs[1].column("validation_loss")


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation(tmp_path, run_here, capsys):
    """Their last step of an epoch is ragged: 67 stories are 4 times 16, and 3 that leave one
    process a single story.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = start("train_in_processes", 2, tmp_path / "run0", launcher=torchrun)
    assert done.returncode == 0, done.stderr
    run_here("train_in_processes", 4, tmp_path / "run1")
    # Before the last line, old versions of Gloo say who is there.
    curves = [json.loads(out.splitlines()[-1]) for out in (done.stdout, capsys.readouterr().out)]
    assert len(curves[0][0]) == 50
    assert curves[0][:2] == curves[1][:2]  # steps and tokens
    for ours, alone in zip(curves[0][2:], curves[1][2:], strict=True):
        assert ours == pytest.approx(alone, abs=1e-9)
    files = sorted(path.name for path in (tmp_path / "run0").iterdir())
    assert files == ["log.csv", "resume.safetensors", "timing.csv"]


# --- Resuming -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, run_here):
    """200 steps at once, in this process, against 120 steps, a dead process, and a new one that
    continues from the file of step 112 (an epoch's end): weights, optimizer and log.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_here("run_to_resume", whole, "whole")
    assert start("run_to_resume", parts, "interrupt").returncode == 9
    assert not (parts / "model.safetensors").exists()
    assert start("run_to_resume", parts, "resume").returncode == 0
    for name in ("resume.safetensors", "model.safetensors"):
        one, other = load_file(whole / name), load_file(parts / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert any(key.startswith("optimizer.") for key in load_file(whole / "resume.safetensors"))
    assert (whole / "log.csv").read_bytes() == (parts / "log.csv").read_bytes()
    assert len((whole / "log.csv").read_text().splitlines()) > 25
    assert not list(tmp_path.rglob("*.partial"))


def test_a_compiled_model_trains_and_is_saved_as_the_model_that_it_wraps(tmp_path):
    """Weight decay spares its word vectors too; the run may be resumed with a plain model."""
    config = replace(QUICK, max_steps=3, weight_decay=0.5)
    plain, wrapped, stories = made_model(), made_model(), made_stories()
    train(plain, TOKENIZER, stories, config)
    compiled = torch.compile(wrapped, backend="eager")
    train(compiled, TOKENIZER, stories, replace(config, folder=str(tmp_path)))
    for ours, theirs in zip(wrapped.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    for place in (tmp_path, tmp_path / "resume.safetensors"):
        again = made_model(seed=1)
        train(again, TOKENIZER, stories, config, resume_from=place)
        assert torch.equal(again.output.weight, wrapped.output.weight)


def test_resuming_another_run_is_refused(tmp_path):
    """Before anything changes: the model is as it was."""
    train(made_model(), TOKENIZER, made_stories(), replace(QUICK, folder=str(tmp_path)))

    def refused(message, config=QUICK, stories=70, error=ValueError, folder=tmp_path, **sizes):
        model = made_model(seed=3, **sizes)
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(error, match=message):
            train(model, TOKENIZER, made_stories(stories), config, resume_from=folder)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))

    refused(r"learning_rate: 0\.002 there, 0\.1 here", replace(QUICK, learning_rate=0.1))
    refused(r"seed: 0 there, 99 here", replace(QUICK, seed=99))
    refused("holds another run .*stories: ", stories=60)
    refused(r"model: .*'num_heads': 2.* there, .*'num_heads': 4", num_heads=4)
    elsewhere = tmp_path / "elsewhere"
    refused("no run to resume", error=FileNotFoundError, folder=elsewhere)
    path = tmp_path / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    refused("delete it and start the run again")


def test_a_resumed_run_keeps_the_precision_that_was_picked(tmp_path, monkeypatch):
    config = replace(QUICK, precision="auto", folder=str(tmp_path), epochs=1)
    monkeypatch.setattr(training, "pick_precision", lambda device: "bf16")
    train(made_model(), TOKENIZER, made_stories(), config)
    monkeypatch.setattr(training, "pick_precision", lambda device: "fp32")
    assert train(made_model(), TOKENIZER, made_stories(), config, resume_from=tmp_path).rows


# --- Runs that go wrong ---------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(tmp_path):
    stories, config = made_stories(), replace(QUICK, folder=str(tmp_path))
    train(made_model(), TOKENIZER, stories, replace(config, epochs=1))
    kept = (tmp_path / "resume.safetensors").read_bytes()
    model = made_model()
    with torch.no_grad():
        model.output.bias[5] = float("nan")
    with pytest.raises(FloatingPointError, match=r"^step 1: .*nan.*: lower learning_rate=0.002"):
        train(model, TOKENIZER, stories, config)
    assert (tmp_path / "resume.safetensors").read_bytes() == kept
    assert not model.training


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(tmp_path):
    config = replace(QUICK, folder=str(tmp_path), save_every=1)
    model, steps = made_model(), []

    def spoil(gradient):
        steps.append(1)
        return gradient * math.inf if len(steps) == 3 else gradient

    model.output.bias.register_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"^step 3: .* gradient's length (nan|inf): lower"):
        train(model, TOKENIZER, made_stories(), config)
    saved = load_file(tmp_path / "resume.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    config = replace(config, save_every=None)
    again = train(made_model(), TOKENIZER, made_stories(), config, resume_from=tmp_path)
    assert again.rows[-1]["step"] == 16


def test_weights_that_overflow_are_not_called_trained():
    config = replace(QUICK, learning_rate=1e30, warmup_steps=0, max_steps=1)
    with pytest.raises(FloatingPointError, match=r"^step 1: the validation loss is nan: lower"):
        train(made_model(), TOKENIZER, made_stories(), config)


def test_a_vocabulary_larger_than_the_table_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 34 is larger than the model's table of 20"):
        train(made_model(vocab_size=20), TOKENIZER, made_stories(), QUICK)


def test_a_device_that_is_not_there_is_refused():
    message = "device='tpu' is not on this machine: choose 'auto', or one of"
    with pytest.raises(ValueError, match=message):
        train(made_model(), TOKENIZER, made_stories(), replace(QUICK, device="tpu"))


def test_one_string_is_no_list_of_texts():
    for texts in ("w1 w2", None, [], {"w1": 1}, iter(["w1"]), ["w1", None]):
        with pytest.raises(ValueError, match=r"^texts=.*: must be a list of strings, at least one"):
            encode_stories(TOKENIZER, texts, 5)


def test_a_trained_model_belongs_to_its_tokenizer():
    model = made_model()
    train(model, TOKENIZER, made_stories(), replace(QUICK, max_steps=1))
    other = made_model()
    with pytest.raises(ValueError, match="is not on this machine"):
        train(other, TOKENIZER, made_stories(), replace(QUICK, device="tpu"))
    assert other.tokenizer_digest is None  # nothing has happened
    with pytest.raises(ValueError, match="the tokenizer is another model's"):
        train(model, WordTokenizer(TOKENIZER.words[::-1]), made_stories(), QUICK)
