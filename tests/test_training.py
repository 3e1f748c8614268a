"""Training: the loss, the schedule, exact resume, checkpoints, and what is said when something is
wrong.
"""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from helpers import training
from helpers.decoding import generate
from helpers.grammar import entropy_floor
from helpers.files import read_json, write_json
from helpers.model import Decoder, ModelConfig
from helpers.stories import Stories, load_stories
from helpers.tokenizer import WordTokenizer
from helpers.training import (
    CHECKPOINTS,
    FORMAT,
    TrainingConfig,
    _LossSum,
    _update,
    encode_stories,
    learning_rate_at,
    load_checkpoint,
    load_or_train,
    loss_sum,
    mean_loss,
    pick_precision,
    save_checkpoint,
    train,
)

WORDS = [f"w{i}" for i in range(30)]
SIZES = {
    "embedding_dim": 12,
    "d_model": 16,
    "num_layers": 2,
    "num_heads": 2,
    "d_ff": 32,
    "context_length": 12,
}


def made_stories(n=70):
    """Each story counts upwards from a start of its own: easy to learn, of unequal lengths."""
    texts = [" ".join(WORDS[(i + k) % 30] for k in range(4 + i % 11)) for i in range(n)]
    return Stories("made", texts[10:], texts[:10])


def made_model(seed=0, **changes):
    torch.manual_seed(seed)
    return Decoder(ModelConfig(**({"vocab_size": 40} | SIZES | changes)))


TOKENIZER = WordTokenizer(WORDS)
QUICK = TrainingConfig(
    batch_size=8, epochs=2, warmup_steps=4, precision="fp32", device="cpu", validate_every=5
)


