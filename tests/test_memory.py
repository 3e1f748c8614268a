"""Checkpoints and the meter, against ordinary gradients and PyTorch's own; and freed memory."""

import platform
import statistics
import time
from functools import partial

import pytest
import torch
from support import made_model, start
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from helpers.loss import loss_sum, output_loss
from helpers.memory import checkpoint, measure_peak_memory, memory_timeline

WIDE = {"vocab_size": 300, "embedding_dim": 40, "d_model": 64, "num_heads": 8, "d_ff": 224}


def deep_model(layers=3, dropout=0.1):
    return made_model(num_layers=layers, dropout=dropout, context_length=64, **WIDE).train()


def made_ids(batch=64):
    return torch.randint(4, 300, (batch, 64), generator=torch.Generator().manual_seed(1))


def backward(model, ids, segments=(), bf16=False):
    """The loss, where the random stream stands afterwards, and the gradients."""
    model.set_recomputation(*segments)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(2)  # dropout
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        loss, _ = loss_sum(model, ids)
    loss.backward()
    return [loss.detach(), torch.rand(1), *(p.grad for p in model.parameters())]


WITHOUT_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=WITHOUT_GPU)])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("segments", [(6,), (2,), (4,), (2, 3), (2, 2), (1, 2, 3)])
def test_gradients_are_the_same_bit_for_bit(segments, bf16, device):
    """With dropout: the second pass draws the same numbers, and leaves the stream where an ordinary
    pass leaves it.
    """
    model, ids = deep_model(layers=6).to(device), made_ids(batch=4).to(device)
    passes = (backward(model, ids, how, bf16) for how in (segments, ()))
    for ours, ordinary in zip(*passes, strict=True):
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
    result = checkpoint(torch.exp, torch.zeros(2))  # nothing needs a gradient
    assert (result.tolist(), result.requires_grad) == ([1, 1], False)


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
    twice = checkpoint(segment, x, 2, "ab")[3].sum()
    (only,) = torch.autograd.grad(twice, [layer.bias])  # not everything, not .backward()
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

    def other(x):
        passes.append(1)
        return x.exp().sin() if len(passes) == 1 else x.exp()

    checkpoint(other, x).sum().backward()


def other_shape(x, module):
    passes = []
    checkpoint(lambda x: (passes.append(1), x[: 4 - len(passes)].exp().sum())[1], x).backward()


def twice_derived(x, module):
    (gradient,) = torch.autograd.grad(checkpoint(module, x).sum(), [x], create_graph=True)
    gradient.sum().backward()


def enter_from_the_side(x, module):
    inside = []
    checkpoint(lambda x: (inside.append(x.exp()), inside[0] * 2)[1], x)
    inside[0].sum().backward()


def saved(second, first):
    """The second pass saved a float32 tensor of other (length, number of changes in place)."""
    found, expected = (
        rf"\(\({length},\), torch\.float32, {changes}\)" for length, changes in (second, first)
    )
    counts = r"\(shape, type, number of changes in place\)"
    return rf"a tensor is {found}, and was {expected} when the first pass saved it {counts}; {SAME}"


SAME = "the function must do the same both times, with parameters that did not change in between"


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (change_argument_inside, "the function changed an argument in place"),
        (change_what_was_saved, saved((3, 1), (3, 0))),
        (change_parameter, saved((3, 1), (3, 0))),
        (do_something_else, f"the second pass saved 1 tensors fewer; {SAME}"),
        (other_shape, saved((2, 0), (3, 0))),
        (twice_derived, "no second derivatives; call the function itself"),
        (enter_from_the_side, "the backward pass entered a segment from its side"),
    ],
)
def test_misuse_is_named(misuse, message):
    with pytest.raises(RuntimeError, match=f"^checkpoint: {message}$"):
        misuse(torch.randn(3, requires_grad=True), Scaled())


def test_an_argument_that_was_changed_meanwhile_is_pytorchs_to_notice():
    message = (
        "^one of the variables needed for gradient computation has been modified by an inplace "
        r"operation: .* is at version 1; expected version 0 instead"
    )
    with pytest.raises(RuntimeError, match=message):
        change_argument(torch.randn(3, requires_grad=True), Scaled())


