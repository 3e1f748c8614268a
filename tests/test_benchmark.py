"""The benchmark measures what it says: peers of the same size and work, limits, ratios turn by
turn, and the machine that all of it belongs to.
"""

import json
import math
import os
import re
import time
from types import SimpleNamespace

import pytest
import torch
from support import ROOT, report_script, start

from helpers.decoding import generate
from helpers.model import Decoder, ModelConfig

benchmark, timing, peers = map(report_script, ("benchmark", "timing", "peers"))
on_processor, on_gpu = map(report_script, ("on_processor", "on_gpu"))

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


# Times --------------------------------------------------------------------------------------------


def test_a_ratio_is_taken_turn_by_turn_and_has_quartiles():
    found = timing.ratio([1.0, 2.0, 1.0, 1.0, 1.0], [3.0, 2.0, 2.0, 5.0, 4.0])
    quartiles = {"low": 1.0, "q1": 2.0, "median": 3.0, "q3": 4.0, "high": 5.0}
    assert found == quartiles | {"turns": 5}
    assert timing.TIMES.format(**found) == "3.00 (2.00 to 4.00, lowest 1.00)"
    assert timing.rate(10, [1.0, 2.0, 5.0])["median"] == 5.0
    assert set(timing.ratio([1.0], [2.0]).values()) == {2.0, 1}


def test_runs_take_turns_after_one_to_warm_up():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = timing.in_turns(runs, 2)
    assert order == list("ababab")
    assert [len(turns) for turns in seconds.values()] == [2, 2]
    order.clear()
    timing.in_turns(runs, 1, before=lambda name: order.append(name.upper()))
    assert "".join(order) == "AaaBbb" * 2  # the second run of a pair is the timed one
    assert len(timing.in_turns({"slow": lambda: time.sleep(0.01)}, 9, longest=0.0)["slow"]) == 3


