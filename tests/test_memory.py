"""The chunked loss, checkpointing and the meter, against ordinary gradients and PyTorch's own
checkpointing.
"""

import math
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from helpers.memory import checkpoint, measure_peak_memory, memory_timeline, output_loss
from helpers.model import Decoder, ModelConfig
from helpers.training import loss_sum

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"vocab_size": 300, "embedding_dim": 40, "d_model": 64, "num_heads": 8, "d_ff": 224}


def relative_error(ours, reference):
    return ((ours - reference).abs().max() / reference.abs().max().clamp_min(1e-300)).item()


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 40),
    vocab=st.integers(3, 30),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 10**6),
)
def test_loss_and_gradients_equal_cross_entropy(rows, vocab, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, 8), (vocab, 8), (vocab,))
    )
    targets = torch.randint(0, vocab, (rows,), generator=generator)  # id 0 is ignored
    results = []
    for chunked in (True, False):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        if chunked:
            loss = output_loss(*leaves, targets, ignore_index=0, rows_per_chunk=chunk)
        else:
            loss = F.cross_entropy(F.linear(*leaves), targets, ignore_index=0, reduction="sum")
        (0.37 * loss).backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for ours, reference in zip(*results, strict=True):
        assert relative_error(ours, reference) < 1e-12 or (ours - reference).abs().max() < 1e-14


def test_bf16_stays_close_to_fp32():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(64, 32), torch.randn(100, 32) / 6, torch.zeros(100)
    targets = torch.randint(1, 100, (64,))
    exact = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16):
        loss = output_loss(hidden.requires_grad_(), weight, bias, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_in_float32_whatever_the_inputs(dtype):
    torch.manual_seed(0)
    hidden, weight, bias = (
        torch.randn(4096, 16, dtype=dtype),
        torch.randn(50, 16, dtype=dtype),
        torch.zeros(50, dtype=dtype),
    )
    targets = torch.randint(1, 50, (4096,))
    exact = F.cross_entropy(F.linear(hidden.double(), weight.double()), targets, reduction="sum")
    weight.requires_grad_()
    loss = output_loss(hidden, weight, bias, targets, rows_per_chunk=64)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-3)
    assert weight.grad.dtype == dtype


def test_what_is_ignored_cannot_spoil_the_rest():
    """A word that can never come out, as the target of a place that does not count; and nonsense in
    such a place.
    """
    hidden, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.zeros(5)
    bias[0], hidden[2] = -math.inf, math.nan
    targets = torch.tensor([1, 2, 0])
    leaves = [hidden.requires_grad_(), weight, bias]
    loss = output_loss(*leaves, targets)
    loss.backward()
    assert loss.item() == pytest.approx(
        F.cross_entropy(F.linear(*leaves)[:2], targets[:2], reduction="sum").item()
    )
    assert hidden.grad[:2].isfinite().all()
    assert hidden.grad[2].tolist() == [0.0] * 8


def test_without_gradients_none_are_computed():
    hidden, weight, bias = (
        torch.randn(512, 64),
        torch.randn(5000, 64, requires_grad=True),
        torch.zeros(5000),
    )

    def measure():
        return measure_peak_memory(
            lambda: output_loss(hidden, weight, bias, torch.ones(512, dtype=torch.long)), "cpu"
        )

    with torch.no_grad():
        without = measure()
    assert without < measure() - weight.nbytes / 2


def test_frozen_parameters_get_no_gradient():
    hidden, weight, bias = torch.randn(4, 8), torch.randn(5, 8), torch.zeros(5, requires_grad=True)
    output_loss(hidden, weight, bias, torch.ones(4, dtype=torch.long)).backward()
    assert hidden.grad is None
    assert weight.grad is None
    assert bias.grad.abs().sum() > 0


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match="shapes disagree"):
        output_loss(
            torch.randn(4, 8), torch.randn(5, 7), torch.zeros(5), torch.ones(4, dtype=torch.long)
        )


