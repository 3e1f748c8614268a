"""Half precision and extreme numbers: finite, and within a few roundings of what float32 gives for
the same inputs.

bfloat16 keeps 8 significant bits, float16 11: one rounding is off by at most 2^-9 or 2^-12 of the
number. float16 also ends at 65,504, so scores and logits stay below that here; training uses
bfloat16 or float32, never float16.
"""

import pytest
import torch
from support import made_model

from helpers.decoding import filtered_distribution
from helpers.loss import output_loss
from helpers.model import LayerNorm, MultiHeadAttention

ROUNDING = {torch.bfloat16: 2**-9, torch.float16: 2**-12}
HALVES = pytest.mark.parametrize("dtype", ROUNDING, ids=["bf16", "fp16"])


def close(half, wide, dtype, roundings):
    """Finite, and off by at most so many roundings of the largest number."""
    assert half.isfinite().all()
    error = (half.float() - wide).abs().max() / wide.abs().max()
    assert error <= roundings * ROUNDING[dtype], f"{error / ROUNDING[dtype]:.1f} roundings"


@HALVES
@pytest.mark.parametrize(
    ("scale", "mean"), [(1, 0), (2**12, 0), (2**-12, 0), (1, 500), (2**10, 2**14)]
)
def test_a_layer_norm_of_the_largest_and_the_smallest_numbers(dtype, scale, mean):
    torch.manual_seed(0)
    x = (torch.randn(8, 64) * scale + mean).to(dtype)  # (8, D)
    norm = LayerNorm(64)
    close(norm.to(dtype)(x), norm.float()(x.float()), dtype, roundings=4)


@HALVES
@pytest.mark.parametrize("score", [0, 2**4, 2**10, 2**14])
def test_attention_with_scores_that_leave_no_doubt(dtype, score):
    """The score of each word with itself is `score`, that with any other is 0 or its negative."""
    torch.manual_seed(0)
    attention = MultiHeadAttention(made_model().config)
    with torch.no_grad():
        attention.qkv.weight[:32] = torch.eye(16).repeat(2, 1) * (score * 8**0.5) ** 0.5
    x = torch.zeros(1, 8, 16)  # (B, T, D)
    places = torch.arange(8)
    x[0, places, places % 4] = x[0, places, 8 + places % 4] = torch.where(places < 4, 1.0, -1.0)
    mask = torch.full((8, 8), float("-inf")).triu(1)  # (T, T)
    with torch.no_grad():
        wide, wide_weights = attention(x, mask)  # (B, T, D), (B, H, T, S)
        half, weights = attention.to(dtype)(x.to(dtype), mask.to(dtype))  # (B, T, D), (B, H, T, S)
    close(weights, wide_weights, dtype, roundings=8 if score < 16 else 64)
    close(half, wide, dtype, roundings=16 if score < 16 else 64)


@HALVES
@pytest.mark.parametrize("scale", [1, 2**6, 2**9])
def test_the_loss_of_logits_of_tens_of_thousands(dtype, scale):
    torch.manual_seed(0)
    hidden = torch.randn(20, 32).to(dtype)  # (N, D)
    weight = (torch.randn(50, 32) * scale).to(dtype)  # (V, D)
    bias, targets = torch.zeros(50, dtype=dtype), torch.randint(1, 50, (20,))  # (V,), (N,)
    wide = output_loss(hidden.float(), weight.float(), bias.float(), targets)  # ()
    hidden.requires_grad_()
    half = output_loss(hidden, weight, bias, targets)  # ()
    half.backward()
    close(half.detach(), wide, dtype, roundings=4)
    assert hidden.grad.isfinite().all()


@HALVES
def test_probabilities_of_the_largest_logits(dtype):
    largest = torch.finfo(dtype).max
    logits = torch.tensor([largest, largest / 2, 0.0, -largest], dtype=dtype)  # (V,)
    for filters in ({}, {"temperature": 1e-9}, {"top_k": 2}, {"top_p": 0.5}):
        assert filtered_distribution(logits, **filters).tolist() == [1.0, 0.0, 0.0, 0.0]


@HALVES
def test_a_whole_model_with_a_loud_embedding(dtype):
    """Word vectors a thousand times too large: still finite, and the same words first."""
    model = made_model().eval()
    with torch.no_grad():
        model.embedding.weight *= 1_000
        ids = torch.randint(1, 40, (4, 12))  # (B, T)
        wide = model(ids)  # (B, T, V)
        half = model.to(dtype)(ids)  # (B, T, V)
    close(half, wide, dtype, roundings=40)
