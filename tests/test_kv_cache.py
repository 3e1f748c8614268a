"""Keys and values that are kept: read in pieces as read at once, also padded and reordered."""

import pytest
import torch
from support import SIZES, made_model, relative_error

from helpers.kv_cache import KVCache
from helpers.model import ModelConfig

CONFIG = ModelConfig(vocab_size=40, **SIZES)


def float64_cache(rows=3, capacity=None):
    return KVCache(CONFIG, rows, capacity, dtype=torch.float64)


def float64_decoder():
    return made_model().double().eval()


def random_ids(rows, length):
    return torch.randint(4, 40, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 1, 1, 3], [8, 1]], ids=str)
@torch.no_grad()
def test_read_in_pieces_with_a_cache_as_read_at_once(pieces):
    model, ids, cache = float64_decoder(), random_ids(3, 9), float64_cache()
    logits, attention = model(ids, return_attention=True)
    found = [model(piece, cache, return_attention=True) for piece in ids.split(pieces, dim=1)]
    assert cache.length == 9
    assert relative_error(torch.cat([piece for piece, _ in found], dim=1), logits) <= 1e-12
    last = found[-1][1]  # (L, B, H, T, S)
    assert relative_error(last, attention[..., -pieces[-1] :, :]) <= 1e-12


@torch.no_grad()
def test_padding_on_the_left_changes_nothing():
    model, ids, cache = float64_decoder(), random_ids(3, 9), float64_cache(capacity=30)
    padding = torch.tensor([0, 2, 5])  # (B,)
    padded = torch.zeros_like(ids)  # (B, T)
    for row, n in enumerate(padding):
        padded[row, n:] = ids[row, : 9 - n]
    at_once = model(padded, padding=padding)
    steps = [model(piece, cache, padding=padding) for piece in padded.split([6, 1, 2], dim=1)]
    pieces = torch.cat(steps, dim=1)
    for row, n in enumerate(padding.tolist()):
        alone = model(ids[row : row + 1, : 9 - n])[0]
        assert relative_error(at_once[row, n:], alone) <= 1e-12
        assert relative_error(pieces[row, n:], alone) <= 1e-12


@torch.no_grad()
def test_a_cache_is_reordered_and_cropped():
    model, ids = float64_decoder(), random_ids(3, 9)
    for rows in ([2, 0, 1], [1, 1, 1], [2], [0, 0, 1, 2, 2]):
        rows, cache = torch.tensor(rows), float64_cache()
        model(ids, cache)
        cache.reorder(rows)
        cache.length = 5
        assert relative_error(model(ids[rows, 5:], cache), model(ids[rows])[:, 5:]) <= 1e-12


def test_a_cache_takes_the_bytes_of_the_formula():
    assert KVCache(CONFIG, 3, capacity=10).nbytes == 2 * 2 * 3 * 16 * 10 * 4  # 2 L B D S bytes
    assert KVCache(CONFIG, 3, dtype=torch.bfloat16).nbytes == 2 * 2 * 3 * 16 * 12 * 2


@torch.no_grad()
def test_a_cache_refuses_what_it_cannot_hold():
    model, ids, cache = float64_decoder(), random_ids(3, 9), float64_cache(capacity=10)
    model(ids, cache)
    with pytest.raises(ValueError, match="heads of width 8 and 10 tokens that holds 9: build"):
        model(ids[:, :2], cache)
    with pytest.raises(ValueError, match="do not fit a cache of 3 rows, 2 heads of width 8"):
        model(ids[:2, :1], cache)
    with pytest.raises(ValueError, match="17 tokens do not fit a context of 1 to 12"):
        model(random_ids(3, 8), cache)


@torch.no_grad()
def test_a_pass_that_was_broken_off_leaves_no_trace():
    model, ids, cache = float64_decoder(), random_ids(3, 4), float64_cache()
    model(ids, cache)
    model.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids, cache)
    assert cache.length == 4
    model.blocks[1]._forward_pre_hooks.clear()
    more, both = random_ids(3, 5), float64_cache()
    whole = model(torch.cat([ids, more], 1), both)[:, 4:]
    assert torch.allclose(model(more, cache), whole, atol=1e-12)