def test_the_loss_step_takes_a_quarter_of_the_memory():
    """At the assignment's size: B·T = 2,016 tokens, 10,000 words."""
    torch.manual_seed(0)
    leaves = [torch.randn(2016, 296), torch.randn(10_000, 296) / 17, torch.zeros(10_000)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    targets = torch.randint(1, 10_000, (2016,))

    def step(loss):
        for leaf in leaves:
            leaf.grad = None
        return measure_peak_memory(lambda: loss(*leaves, targets).backward(), "cpu")

    plain = step(
        lambda *args: F.cross_entropy(F.linear(*args[:3]), args[3], ignore_index=0, reduction="sum")
    )
    assert plain > 2 * 2016 * 10_000 * 4  # logits and their gradient, at least
    assert step(output_loss) <= 0.25 * plain


def made_model(layers=3, dropout=0.1, **changes):
    torch.manual_seed(0)
    return Decoder(ModelConfig(num_layers=layers, dropout=dropout, **(SMALL | changes))).train()


def made_ids(model, batch=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(
        4, model.config.vocab_size, (batch, model.config.context_length), generator=generator
    )


def backward(model, ids, segments=(), bf16=False):
    model.set_checkpointing(*segments)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(2)  # dropout
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        loss, _ = loss_sum(model, ids, 0)
    loss.backward()
    return [
        loss.detach(),
        torch.rand(1),
        *(p.grad for p in model.parameters()),
    ]  # and where the random stream stands


DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("segments", [(6,), (2,), (4,), (2, 3), (2, 2), (1, 2, 3)])
def test_gradients_are_the_same_bit_for_bit(segments, bf16, device):
    """With dropout: the second pass draws the same numbers, and leaves the stream where an ordinary
    pass leaves it.
    """
    model = made_model(layers=6).to(device)
    ids = made_ids(model, batch=4).to(device)
    for ours, ordinary in zip(
        backward(model, ids, segments, bf16), backward(model, ids, (), bf16), strict=True
    ):
        assert torch.equal(ours, ordinary)


def test_the_inside_is_computed_twice_and_the_rest_of_it_not_at_all():
    calls = []

    def segment(x):
        calls.append("first")
        x = x.exp()
        calls.append("last")
        return x + 1  # saves nothing, so the second pass ends before

    x = torch.randn(3, requires_grad=True)
    checkpoint(segment, x).sum().backward()
    assert calls == ["first", "last", "first"]
    assert torch.allclose(x.grad, x.detach().exp())


def test_without_gradients_it_is_a_plain_call():
    calls = []
    with torch.no_grad():
        result = checkpoint(lambda x, *, calls=calls: calls.append(1) or x * 2, torch.ones(2))
    assert result.tolist() == [2, 2]
    assert calls == [1]
    assert not result.requires_grad


def test_several_results_other_arguments_and_parameters_alone():
    layer = torch.nn.Linear(3, 3)

    def segment(x, power, names):
        y = layer(x)
        return y**power, y.argmax(-1), y.detach(), len(names) * y

    x = torch.randn(2, 3)  # needs no gradient: the layer's parameters do
    squares, places, copy, twice = checkpoint(segment, x, 2, ["a", "b"])
    assert not places.requires_grad
    assert not copy.requires_grad
    (squares.sum() + twice.sum()).backward()
    ours = layer.weight.grad.clone()
    layer.zero_grad()
    squares, _, _, twice = segment(x, 2, ["a", "b"])
    (squares.sum() + twice.sum()).backward()
    assert torch.equal(ours, layer.weight.grad)
    (only,) = torch.autograd.grad(
        checkpoint(segment, x, 2, "ab")[3].sum(), [layer.bias]
    )  # not everything, not .backward()
    assert torch.equal(only, torch.full((3,), 4.0))


def test_a_graph_that_is_kept_can_be_used_again():
    x = torch.randn(3, requires_grad=True)
    y = checkpoint(torch.exp, x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert torch.allclose(x.grad, 2 * x.detach().exp())
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return (x * self.weight).exp()


def change_argument(x, module):
    y = x * 1
    loss = checkpoint(module, y).sum()
    y.add_(1)
    loss.backward()


def change_argument_inside(x, module):
    checkpoint(lambda y: module(y.add_(1)), x * 1)


def change_what_was_saved(x, module):
    checkpoint(lambda x: x.exp().mul_(2).sin(), x).sum().backward()


def change_parameter(x, module):
    loss = checkpoint(module, x).sum()
    with torch.no_grad():
        module.weight.add_(1)
    loss.backward()


def do_something_else(x, module):
    passes = []
    checkpoint(
        lambda x: (passes.append(1), x.exp().sin() if len(passes) == 1 else x.exp())[1], x
    ).sum().backward()


def other_shape(x, module):
    passes = []
    checkpoint(lambda x: (passes.append(1), x[: 4 - len(passes)].exp().sum())[1], x).backward()


def twice_derived(x, module):
    (gradient,) = torch.autograd.grad(checkpoint(module, x).sum(), [x], create_graph=True)
    gradient.sum().backward()


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (
            lambda x, module: checkpoint(torch.exp, x.detach()),
            "no argument and no parameter needs a gradient",
        ),
        (change_argument, "an argument was changed in place before the backward pass"),
        (change_argument_inside, "the function changed an argument in place"),
        (change_what_was_saved, "changed in place a tensor that its backward pass needs"),
        (change_parameter, "parameters that did not change in between"),
        (
            do_something_else,
            "saved 1 tensors fewer than the first; the function must do the same both times",
        ),
        (other_shape, r"saved \(\(2,\), .* the first \(\(3,\)"),
        (twice_derived, "no second derivatives"),
    ],
)
def test_misuse_is_named(misuse, message):
    with pytest.raises(RuntimeError, match=message):
        misuse(torch.randn(3, requires_grad=True), Scaled())


def test_frozen_blocks_are_left_alone():
    """Only the last block and what follows it learn: there is nothing to compute again in the
    others.
    """
    model = made_model(4, dropout=0.0)
    for part in (model.embedding, model.projection, *model.blocks[:3]):
        part.requires_grad_(False)
    ids = made_ids(model, batch=2)
    for ours, ordinary in zip(backward(model, ids, (4,)), backward(model, ids), strict=True):
        assert ours is ordinary is None or torch.equal(ours, ordinary)


def test_a_compiled_model_keeps_its_checkpoints():
    model = made_model(2, dropout=0.0)
    ids = made_ids(model, batch=2)
    ordinary = backward(model, ids)
    model.hidden = torch.compile(model.hidden, backend="aot_eager")
    for ours, plain in zip(backward(model, ids, (2,)), ordinary, strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)


def test_a_result_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="the function returned dict, not a tensor"):
        checkpoint(lambda x: {"x": x}, torch.ones(1, requires_grad=True))