def test_a_busy_machine_is_noticed(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert timing.machine(0.4)["busy"] == []
    (sentence,) = timing.machine(1.25)["busy"]
    assert "load average before the start was 1.2 on 2 cores" in sentence
    steady = {"median": 10.0, "q1": 9.5, "q3": 10.5}
    assert timing.unsteady({"a": steady}) == []
    (sentence,) = timing.unsteady({"a": steady, "b": steady | {"q1": 8.0, "q3": 11.0}})
    assert "1 of 2 rates" in sentence
    assert "(b: 30%)" in sentence


def test_the_machine_is_named(monkeypatch):
    told = {"cpu_name": "Some M5", "neon": True, "bf16": True, "sve": False, "cores": 8}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.delenv(timing.ISA_LIMIT, raising=False)
    found = timing.machine(0.0)
    assert (found["processor"], found["instruction_sets"]) == ("Some M5", ["neon", "bf16"])
    assert found["onednn_limit"] is None
    words = "Some M5 (neon, bf16; PyTorch's kernels: DEFAULT; oneDNN without a limit), "
    assert found["caption"].startswith(words)
    threads = r"\), \d+ threads?, PyTorch "
    assert re.search(threads + re.escape(torch.__version__), found["caption"])
    # A limit that a user set is not the processor as it is, whoever set it.
    monkeypatch.setenv(timing.ISA_LIMIT, "AVX2")
    assert timing.machine(0.0)["onednn_limit"] == "AVX2"
    assert "oneDNN limited to AVX2" in timing.machine(0.0)["caption"]
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert "instruction sets unknown" in timing.machine(0.0)["caption"]


@pytest.mark.parametrize("record", [True, False])
def test_numbers_go_where_they_belong(monkeypatch, tmp_path, record):
    monkeypatch.setattr(timing, "ROOT", tmp_path)
    monkeypatch.setenv("FIGURES_DIR", str(tmp_path / "elsewhere"))
    path = timing.save("speed", {"b": 1 / 3, "a": [1]}, record)
    place = "elsewhere/benchmark" if record else "build/benchmark"
    assert path == tmp_path / place / "speed.json"
    assert json.loads(path.read_text()) == {"a": [1], "b": 0.333333}
    monkeypatch.delenv("FIGURES_DIR")
    assert timing.save("speed", {}, True) == tmp_path / "figures" / "benchmark" / "speed.json"


# Peers --------------------------------------------------------------------------------------------


def test_the_peers_have_the_size_of_ours():
    ours = Decoder(peers.SIZE).num_parameters()
    earlier = sum(p.numel() for p in peers.EarlierModel(peers.SIZE).parameters())
    # GPT-2 learns its positions, and has neither a projection nor a bias in its output layer.
    found = peers.gpt2(peers.SIZE).num_parameters()
    assert ours == earlier == found - 64 * 296 + 300 * 296 + 296 + 4 * 10_000 + 10_000


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
    assert calls == peers.products(TINY, 36)
    assert calls[1:] == peers.products(TINY, 36, projection=False)
    # layers, products, operations, tokens of 2 stories, keys, width
    attention = 2 * 2 * 2 * 22 * 11 * 16
    linear = sum(2 * rows * i * o for rows, i, o in peers.products(TINY, 22))
    assert on_gpu.tflops(TINY, 2) * 1e12 == pytest.approx(3 * (linear + attention))


def test_the_fused_peer_is_the_same_model():
    torch.manual_seed(0)
    ours = Decoder(TINY)
    peer = peers.fused(TINY)
    peer.load_state_dict(ours.state_dict())
    ids = torch.randint(4, 40, (3, 12))
    torch.testing.assert_close(peer(ids), ours(ids))


def test_the_plain_loop_writes_what_generate_writes():
    models = peers.decoding_models(TINY, torch.float64)
    runs = peers.decoding_runs(models, prompts=3, beams=1, new=7)
    assert list(runs) == list(peers.WHO)
    written = [one.ids for one in runs["ours"]()]
    assert runs["plain loop"]().tolist() == written
    assert len({tuple(ids) for ids in written}) > 1, "the prompts should be continued differently"
    model, _, tokenizer = models
    alone = generate(model, tokenizer, ["w0 w1 w2 w3"], max_new_tokens=7, strategy="greedy")
    assert alone[0].ids == written[0]


def test_decoding_is_compared_with_the_plain_loop_if_it_is_greedy():
    models = peers.decoding_models(TINY, torch.float32)
    greedy = peers.decoding_row(models, prompts=2, beams=1, new=7, turns=1)
    beams = peers.decoding_row(models, prompts=2, beams=3, new=7, turns=1)
    assert greedy.keys() == {"work", *peers.WHO, "ratio", "ratio_plain"}
    assert beams.keys() == greedy.keys() - {"plain loop", "ratio_plain"}
    assert (greedy["work"], beams["work"]) == ("2 prompts, greedy", "2 prompts, 3 beams")


@pytest.mark.parametrize("way", ["ours", "pytorchs"])
def test_checkpointing_gives_the_gradient_of_plain_training(way):
    torch.manual_seed(0)
    model = Decoder(TINY)
    ids = peers.some_ids(TINY, 3)  # (3, T)
    gradients = []
    for segments, pytorchs in (((), False), ((2,), way == "pytorchs")):
        peers.checkpointing_pass(model, ids, segments, pytorchs)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients)


# The processor ------------------------------------------------------------------------------------


def test_the_goal_is_passed_between_two_records():
    rows = [
        {"step": step, "validation_loss": loss} for step, loss in ((1, 5.0), (100, 4.0), (200, 3.0))
    ]
    assert on_processor.steps_to(math.exp(3.25), rows) == pytest.approx(175)
    assert on_processor.steps_to(math.exp(4.0), rows) == pytest.approx(100)
    with pytest.raises(ValueError, match="never reaches"):
        on_processor.steps_to(2.0, rows)


@pytest.mark.parametrize(
    ("kind", "operations"),
    [
        ("matrix products", "aten::mm aten::addmm aten::bmm aten::linear"),
        ("casts and copies", "aten::copy_ aten::_to_copy aten::to aten::cat aten::fill_"),
        ("softmax and loss", "aten::_log_softmax aten::_softmax_backward_data aten::exp_"),
        ("norms and element-wise work", "aten::mul aten::add_ aten::gelu_backward aten::rsqrt"),
        ("optimizer", "aten::_fused_adamw_ Optimizer.step#AdamW.step aten::_foreach_mul_"),
        ("everything else", "aten::expand aten::topk autograd::engine::evaluate_function: Mul"),
    ],
)
def test_every_operation_has_one_kind(kind, operations):
    assert {on_processor.kind_of(name) for name in operations.split(" ")} == {kind}