def test_the_loss_is_pytorchs_cross_entropy_over_real_tokens():
    model = made_model().double()
    ids = encode_stories(TOKENIZER, made_stories().train, 12).long()
    total, count = loss_sum(model, ids, TOKENIZER.pad_id)
    logits = model(ids[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
    assert count == (ids[:, 1:] != 0).sum()
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-12)
    (total / count).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected.backward()
    for name, p in model.named_parameters():
        assert (ours[name] - p.grad).abs().max() <= 1e-12 * max(1.0, p.grad.abs().max()), name


def test_padding_changes_nothing():
    model = made_model()
    short = encode_stories(TOKENIZER, ["w1 w2 w3"], 5)
    padded = encode_stories(TOKENIZER, ["w1 w2 w3"], 12)
    assert mean_loss(model, short, 0, "fp32") == pytest.approx(
        mean_loss(model, padded, 0, "fp32"), rel=1e-6
    )


def test_mean_loss_weighs_tokens_not_batches():
    model, stories = made_model(), made_stories()
    ids = encode_stories(TOKENIZER, stories.train, 12)
    assert mean_loss(model, ids, 0, "fp32", batch_size=7) == pytest.approx(
        mean_loss(model, ids, 0, "fp32"), rel=1e-6
    )


def test_the_comparison_protocol_overwrites_the_last_token_of_a_cut_story():
    texts = ["w1 w2 w3 w4 w5", "w1 w2", "w1 w2 w3"]
    assert encode_stories(TOKENIZER, texts, 5).tolist() == [
        [1, 5, 6, 7, 8],
        [1, 5, 6, 2, 0],
        [1, 5, 6, 7, 2],
    ]
    assert encode_stories(TOKENIZER, texts, 5, overwrite_eos=True).tolist()[0] == [1, 5, 6, 7, 2]
    assert encode_stories(TOKENIZER, texts, 5, overwrite_eos=True).tolist()[1:] == [
        [1, 5, 6, 2, 0],
        [1, 5, 6, 7, 2],
    ]


def test_baseline_is_the_assignments_recipe():
    config = TrainingConfig.baseline(epochs=1)
    assert (config.learning_rate, config.weight_decay, config.batch_size, config.schedule) == (
        3e-4,
        0.0,
        32,
        "constant",
    )
    assert (config.betas, config.clip_norm, config.warmup_steps) == ((0.9, 0.999), None, 0)
    assert (config.dropout, config.overwrite_eos, config.epochs) == (0.1, True, 1)
    assert TrainingConfig.baseline().epochs == 3
    assert TrainingConfig().overwrite_eos is False


def test_schedule_warms_up_then_falls_to_zero():
    config = TrainingConfig(learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate_at(step, 110, config) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    constant = replace(config, schedule="constant")
    assert learning_rate_at(100, 110, constant) == 1.0


def test_training_learns_and_records():
    model = made_model()
    rows_seen = []
    history = train(
        model,
        TOKENIZER,
        made_stories(),
        replace(QUICK, epochs=10, learning_rate=1e-2),
        on_validation=lambda row, _: rows_seen.append(row["step"]),
    )
    assert (
        history.column("step")
        == rows_seen
        == sorted({1, 2, 4, 8, 16, 32, 64, *range(5, 81, 5), *range(8, 81, 8)})
    )
    assert set(history.rows[0]) == {
        "step",
        "tokens",
        "learning_rate",
        "train_loss",
        "validation_loss",
        "seconds",
    }
    # The first word (1 of 30) and the end cannot be foreseen; all between can.
    assert (
        history.rows[-1]["validation_loss"]
        < 1.3
        < 3.0
        < history.rows[0]["train_loss"]
        < math.log(40) + 0.3
    )
    ids = encode_stories(TOKENIZER, made_stories().train, 12)
    assert history.rows[-1]["tokens"] == 10 * (ids[:, 1:] != 0).sum().item()
    assert not model.training


def test_training_leaves_the_callers_random_stream_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
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
    model.load_vectors(torch.randn(40, 12), freeze=True)
    before = model.embedding.weight.clone()
    train(model, TOKENIZER, made_stories(), replace(QUICK, weight_decay=0.1))
    assert torch.equal(model.embedding.weight, before)


def accumulated_gradient(model, ids, batch_size):
    """What one optimizer step of the training loop leaves in .grad, its mini-batches being of
    batch_size stories.
    """
    nothing = torch.optim.SGD(model.parameters(), lr=0.0)
    steps = math.ceil(len(ids) / batch_size)
    config = replace(QUICK, batch_size=batch_size, accumulation_steps=steps, clip_norm=None)
    _update(_LossSum(model, 0), nothing, ids, 0, 0.0, 0, config, "fp32")
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


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
    generator = torch.Generator().manual_seed(seed)
    texts = [
        " ".join(f"w{i}" for i in torch.randint(0, 30, (n,), generator=generator).tolist())
        for n in lengths
    ]
    ids = encode_stories(TOKENIZER, texts, 12).long()
    model = made_model(seed).double()
    whole = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
    expected = gradient(model, whole)
    difference = accumulated_gradient(model, ids, batch_size) - expected
    assert difference.abs().max() < 1e-12 * expected.abs().max()


def test_the_mean_of_the_mini_batches_means_is_another_gradient():
    ids = encode_stories(TOKENIZER, ["w1 w2", "w3 w4 w5 w6 w7 w8 w9 w10 w11"], 12).long()
    model = made_model().double()
    means = [total / count for total, count in (loss_sum(model, row, 0) for row in ids.split(1))]
    expected = gradient(
        model,
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0),
    )
    assert (gradient(model, sum(means) / 2) - expected).abs().max() > 0.1 * expected.abs().max()


def test_accumulation_counts_optimizer_steps_and_steps_the_rest_of_an_epoch():
    """60 stories in mini-batches of 8, three to a step: 24, 24 and 12. The same run with
    mini-batches of 24 is the same.
    """
    stories = made_stories()
    runs = [
        train(
            made_model().double(),
            TOKENIZER,
            stories,
            replace(QUICK, epochs=2, batch_size=b, accumulation_steps=a),
        )
        for b, a in ((8, 3), (24, 1))
    ]
    assert runs[0].column("step") == [1, 2, 3, 4, 5, 6]
    assert runs[0].column("tokens") == runs[1].column("tokens")
    assert runs[0].column("learning_rate") == runs[1].column("learning_rate")
    for name in ("train_loss", "validation_loss"):
        assert runs[0].column(name) == pytest.approx(runs[1].column(name), rel=1e-12)


def test_checkpointed_training_is_the_same_run():
    config = replace(QUICK, dropout=0.1)
    runs = [
        train(
            made_model(), TOKENIZER, made_stories(), replace(config, checkpoint_segments=segments)
        )
        for segments in ((), (2,))
    ]
    assert runs[0].column("validation_loss") == runs[1].column("validation_loss")


IN_PROCESSES = """
import json, os, sys
sys.path[:0] = ["tests", "."]
from dataclasses import replace
import torch.distributed as dist
from test_training import QUICK, TOKENIZER, made_model, made_stories
from helpers.training import train
if "WORLD_SIZE" in os.environ:
    dist.init_process_group("gloo")
rank = int(os.environ.get("RANK", 0))
config = replace(QUICK, batch_size=4, accumulation_steps=int(sys.argv[1]), validate_every=1,
                 epochs=100, max_steps=50,
                 weight_decay=0.1, checkpoint_segments=(2,))
seen = []
model = made_model(seed=rank).double()  # the others' weights do not matter
config = replace(config, folder=sys.argv[2])
history = train(model, TOKENIZER, made_stories(77), config, on_validation=lambda *_: seen.append(1))
assert len(seen) == (50 if rank == 0 else 0)
if rank == 0:
    names = ("step", "tokens", "train_loss", "validation_loss")
    print(json.dumps([history.column(name) for name in names]))
if dist.is_initialized():
    dist.destroy_process_group()
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def test_two_processes_are_one_with_twice_the_accumulation(tmp_path):
    """Their last step of an epoch is ragged: 67 stories are 4 times 16, and 3 that leave one
    process a single story.
    """
    script = tmp_path / "run.py"
    script.write_text(IN_PROCESSES)
    curves = []
    for command in ([*TORCHRUN, "2", script, "2"], [sys.executable, script, "4"]):
        folder = str(tmp_path / f"run{len(curves)}")
        done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        curves.append(
            json.loads(done.stdout.splitlines()[-1])
        )  # before it, old versions of Gloo say who is there
    assert len(curves[0][0]) == 50
    assert curves[0][:2] == curves[1][:2]  # steps and tokens
    for ours, alone in zip(curves[0][2:], curves[1][2:], strict=True):
        assert ours == pytest.approx(alone, abs=1e-9)
    assert sorted(path.name for path in (tmp_path / "run0").iterdir()) == [
        "log.csv",
        "resume.safetensors",
        "timing.csv",
    ]


def test_the_command_trains_resumes_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "vectors"))
    corpus = tmp_path / "counting.txt"
    corpus.write_text(
        "<|endoftext|>".join(f"w{i % 30} w{i // 30} w{i * 7 % 30}." for i in range(560))
    )
    options = [
        "--corpus",
        corpus,
        "--folder",
        tmp_path / "run",
        "--checkpoint",
        tmp_path / "model",
        "--epochs",
        "1",
    ]
    options += [
        "--batch-size",
        "8",
        "--accumulation-steps",
        "2",
        "--betas",
        "(0.9, 0.99)",
        "--precision",
        "fp32",
    ]
    options = [
        *map(str, options),
        "--device",
        "cpu",
        "--overwrite-eos",
        "false",
        "--clip-norm",
        "none",
    ]

    def refused(code, *more):
        """What the command says when it ends with this code: a sentence."""
        with pytest.raises(SystemExit) as ended:
            training.main([*options, *more])
        assert ended.value.code == code
        return capsys.readouterr().err

    command = [*TORCHRUN, "2", "-m", "helpers.training", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"step 2: validation loss \d\.\d+ nats per token; model in .*model", done.stdout
    )
    model, _, metadata = load_checkpoint(tmp_path / "model")
    assert (metadata["step"], model.num_parameters()) == (2, 8_940_768)
    assert "model is there already" in refused(2)
    (tmp_path / "model").rename(tmp_path / "old")
    assert "run holds a run already: go on with it by --resume" in refused(2)
    assert re.fullmatch(
        r"helpers\.training: \S+ belongs to another run .*processes: 2 there, 1 here.*\n",
        refused(1, "--resume"),
    )
    assert refused(2, "--epochs", "many").endswith(
        "error: epochs='many': must be a whole number of at least 1\n"
    )
    (tmp_path / "file").touch()
    assert "a file has the name of its folder" in refused(
        1, "--checkpoint", str(tmp_path / "file" / "model"), "--resume"
    )
    corpus.write_text("")
    empty = refused(1, "--folder", str(tmp_path / "2026"))  # a number may be a name
    assert re.fullmatch(r"helpers\.training: \S*counting\.txt is empty: give .*\n", empty)


RUN = """
import sys
sys.path[:0] = ["tests", "."]
from dataclasses import replace
from test_training import QUICK, TOKENIZER, made_model, made_stories
from helpers.training import train, save_checkpoint
folder, mode = sys.argv[1:]
config = replace(QUICK, epochs=25, dropout=0.1, folder=folder, checkpoint_every=100,
                 validate_every=30, weight_decay=0.1)

def stop(row, model):
    if mode == "interrupt" and row["step"] == 120:
        raise SystemExit(9)

model = made_model(seed=1 if mode == "resume" else 0)
train(model, TOKENIZER, made_stories(), config, on_validation=stop,
      resume_from=folder if mode == "resume" else None)
save_checkpoint(folder + "/model", model, TOKENIZER)
"""


def run(folder, mode):
    return subprocess.run(
        [sys.executable, "-c", RUN, str(folder), mode], capture_output=True, text=True, check=False
    )


def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path):
    """200 steps at once, against 120 steps, a dead process, and a new one that goes on from the
    file of step 112 (an epoch's end): weights, optimizer and log.
    """
    assert run(tmp_path / "whole", "whole").returncode == 0
    assert run(tmp_path / "parts", "interrupt").returncode == 9
    assert not (tmp_path / "parts" / "model").exists()
    assert run(tmp_path / "parts", "resume").returncode == 0
    for name in ("resume.safetensors", "model/model.safetensors"):
        whole, parts = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole), name
    assert any(
        key.startswith("optimizer.") for key in load_file(tmp_path / "whole" / "resume.safetensors")
    )
    assert (tmp_path / "whole" / "log.csv").read_bytes() == (
        tmp_path / "parts" / "log.csv"
    ).read_bytes()
    assert len((tmp_path / "whole" / "log.csv").read_text().splitlines()) > 25
    assert not list(tmp_path.rglob("*.partial"))


def test_resuming_another_run_is_refused(tmp_path):
    train(made_model(), TOKENIZER, made_stories(), replace(QUICK, folder=str(tmp_path)))
    with pytest.raises(ValueError, match=r"learning_rate: 0\.002 there, 0\.1 here"):
        train(
            made_model(),
            TOKENIZER,
            made_stories(),
            replace(QUICK, learning_rate=0.1),
            resume_from=tmp_path,
        )
    with pytest.raises(ValueError, match="stories: "):
        train(made_model(), TOKENIZER, made_stories(60), QUICK, resume_from=tmp_path)
    with pytest.raises(ValueError, match=r"model: .*'num_heads': 2.* there, .*'num_heads': 4"):
        train(made_model(num_heads=4), TOKENIZER, made_stories(), QUICK, resume_from=tmp_path)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        train(made_model(), TOKENIZER, made_stories(), QUICK, resume_from=tmp_path / "elsewhere")
    (tmp_path / "resume.safetensors").write_bytes(
        (tmp_path / "resume.safetensors").read_bytes()[:500]
    )
    with pytest.raises(ValueError, match="delete it and start the run again"):
        train(made_model(), TOKENIZER, made_stories(), QUICK, resume_from=tmp_path)


FORGED = {
    "moments of one number": lambda t, s, i: t.update(
        {n: torch.zeros(1) for n in t if ".exp_avg" in n}
    ),
    "no moments": lambda t, s, i: [t.pop(n) for n in [*t] if n.startswith("optimizer.")],
    "one moment too few": lambda t, s, i: t.pop("optimizer.0.exp_avg_sq"),
    "one moment too many": lambda t, s, i: t.update({"optimizer.999.exp_avg": torch.zeros(3)}),
    "a moment of no number": lambda t, s, i: t.update({"optimizer.zero.exp_avg": torch.zeros(3)}),
    "weights of another shape": lambda t, s, i: t.update({"model.norm.gain": torch.zeros(3)}),
    "no step": lambda t, s, i: s.pop("step"),
    "a word for the step": lambda t, s, i: s.update(step="2"),
    "a negative step": lambda t, s, i: s.update(step=-3),
    "no rows": lambda t, s, i: s.pop("rows"),
    "rows of numbers": lambda t, s, i: s.update(rows=[1, 2]),
    "rows that lack a column": lambda t, s, i: s["rows"][0].pop("tokens"),
    "another config": lambda t, s, i: i.update(seed=99),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_to_resume_from_is_refused_though_its_checksum_fits(tmp_path, name):
    """Wrong moments would make the optimizer write outside of its memory."""
    train(made_model(), TOKENIZER, made_stories(), replace(QUICK, epochs=1, folder=str(tmp_path)))
    saved = training._read_run(tmp_path)
    FORGED[name](saved.tensors, saved.state, saved.identity)
    texts = {"state": json.dumps(saved.state), "identity": json.dumps(saved.identity)}
    metadata = texts | {
        "format": str(FORMAT),
        "sha256": training._digest(saved.tensors, *texts.values()),
    }
    save_file(saved.tensors, tmp_path / "resume.safetensors", metadata)
    with pytest.raises(ValueError, match=r"resume\.safetensors (cannot be read|holds|belongs)"):
        train(
            made_model(), TOKENIZER, made_stories(), replace(QUICK, epochs=1), resume_from=tmp_path
        )


@pytest.mark.parametrize("text", ["[]", "null", "1", "[" * 100_000])
def test_a_file_to_resume_from_with_another_state_is_refused(tmp_path, text):
    for texts in (
        {"state": text, "identity": "{}"},
        {"state": json.dumps(training._BEGINNING), "identity": text},
    ):
        metadata = texts | {"format": str(FORMAT), "sha256": training._digest({}, *texts.values())}
        save_file({}, tmp_path / "resume.safetensors", metadata)
        with pytest.raises(ValueError, match="delete it and start the run again"):
            training._read_run(tmp_path)
    save_file({}, tmp_path / "resume.safetensors", metadata | {"format": "3"})
    with pytest.raises(
        ValueError, match=r"has format 3, this code reads 2.*: update the code, or delete it"
    ):
        training._read_run(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(tmp_path):
    stories, config = made_stories(), replace(QUICK, folder=str(tmp_path))
    train(made_model(), TOKENIZER, stories, replace(config, epochs=1))
    kept = (tmp_path / "resume.safetensors").read_bytes()
    model = made_model()
    with torch.no_grad():
        model.output.bias[5] = float("nan")
    with pytest.raises(FloatingPointError, match=r"nan at step 1: lower learning_rate=0.002"):
        train(model, TOKENIZER, stories, config)
    assert (tmp_path / "resume.safetensors").read_bytes() == kept


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(tmp_path):
    config, model, steps = (
        replace(QUICK, folder=str(tmp_path), checkpoint_every=1),
        made_model(),
        [],
    )

    def spoil(gradient):
        steps.append(1)
        return gradient * math.inf if len(steps) == 3 else gradient

    model.output.bias.register_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"gradient's length (nan|inf) at step 3"):
        train(model, TOKENIZER, made_stories(), config)
    assert all(
        tensor.isfinite().all() for tensor in load_file(tmp_path / "resume.safetensors").values()
    )
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    again = train(
        made_model(),
        TOKENIZER,
        made_stories(),
        replace(config, checkpoint_every=None),
        resume_from=tmp_path,
    )
    assert again.rows[-1]["step"] == 16


def test_weights_that_overflow_are_not_called_trained():
    config = replace(QUICK, learning_rate=1e30, warmup_steps=0, max_steps=1)
    with pytest.raises(FloatingPointError, match="the validation loss is nan after step 1"):
        train(made_model(), TOKENIZER, made_stories(), config)


def test_a_resumed_run_keeps_the_precision_that_was_picked(tmp_path, monkeypatch):
    config = replace(QUICK, precision="auto", folder=str(tmp_path))
    monkeypatch.setattr(training, "pick_precision", lambda device: "bf16")
    train(made_model(), TOKENIZER, made_stories(), replace(config, epochs=1))
    monkeypatch.setattr(training, "pick_precision", lambda device: "fp32")
    assert train(
        made_model(), TOKENIZER, made_stories(), replace(config, epochs=1), resume_from=tmp_path
    ).rows


def test_a_vocabulary_larger_than_the_table_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 34 is larger than the model's table of 20"):
        train(made_model(vocab_size=20), TOKENIZER, made_stories(), QUICK)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": "many"},
        {"validate_every": 1.5},
        {"max_steps": 0},
        {"checkpoint_every": 0},
        {"warmup_steps": -1},
        {"learning_rate": float("nan")},
        {"weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
        {"betas": 0.9},
        {"clip_norm": 0},
        {"dropout": 1.0},
        {"checkpoint_segments": 3},
        {"checkpoint_segments": (0,)},
        {"schedule": "linear"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))}: must be [\w']"):
        TrainingConfig(**changes)


@pytest.mark.parametrize("device", ["tpu", ""] + ["mps"] * (not torch.backends.mps.is_available()))
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(
        ValueError, match=f"device={device!r} is not on this machine: choose 'auto', or one of"
    ):
        train(made_model(), TOKENIZER, made_stories(), replace(QUICK, device=device))


def test_precision_is_one_that_the_hardware_gains_by():
    assert pick_precision("cpu") in ("bf16", "fp32")
    assert pick_precision("mps") == "fp32"


def test_checkpoint_round_trip(tmp_path):
    model = made_model()
    save_checkpoint(tmp_path / "run", model, TOKENIZER, {"loss": 1.5})
    save_checkpoint(tmp_path / "run", model, TOKENIZER, {"loss": 1.25})  # replaces the first
    again, tokenizer, metadata = load_checkpoint(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert metadata == {"loss": 1.25}
    assert tokenizer.words == WORDS
    assert again.config == model.config
    ids = torch.tensor([[1, 5, 6, 7]])
    assert torch.equal(again(ids), model.eval()(ids))


def test_half_size_checkpoint_keeps_the_weights_to_bf16(tmp_path):
    model = made_model()
    save_checkpoint(tmp_path / "run", model, TOKENIZER, dtype=torch.bfloat16)
    again, _, _ = load_checkpoint(tmp_path / "run")
    for name, tensor in model.state_dict().items():
        assert again.state_dict()[name].dtype == torch.float32
        assert torch.equal(again.state_dict()[name], tensor.bfloat16().float()), name


def change_config(folder: Path, format=FORMAT, **changes):
    write_json(folder / "config.json", read_json(folder / "config.json", FORMAT) | changes, format)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), FileNotFoundError, "is missing"),
        (
            lambda f: (f / "config.json").write_text("{"),
            ValueError,
            "config.json is not what was saved",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\x10" + bytes(20)),
            ValueError,
            "cannot be read as a checkpoint",
        ),
        (
            lambda f: change_config(f, format=3),
            ValueError,
            "config.json has format 3, this code reads format 2",
        ),
        (
            lambda f: change_config(f, model={"d_models": 8}),
            ValueError,
            "cannot be read as a checkpoint",
        ),
        (
            lambda f: change_config(f, model={"vocab_size": 40} | SIZES | {"d_ff": 64}),
            ValueError,
            "model of another shape",
        ),
        (
            lambda f: save_file({"a": torch.zeros(1)}, f / "model.safetensors"),
            ValueError,
            "holds other weights",
        ),
        (
            lambda f: WordTokenizer(["a"]).save(f / "tokenizer.json"),
            ValueError,
            "is not the one that its config",
        ),
        (
            lambda f: write_json(
                f / "config.json", {"model": SIZES, "metadata": {}, "weights_sha256": ""}, FORMAT
            ),
            ValueError,
            "cannot be read as a checkpoint",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_words(tmp_path, damage, error, message):
    save_checkpoint(tmp_path / "run", made_model(), TOKENIZER)
    damage(tmp_path / "run")
    with pytest.raises(error, match=message):
        load_checkpoint(tmp_path / "run")


def test_a_tokenizer_of_another_model_is_neither_saved_nor_loaded_with_it(tmp_path):
    other = WordTokenizer([f"w{i}" for i in range(100)])
    with pytest.raises(
        ValueError, match="vocabulary of 104 is larger than the model's table of 40"
    ):
        save_checkpoint(tmp_path / "run", made_model(), other)
    assert list(tmp_path.iterdir()) == []
    save_checkpoint(tmp_path / "run", made_model(), TOKENIZER)
    other.save(tmp_path / "run" / "tokenizer.json")
    digest = hashlib.sha256((tmp_path / "run" / "tokenizer.json").read_bytes()).hexdigest()
    change_config(tmp_path / "run", tokenizer_sha256=digest)
    with pytest.raises(ValueError, match="vocabulary of 104 is larger"):
        load_checkpoint(tmp_path / "run")


def test_a_replacement_that_was_killed_is_found_under_its_own_name_only(tmp_path, monkeypatch):
    """The folder of a checkpoint is gone, the new one is whole beside it: of `kept.v2`, and not of
    `kept`.
    """
    save_checkpoint(tmp_path / "models" / "kept.v2", made_model(), TOKENIZER, {"is": "v2"})
    left = tmp_path / "models" / ".kept.v2.0123abcd.new"
    (tmp_path / "models" / "kept.v2").rename(left)
    os.utime(left, (0, 0))  # long ago
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "models" / "kept")
    save_checkpoint(tmp_path / "models" / "kept", made_model(), TOKENIZER, {"is": "kept"})
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("models/kept.v2")[2] == {"is": "v2"}  # it reads like a name of the Hub
    assert load_checkpoint("models/kept")[2] == {"is": "kept"}


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 10**12},
        {"embedding_dim": 10**12},
        {"d_model": 8 * 10**9},
        {"num_layers": 10**12},
        {"d_ff": 10**12},
        {"context_length": 10**6},
        {"d_ff": 32.0},
        {"dropout": "much"},
    ],
    ids=str,
)
def test_a_config_that_asks_for_more_than_the_weights_are_is_refused_before_memory_is(
    tmp_path, sizes
):
    """With checksums that fit: a stranger may have written them. Such a model would need terabytes,
    or for ever to build.
    """
    save_checkpoint(tmp_path / "run", made_model(), TOKENIZER)
    change_config(tmp_path / "run", model=asdict(made_model().config) | sizes)
    with pytest.raises(
        ValueError, match=r"run (holds a model of another shape|asks for a model|cannot be read)"
    ):
        load_checkpoint(tmp_path / "run")


def test_a_missing_model_is_trained_once_and_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "vectors"))
    corpus = tmp_path / "counting.txt"
    corpus.write_text(
        "<|endoftext|>".join(f"w{i % 30} w{i // 30} w{i * 7 % 30}." for i in range(600))
    )
    folder = tmp_path / "kept"
    config = replace(QUICK, epochs=1, max_steps=2)
    model, _, metadata = load_or_train(corpus, config, folder)
    assert "kept: no trained model yet; training takes about" in capsys.readouterr().out
    assert model.num_parameters() == 8_940_768
    assert (metadata["corpus"], metadata["step"]) == ("counting", 2)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    corpus.unlink()  # it is read no more
    folder.rename(
        tmp_path / ".kept.0123abcd.new"
    )  # as a process leaves it that is killed while it replaces a checkpoint
    again, _, _ = load_or_train(corpus, config, folder)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert capsys.readouterr().out == ""


def test_the_committed_model_is_the_one_it_says():
    """It reaches the loss that its metadata claims, which is close above the floor."""
    model, tokenizer, metadata = load_or_train("bundled")
    stories = load_stories("bundled", train=1, validation=100)
    ids = encode_stories(tokenizer, stories.validation, 64)
    loss, floor = mean_loss(model, ids, tokenizer.pad_id, "fp32"), entropy_floor(stories, 64)
    assert floor < loss < floor + 0.1
    assert loss == pytest.approx(
        metadata["validation_loss"], abs=0.05
    )  # the mean of 500 stories, not of 100
    assert sum(path.stat().st_size for path in CHECKPOINTS.joinpath("bundled").iterdir()) < 10e6
