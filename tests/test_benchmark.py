"""The benchmark measures what it says: peers of the same size and work, limits, and ratios turn by
turn.
"""

import math
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from helpers.model import Decoder, ModelConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "report"))
benchmark = import_module("benchmark")

TINY = ModelConfig(
    vocab_size=40,
    embedding_dim=12,
    d_model=16,
    num_layers=2,
    num_heads=2,
    d_ff=32,
    context_length=12,
    dropout=0.0,
)


def test_a_ratio_is_the_median_of_the_turns():
    found = benchmark.ratio([1.0, 2.0, 1.0], [3.0, 2.0, 2.0])
    assert found == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert benchmark.rate(10, [1.0, 2.0, 5.0]) == {"median": 5.0, "low": 2.0, "high": 10.0}


def test_runs_take_turns_after_one_to_warm_up():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = benchmark.in_turns(runs, 2)
    assert order == list("ababab")
    assert [len(turns) for turns in seconds.values()] == [2, 2]
    order.clear()
    benchmark.in_turns(runs, 1, before=lambda name: order.append(name.upper()))
    assert "".join(order) == "AaaBbb" * 2  # the second run of a pair is the timed one


def test_the_goal_is_passed_between_two_records():
    rows = [
        {"step": step, "validation_loss": loss} for step, loss in ((1, 5.0), (100, 4.0), (200, 3.0))
    ]
    assert benchmark.steps_to(math.exp(3.25), rows) == pytest.approx(175)
    assert benchmark.steps_to(math.exp(4.0), rows) == pytest.approx(100)
    with pytest.raises(ValueError, match="never reaches"):
        benchmark.steps_to(2.0, rows)


def test_the_peers_have_the_size_of_ours():
    ours = Decoder(benchmark.SIZE).num_parameters()
    earlier = sum(p.numel() for p in benchmark.EarlierModel(benchmark.SIZE).parameters())
    # GPT-2 learns its positions, and has neither a projection nor a bias in its output layer.
    gpt2 = benchmark.gpt2().num_parameters() - 64 * 296 + 300 * 296 + 296 + 4 * 10_000 + 10_000
    assert ours == earlier == gpt2


def test_the_products_are_those_of_the_model():
    model, calls = Decoder(TINY), []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(
                lambda layer, inputs, _: calls.append(
                    (inputs[0][..., 0].numel(), layer.in_features, layer.out_features)
                )
            )
    model(torch.randint(4, 40, (3, 12)))
    assert calls == benchmark.products(TINY, 36)
    # layers, products, operations, tokens of 2 stories, keys, width
    attention = 2 * 2 * 2 * 22 * 11 * 16
    linear = sum(2 * rows * i * o for rows, i, o in benchmark.products(TINY, 22))
    assert benchmark.tflops(TINY, 2) * 1e12 == pytest.approx(3 * (linear + attention))


def test_the_fused_peer_is_the_same_model():
    torch.manual_seed(0)
    ours = Decoder(TINY)
    peer = benchmark.fused(TINY)
    peer.load_state_dict(ours.state_dict())
    ids = torch.randint(4, 40, (3, 12))
    torch.testing.assert_close(peer(ids), ours(ids))


def test_the_part_for_a_gpu_runs(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    found = benchmark.measure_gpu(1, device="cpu", sizes={"tiny": (TINY, 2)})
    assert found["product_tflops"] > 0
    assert 0 < found["tiny"]["utilisation"] < 1
    assert set(found["tiny"]["decoded_tokens_per_second"]) == {1, 64}


@pytest.mark.slow
def test_all_of_it_in_small(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "BATCH", 4)
    numbers = benchmark.measure(1, quick=True)
    assert set(numbers["decoding"]) == {"fp32", "bf16"}
    assert numbers["vectors"]["ours"]["gb"] < 0.1
    assert all(len(row["x"]) == len(row["ms"]) == 2 for row in numbers["scaling"].values())
    assert abs(numbers["perplexity"]["bf16"] / numbers["perplexity"]["fp32"] - 1) < 0.005
    benchmark.show(numbers)
    shown = capsys.readouterr().out
    for text in ("ours, bf16", "fp32, against GPT-2", "2 prompts, 2 beams, fp32", "fasttext"):
        assert text in shown


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ([], "build/benchmark/speed.json"),
        (["--record"], "figures/benchmark/speed.json"),
        (["--quick"], None),
    ],
)
def test_only_a_recording_changes_what_the_repository_carries(
    monkeypatch, tmp_path, options, written
):
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.setattr(benchmark, "measure", lambda turns, quick: {"turns": turns})
    monkeypatch.setattr(benchmark, "show", print)
    monkeypatch.setenv("FIGURES_DIR", str(tmp_path / "figures"))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *options])
    benchmark.main()
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")]
    assert found == ([written] if written else [])