def test_the_time_of_a_step_is_shared_out_among_its_kinds():
    found = on_processor.kinds_of_time(peers.our_step(TINY, "bf16", 4), steps=2)
    assert sum(found.values()) == pytest.approx(100)
    assert list(found) == [*on_processor.KINDS, "everything else"]
    assert all(share > 0 for share in found.values())


def test_a_limit_that_the_processor_does_not_reach_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(on_processor, "measure", lambda *_: pytest.fail("it is measured"))
    with pytest.raises(SystemExit, match="offers PyTorch no more than AVX2"):
        on_processor.main(0.0, record=False, quick=False, isa="AVX512_CORE")


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, "build/benchmark/speed.json"),
        ({"record": True}, "figures/benchmark/speed.json"),
        ({"isa": "AVX2"}, "build/benchmark/speed_AVX2.json"),
        ({"quick": True}, None),
    ],
)
def test_only_a_recording_changes_what_the_repository_carries(
    monkeypatch, tmp_path, options, written
):
    monkeypatch.setattr(timing, "ROOT", tmp_path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(on_processor, "measure", lambda turns, *_: {"turns": turns})
    monkeypatch.setattr(on_processor, "show", print)
    monkeypatch.delenv("FIGURES_DIR")
    on_processor.main(0.0, **{"record": False, "quick": False, "isa": None} | options)
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")]
    assert found == ([written] if written else [])


@pytest.mark.slow
def test_all_of_it_in_small(monkeypatch, capsys):
    numbers = on_processor.measure(1, load=99.0, quick=True)
    assert set(numbers["decoding"]) == {"fp32", "bf16"}
    assert numbers["vectors"]["ours"]["gb"] < 0.1
    assert all(len(row["x"]) == len(row["ms"]) == 2 for row in numbers["scaling"].values())
    assert abs(numbers["perplexity"]["bf16"] / numbers["perplexity"]["fp32"] - 1) < 0.005
    assert numbers["training"]["profile"]["precision"] == numbers["training"]["picked"]
    json.dumps(numbers, allow_nan=False)
    on_processor.show(numbers)
    shown = capsys.readouterr().out
    assert shown.startswith("The load average before the start was 99.0")
    assert shown.count(numbers["machine"]["caption"]) == 8, "of each table"
    for text in ("ours, bf16", "fp32, against GPT-2", "2 prompts, 2 beams, fp32", "fasttext"):
        assert text in shown
    # Under a limit there is less to measure, and to show.
    parts = {"machine", "training", "decoding"}
    on_processor.show({name: numbers[name] for name in parts})
    monkeypatch.setattr(on_processor, "measure_training", lambda *_, **__: numbers["training"])
    monkeypatch.setattr(on_processor, "measure_decoding", lambda *_, **__: [])
    assert on_processor.measure(1, 0.0, quick=True, isa="AVX2").keys() == parts


# The command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ([], [None]),
        (["--quick"], [None]),
        (["--isa", "AVX2"], ["AVX2"]),
        (["--record", "--isa", "AVX2"], ["AVX2"]),
        (["--record"], ["AVX512_CORE", "AVX2", None]),
    ],
)
def test_each_limit_has_a_process_of_its_own(monkeypatch, options, limits):
    """All with the load before the first: the later ones would find that of the first."""
    started = []

    def run(command, env):
        started.append((command, env.get(timing.ISA_LIMIT)))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5 + len(started), 0, 0))
    monkeypatch.delenv(timing.ISA_LIMIT, raising=False)
    benchmark.main(options)
    assert [limit for _, limit in started] == limits
    for command, limit in started:
        assert command[2:] == [*options, "--load", "0.5", *(["--isa", limit] if limit else [])]
    # A limit that a user has set stays, and the file says so.
    monkeypatch.setenv(timing.ISA_LIMIT, "AVX")
    started.clear()
    benchmark.main(options)
    assert [limit for _, limit in started] == [limit or "AVX" for limit in limits]


def test_a_started_process_measures_and_a_failed_one_ends_the_rest(monkeypatch):
    calls = []
    monkeypatch.setattr(on_processor, "main", lambda *arguments: calls.append(arguments))
    benchmark.main(["--record", "--load", "0.5", "--isa", "AVX2"])
    assert calls == [(0.5, True, False, "AVX2")]
    failed = SimpleNamespace(returncode=3)
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: calls.append("") or failed)
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["--record"])
    assert (caught.value.code, len(calls)) == (3, 2)