def by_torch(model, ids):
    """The same training pass, block by block, checkpointed by PyTorch."""
    T = ids.shape[1] - 1
    x = (
        model.projection(model.embedding(ids[:, :-1])) * model.config.d_model**0.5
        + model.positions[:T]
    )
    for block in model.blocks:
        x, _ = torch_checkpoint(block, x, model.mask[:T, :T], use_reentrant=False)
    return output_loss(model.norm(x), model.output.weight, model.output.bias, ids[:, 1:])


def by_us(model, ids, segments):
    model.set_checkpointing(*segments)
    return loss_sum(model, ids, 0)[0]


def peak(model, loss):
    model.zero_grad(set_to_none=True)
    return measure_peak_memory(lambda: loss().backward(), "cpu")


@pytest.mark.parametrize("layers", [3, 12])
def test_peak_and_time_are_those_of_pytorchs_own_checkpointing(layers):
    model = made_model(layers, dropout=0.0)
    ids = made_ids(model)
    passes = {
        "ours": partial(by_us, model, ids, (layers,)),
        "PyTorch's": partial(by_torch, model, ids),
    }
    peaks = {name: peak(model, loss) for name, loss in passes.items()}
    assert peaks["ours"] <= 1.02 * peaks["PyTorch's"]
    ratios = []
    for _ in range(7):
        seconds = {}
        for name, loss in passes.items():
            started = time.perf_counter()
            loss().backward()
            seconds[name] = time.perf_counter() - started
        ratios.append(seconds["ours"] / seconds["PyTorch's"])
    assert statistics.median(ratios) <= 1.15  # 1.05 on a quiet machine


def test_twelve_blocks_need_a_third_of_the_memory():
    model = made_model(12)
    ids = made_ids(model)
    assert peak(model, partial(by_us, model, ids, (12,))) <= 0.35 * peak(
        model, partial(by_us, model, ids, ())
    )


def test_sixty_four_blocks_want_nesting_and_not_the_square_root():
    """The inside of a block is some forty times as large as its input, so eight segments of eight
    blocks lose.
    """
    model = made_model(64)
    ids = made_ids(model, batch=32)
    peaks = {
        segments: peak(model, partial(by_us, model, ids, segments))
        for segments in [(64,), (8,), (8, 8)]
    }
    assert peaks[8, 8] < 0.75 * peaks[64,]
    assert peaks[8,] > 2 * peaks[64,]


def test_impossible_segments_are_refused():
    with pytest.raises(ValueError, match="6 blocks cannot be divided into 7"):
        made_model(6).set_checkpointing(7)
    with pytest.raises(ValueError, match="3 blocks cannot be divided into 4"):
        made_model(6).set_checkpointing(2, 4)


def test_the_meter_counts_what_is_held_at_the_same_time():
    outside = torch.zeros(100_000)

    def work():
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1  # 8,000
        del a
        view = b.view(10, 100)[0]  # nothing new
        view += 1
        outside.add_(1)  # was there before
        del b
        return view.clone()  # 4,400: the view keeps all of b

    assert memory_timeline(work)[-1] == 4400
    assert measure_peak_memory(work, "cpu") == 8000
    assert measure_peak_memory(lambda: None, "cpu") == 0
    assert measure_peak_memory(lambda: torch.tensor([0.0] * 100), "cpu") == 400


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    """A page that the system hands out anew costs a fault. A block as large as this one is always
    given back by default.
    """
    code = """
import resource, sys, torch
from helpers.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for word in ("keep", "plain"):
        done = subprocess.run(
            [sys.executable, "-c", code, word], capture_output=True, check=True, cwd=ROOT
        )
        faults[word] = statistics.median(
            map(int, done.stdout.split())
        )  # the first steps may need more room
    assert faults["keep"] < 0.1 * faults["plain"]
