"""The loss: chunk by chunk as at once, and over real tokens alone, however they are batched."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import TOKENIZER, made_model, made_stories, relative_error

from helpers.loss import loss_sum, mean_loss, output_loss, total_loss
from helpers.memory import measure_peak_memory
from helpers.training import encode_stories


def plain_loss(hidden, weight, bias, targets):
    logits = F.linear(hidden, weight, bias)  # (N, V)
    return F.cross_entropy(logits, targets, ignore_index=0, reduction="sum")


def loss_of_all_logits(model, ids):
    """PyTorch's mean over the real tokens, in one piece."""
    logits = model(ids[:, :-1]).flatten(0, 1)  # (B·T, V)
    return F.cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=0)


# --- The output layer, a few rows at a time -------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 40),
    vocab=st.integers(3, 30),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 10**6),
)
def test_loss_and_gradients_equal_cross_entropy(rows, vocab, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    inputs = draw(rows, 8), draw(vocab, 8), draw(vocab)
    targets = torch.randint(0, vocab, (rows,), generator=generator)  # id 0 is ignored
    results = []
    for loss, how in ((output_loss, {"rows_per_chunk": chunk}), (plain_loss, {})):
        leaves = [t.clone().requires_grad_() for t in inputs]
        total = loss(*leaves, targets, **how)
        (0.37 * total).backward()
        results.append([total.detach(), *(leaf.grad for leaf in leaves)])
    for ours, reference in zip(*results, strict=True):
        assert relative_error(ours, reference) < 1e-12 or (ours - reference).abs().max() < 1e-14


def test_bf16_stays_close_to_fp32():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(64, 32), torch.randn(100, 32) / 6, torch.zeros(100)
    targets = torch.randint(1, 100, (64,))
    exact = plain_loss(hidden, weight, bias, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = output_loss(hidden.requires_grad_(), weight, bias, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_in_float32_whatever_the_inputs(dtype):
    torch.manual_seed(0)
    shapes = (4096, 16), (50, 16), (50,)
    hidden, weight, bias = (torch.randn(*shape).to(dtype) for shape in shapes)
    bias, targets = bias.zero_(), torch.randint(1, 50, (4096,))
    exact = plain_loss(hidden.double(), weight.double(), bias.double(), targets)
    weight.requires_grad_()
    loss = output_loss(hidden, weight, bias, targets, rows_per_chunk=64)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-3)
    assert weight.grad.dtype == dtype


def test_what_is_ignored_cannot_spoil_the_rest():
    """A word that can never come out, as the target of a place that does not count; and nonsense in
    such a place.
    """
    hidden, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.zeros(5)
    bias[0], hidden[2] = -math.inf, math.nan
    targets = torch.tensor([1, 2, 0])
    loss = output_loss(hidden.requires_grad_(), weight, bias, targets)
    loss.backward()
    expected = plain_loss(hidden[:2], weight, bias, targets[:2])
    assert loss.item() == pytest.approx(expected.item())
    assert hidden.grad[:2].isfinite().all()
    assert hidden.grad[2].tolist() == [0.0] * 8


def test_without_gradients_none_are_computed():
    hidden, weight, bias = torch.randn(512, 64), torch.randn(5000, 64), torch.zeros(5000)
    weight.requires_grad_()
    targets = torch.ones(512, dtype=torch.long)
    measure = lambda: measure_peak_memory(lambda: output_loss(hidden, weight, bias, targets), "cpu")
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
    targets = torch.ones(4, dtype=torch.long)
    message = (
        r"shapes disagree: hidden \(4, 8\), weight \(5, 7\), bias \(5,\), targets \(4,\); "
        r"expected \(…, D\), \(V, D\), \(V,\), \(…\)$"
    )
    with pytest.raises(ValueError, match=message):
        output_loss(torch.randn(4, 8), torch.randn(5, 7), torch.zeros(5), targets)


@pytest.mark.slow
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

    plain = step(plain_loss)
    assert plain > 2 * 2016 * 10_000 * 4  # logits and their gradient, at least
    assert step(output_loss) <= 0.25 * plain


# --- A batch of stories ---------------------------------------------------------------------------


def test_the_loss_is_pytorchs_cross_entropy_over_real_tokens():
    model = made_model().double()
    ids = encode_stories(TOKENIZER, made_stories().train, 12).long()
    total, count = loss_sum(model, ids, TOKENIZER.pad_id)
    expected = loss_of_all_logits(model, ids)
    assert count == (ids[:, 1:] != 0).sum()
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-12)
    (total / count).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected.backward()
    for name, p in model.named_parameters():
        assert (ours[name] - p.grad).abs().max() <= 1e-12 * max(1.0, p.grad.abs().max()), name


def test_another_pad_than_the_models_is_refused():
    ids = encode_stories(TOKENIZER, ["w1 w2 w3"], 5).long()
    for measure in (loss_sum, mean_loss, total_loss):
        with pytest.raises(ValueError, match=r"^pad_id=3: the model's <pad> is 0$"):
            measure(made_model(), ids, pad_id=3)


def test_padding_changes_nothing():
    short, padded = (encode_stories(TOKENIZER, ["w1 w2 w3"], length) for length in (5, 12))
    losses = [mean_loss(made_model(), ids, 0, "fp32") for ids in (short, padded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_mean_loss_weighs_tokens_not_batches():
    ids = encode_stories(TOKENIZER, made_stories().train, 12)
    losses = [mean_loss(made_model(), ids, 0, "fp32", batch_size=size) for size in (7, 64)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_mean_of_the_mini_batches_means_is_another_gradient():
    ids = encode_stories(TOKENIZER, ["w1 w2", "w3 w4 w5 w6 w7 w8 w9 w10 w11"], 12).long()
    model = made_model().double()
    parameters = list(model.parameters())
    gradient = lambda loss: torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    means = [total / count for total, count in (loss_sum(model, row, 0) for row in ids.split(1))]
    expected = gradient(loss_of_all_logits(model, ids))
    assert (gradient(sum(means) / 2) - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("training", [True, False])
def test_measuring_needs_no_gradient_no_dropout_and_leaves_the_mode_as_it_was(training):
    model = made_model(dropout=0.5).train(training)
    ids = encode_stories(TOKENIZER, made_stories().train, 12)
    total, count = total_loss(model, ids, 0, "fp32", batch_size=16)
    assert model.training == training
    assert mean_loss(model, ids, 0, "fp32", batch_size=16) == total / count
    assert count == (ids[:, 1:] != 0).sum()
    without_dropout = loss_of_all_logits(model.eval(), ids.long())
    assert total / count == pytest.approx(without_dropout.item(), rel=1e-6)


def test_a_mean_over_no_tokens_is_refused():
    for ids in (torch.zeros(0, 12, dtype=torch.long), torch.zeros(2, 12, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"^no tokens to measure the loss on: the texts"):
            mean_loss(made_model(), ids, 0, "fp32")