# A GPU --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_part_for_a_gpu_runs_without_the_packages_that_it_need_not_have(tmp_path):
    done = start("measure_gpu_part", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "speed_gpu.json").read_text())
    assert found["left_out"] == found["failed"] == {}, done.stderr
    assert 0 < found["seconds"] < found["budget_seconds"] < 360
    assert found["logits"] == {"largest_difference": 0.0, "allowed": 1e-4}
    assert found["product"]["tflops"] > 0
    assert found["product"]["side"] in (16, 32)
    training, decoding = found["training"]["tiny"], found["decoding"]["tiny"]
    ways = {"ours", "ours, compiled", "ours, with PyTorch's attention", peers.GPT2}
    assert training["rows"].keys() == ways
    assert all(0 < row["utilisation"] < 1 for row in training["rows"].values())
    assert training["ratios"].keys() == {f"{way}, against GPT-2" for way in ways - {peers.GPT2}}
    assert [row["work"] for row in decoding] == ["1 prompt, greedy", "64 prompts, greedy"]
    assert all(row["ratio_plain"]["median"] > 0 for row in decoding)
    assert found["two_processes"]["largest_difference"] < 1e-9
    assert found["two_processes"]["tokens_per_second"]["median"] > 0

    shown = json.loads((tmp_path / "06_gpu.json").read_text())
    assert shown["name"] == found["machine"]["device"]
    columns = ["way", "peak, MB", "seconds per epoch", "of the time", "device"]
    assert [list(row) for row in shown["checkpointing"]] == [columns] * 3
    notebook = (ROOT / "notebooks/src/06_memory.py").read_text(encoding="utf-8")
    assert json.dumps(columns) in notebook, "its table has other columns"


def test_what_no_longer_fits_is_named():
    kept = []
    sizes = {"tiny": (TINY, 2)}
    found = on_gpu.measure(0.0, lambda name, _: kept.append(name), "cpu", sizes, seconds=0)
    first = ["logits", "checkpointing", "product"]
    of_a_size = ["decoding, tiny", "compiling, tiny", "training, tiny"]
    assert list(found["left_out"]) == [*first, *of_a_size, "two processes"]
    assert set(found["left_out"].values()) == {"the time was over before it began"}
    assert found["failed"] == {}
    assert set(kept) == {"speed_gpu"}, "there is nothing for notebook 06"


def test_a_part_ends_with_its_time_and_an_error_ends_one_part_only(capsys):
    numbers = {}
    parts = on_gpu.Parts(numbers, 60, lambda *_: None)
    assert parts.run("quick", lambda: 1) == 1
    assert parts.run("endless", lambda: time.sleep(50), seconds=0.05) is None
    assert parts.run("wrong", lambda: 1 / 0) is None
    assert parts.run("quick again", lambda: 2) == 2
    assert numbers["left_out"] == {"endless": "not done within 0 s"}
    assert numbers["failed"] == {"wrong": "ZeroDivisionError: division by zero"}
    assert "1 / 0" in capsys.readouterr().err, "where it went wrong"


def test_logits_that_differ_are_a_failure(monkeypatch):
    found = {"largest_difference": 2e-4, "allowed": on_gpu.CLOSE}
    monkeypatch.setattr(on_gpu, "agreement", lambda device: found)
    for part in ("checkpointing", "largest_product", "decoding", "compiled_step", "two_processes"):
        monkeypatch.setattr(on_gpu, part, lambda *_: None)
    numbers = on_gpu.measure(0.0, lambda *_: None, "cpu", {"tiny": (TINY, 2)}, turns=1)
    assert numbers["logits"] == found
    assert numbers["failed"] == {"logits": "they differ by 2.0e-04"}
    # Without a product there is nothing that a step could be a share of.
    assert numbers["training"]["tiny"]["rows"]["ours"]["utilisation"] is None
    assert "ours, compiled" not in numbers["training"]["tiny"]["rows"]


@pytest.mark.parametrize("failed", [{}, {"logits": "they differ"}])
def test_the_gpus_run_ends_with_an_error_if_a_part_failed(monkeypatch, capsys, failed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    numbers = {"left_out": {"large": "the time was over"}, "failed": failed}
    monkeypatch.setattr(on_gpu, "measure", lambda *_: numbers)
    if failed:
        with pytest.raises(SystemExit):
            benchmark.main(["--gpu"])
    else:
        benchmark.main(["--gpu"])
    assert "large: the time was over" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="finds none here"):
        benchmark.main(["--gpu"])