def test_frozen_blocks_are_left_alone():
    """Only the last block and what follows it learn: there is nothing to compute again in the
    others.
    """
    model, ids = deep_model(4, dropout=0.0), made_ids(batch=2)
    for part in (model.embedding, model.projection, *model.blocks[:3]):
        part.requires_grad_(False)
    for ours, ordinary in zip(backward(model, ids, (4,)), backward(model, ids), strict=True):
        assert ours is ordinary is None or torch.equal(ours, ordinary)


@pytest.mark.slow
def test_a_compiled_model_keeps_its_checkpoints():
    model, ids = deep_model(2, dropout=0.0), made_ids(batch=2)
    ordinary = backward(model, ids)
    model.hidden = torch.compile(model.hidden, backend="aot_eager")
    for ours, plain in zip(backward(model, ids, (2,)), ordinary, strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)


def test_a_result_that_is_no_tensor_is_refused():
    message = "^checkpoint: the function returned dict, not a tensor or tensors$"
    with pytest.raises(TypeError, match=message):
        checkpoint(lambda x: {"x": x}, torch.ones(1, requires_grad=True))


def by_torch(model, ids):
    """The same training pass, block by block, checkpointed by PyTorch."""
    T, scale = ids.shape[1] - 1, model.config.d_model**0.5
    x = model.projection(model.embedding(ids[:, :-1])) * scale + model.positions[:T]
    for block in model.blocks:
        x, _ = torch_checkpoint(block, x, model.mask[:T, :T], use_reentrant=False)
    return output_loss(model.norm(x), model.output.weight, model.output.bias, ids[:, 1:])


def by_us(model, ids, segments):
    model.set_recomputation(*segments)
    return loss_sum(model, ids)[0]


def peak(model, loss):
    model.zero_grad(set_to_none=True)
    return measure_peak_memory(lambda: loss().backward(), "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("layers", [3, 12])
def test_peak_and_time_are_those_of_pytorchs_own_checkpointing(layers):
    model, ids = deep_model(layers, dropout=0.0), made_ids()
    ours, theirs = partial(by_us, model, ids, (layers,)), partial(by_torch, model, ids)
    assert peak(model, ours) <= 1.02 * peak(model, theirs)
    ratios = []
    for _ in range(7):
        seconds = []
        for loss in (ours, theirs):
            started = time.perf_counter()
            loss().backward()
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    assert statistics.median(ratios) <= 1.15  # 1.05 on a quiet machine


@pytest.mark.slow
def test_twelve_blocks_need_a_third_of_the_memory():
    model, ids = deep_model(12), made_ids()
    recomputed, kept = (peak(model, partial(by_us, model, ids, how)) for how in ((12,), ()))
    assert recomputed <= 0.35 * kept


@pytest.mark.slow
def test_sixty_four_blocks_want_nesting_and_not_the_square_root():
    """The inside of a block is some forty times as large as its input, so eight segments of eight
    blocks lose.
    """
    model, ids = deep_model(64), made_ids(batch=32)
    ways = (64,), (8,), (8, 8)
    each, eight, nested = (peak(model, partial(by_us, model, ids, way)) for way in ways)
    assert nested < 0.75 * each
    assert eight > 2 * each


def test_impossible_segments_are_refused():
    message = r"^recompute_segments=\(7,\): 6 blocks cannot be divided into 7; the model has 6 "
    with pytest.raises(ValueError, match=message):
        deep_model(6).set_recomputation(7)
    message = r"^recompute_segments=\(2, 4\): 3 blocks cannot be divided into 4; the model has 6 "
    with pytest.raises(ValueError, match=message):
        deep_model(6).set_recomputation(2, 4)


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


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    """A page that the system hands out anew costs a fault. A block as large as this one is always
    given back by default.
    """
    faults = {}
    for word in ("keep", "plain"):
        done = start("kept_memory", word)
        assert done.returncode == 0, done.stderr
        steps = list(map(int, done.stdout.split()))
        assert len(steps) == 20
        faults[word] = statistics.median(steps)  # the first steps may need more room
    assert faults["keep"] < 0.1 * faults["plain"]
