"""The model against PyTorch's own modules, the assignment's table, and what causality means."""

import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.model import (
    Decoder,
    DecoderBlock,
    KVCache,
    LayerNorm,
    ModelConfig,
    MultiHeadAttention,
    sinusoidal_positions,
)

SMALL = ModelConfig(
    vocab_size=50,
    embedding_dim=20,
    d_model=24,
    num_layers=2,
    num_heads=4,
    d_ff=48,
    context_length=16,
)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def relative_error(ours, reference):
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def causal_mask(length, dtype):
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)


def scramble(module, dtype):
    """Random gains and biases too, so that no parameter hides behind a one or a zero."""
    module.to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def torch_attention(ours: MultiHeadAttention, dtype):
    d_model = ours.output.in_features
    reference = nn.MultiheadAttention(d_model, ours.num_heads, batch_first=True, dtype=dtype)
    reference.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.output.weight,
            "out_proj.bias": ours.output.bias,
        }
    )
    return reference


def torch_norm(ours: LayerNorm, dtype):
    reference = nn.LayerNorm(ours.gain.numel(), dtype=dtype)
    reference.load_state_dict({"weight": ours.gain, "bias": ours.bias})
    return reference


def check_outputs_and_gradients(ours, reference, x, dtype):
    """Both map x to y; compare y and the gradient of a random projection of y with respect to x."""
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, target = ours(mine), reference(theirs)
    direction = torch.randn_like(target)
    (y * direction).sum().backward()
    (target * direction).sum().backward()
    assert relative_error(y, target) < TOLERANCE[dtype]
    assert relative_error(mine.grad, theirs.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestParityWithPyTorch:
    def test_layer_norm(self, dtype):
        torch.manual_seed(0)
        ours = scramble(LayerNorm(24), dtype)
        reference = torch_norm(ours, dtype)
        x = 5 * torch.randn(3, 7, 24, dtype=dtype) + 2
        check_outputs_and_gradients(ours, reference, x, dtype)
        assert relative_error(ours.gain.grad, reference.weight.grad) < TOLERANCE[dtype]
        assert relative_error(ours.bias.grad, reference.bias.grad) < TOLERANCE[dtype]

    def test_attention(self, dtype):
        torch.manual_seed(1)
        ours = scramble(MultiHeadAttention(SMALL), dtype)
        reference = torch_attention(ours, dtype)
        mask = causal_mask(9, dtype)
        x = torch.randn(3, 9, 24, dtype=dtype)
        check_outputs_and_gradients(
            lambda x: ours(x, mask)[0],
            lambda x: reference(x, x, x, attn_mask=mask, need_weights=False)[0],
            x,
            dtype,
        )
        _, weights = ours(x, mask)
        _, expected = reference(x, x, x, attn_mask=mask, average_attn_weights=False)
        assert relative_error(weights, expected) < TOLERANCE[dtype]
        assert (
            relative_error(ours.qkv.weight.grad, reference.in_proj_weight.grad) < TOLERANCE[dtype]
        )

    def test_whole_block(self, dtype):
        torch.manual_seed(2)
        ours = scramble(DecoderBlock(SMALL), dtype)
        reference = nn.TransformerEncoderLayer(
            24,
            4,
            dim_feedforward=48,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
            dtype=dtype,
        )
        state = {
            f"self_attn.{name}": p
            for name, p in torch_attention(ours.attention, dtype).state_dict().items()
        }
        for name, norm in (("norm1", ours.attention_norm), ("norm2", ours.feed_forward_norm)):
            state |= {f"{name}.weight": norm.gain, f"{name}.bias": norm.bias}
        for name, linear in (
            ("linear1", ours.feed_forward.expand),
            ("linear2", ours.feed_forward.contract),
        ):
            state |= {f"{name}.weight": linear.weight, f"{name}.bias": linear.bias}
        reference.load_state_dict(state)
        mask = causal_mask(9, dtype)
        check_outputs_and_gradients(
            lambda x: ours(x, mask)[0],
            lambda x: reference(x, src_mask=mask),
            torch.randn(3, 9, 24, dtype=dtype),
            dtype,
        )


def test_the_assignments_parameter_table():
    """Each row of the README's table, and its total."""
    model = Decoder(ModelConfig())

    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    assert count(model.embedding) == 10_000 * 300
    assert count(model.projection) == 300 * 296 + 296
    block = model.blocks[0]
    assert count(block.attention) == 351_648
    assert count(block.feed_forward) == 607_528
    assert count(block.attention_norm, block.feed_forward_norm) == 1_184
    assert [count(block) for block in model.blocks] == [960_360] * 3
    assert count(model.norm) == 592
    assert count(model.output) == 296 * 10_000 + 10_000
    assert model.num_parameters() == count(model) == 8_940_768


def test_a_later_token_leaves_earlier_logits_bit_identical():
    torch.manual_seed(3)
    model = Decoder(ModelConfig(vocab_size=200)).eval()
    ids = torch.randint(4, 200, (4, 64))
    changed = ids.clone()
    changed[:, 40] = (ids[:, 40] + 1 - 4) % 196 + 4
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40:], after[:, 40:])


def test_attention_is_returned_on_demand_and_is_causal():
    torch.manual_seed(4)
    model = Decoder(SMALL).eval()
    ids = torch.randint(4, 50, (2, 10))
    logits, attention = model(ids, return_attention=True)
    assert torch.equal(logits, model(ids))
    assert attention.shape == (2, 2, 4, 10, 10)  # (L, B, H, T, T)
    assert torch.allclose(attention.sum(-1), torch.ones(2, 2, 4, 10), atol=1e-6)
    assert attention.triu(1).abs().max() == 0


def test_sinusoidal_positions_are_the_papers_formula():
    table = sinusoidal_positions(5, 6)
    for position in range(5):
        for i in range(3):
            angle = torch.tensor(position / 10_000 ** (2 * i / 6), dtype=torch.float64)
            assert table[position, 2 * i].item() == pytest.approx(angle.sin().item(), abs=1e-7)
            assert table[position, 2 * i + 1].item() == pytest.approx(angle.cos().item(), abs=1e-7)


def test_dropout_only_acts_in_training_and_can_be_set():
    torch.manual_seed(5)
    model = Decoder(SMALL)
    ids = torch.randint(4, 50, (2, 10))
    assert torch.equal(model.train()(ids), model.eval()(ids))
    model.set_dropout(0.5)
    assert not torch.equal(model.train()(ids), model.eval()(ids))


def test_padding_vector_is_zero_and_stays_zero():
    model = Decoder(SMALL)
    assert model.embedding.weight[0].abs().max() == 0
    model(torch.tensor([[1, 5, 0, 0]])).sum().backward()
    assert model.embedding.weight.grad[0].abs().max() == 0


def test_loading_vectors():
    torch.manual_seed(7)
    model = Decoder(SMALL)
    matrix = torch.randn(50, 20)
    matrix[[0, 48, 49]] = 0
    model.load_vectors(matrix.numpy(), std=0.5, output_std=0.25, freeze=True)
    assert torch.allclose(model.embedding.weight, matrix * 0.5 / matrix[1:48].std())
    assert not model.embedding.weight.requires_grad
    assert model.output.weight[1:48].std().item() == pytest.approx(0.25, rel=1e-5)
    assert model.output.weight[[0, 48, 49]].abs().max() == 0
    seen_through = (matrix @ model.projection.weight.T)[1:48]
    seen_through -= seen_through.mean(0)
    assert torch.cosine_similarity(model.output.weight[1:48], seen_through).min() > 0.9999
    output = model.output.weight.clone()
    model.load_vectors(matrix, output_std=None)
    assert torch.equal(model.output.weight, output)
    assert model.embedding.weight.requires_grad


def test_vectors_that_do_not_fit_are_refused():
    model, matrix = Decoder(SMALL), torch.randn(50, 20)
    for wrong in (matrix[:40], matrix[:, :10]):
        with pytest.raises(ValueError, match=r"do not fit an embedding of \(50, 20\)"):
            model.load_vectors(wrong)
    with pytest.raises(ValueError, match="all word vectors are zero"):
        model.load_vectors(torch.zeros(50, 20))


def test_queries_keys_and_values_start_as_three_xavier_matrices():
    torch.manual_seed(8)
    attention = Decoder(ModelConfig()).blocks[0].attention
    bound = (6 / (296 + 296)) ** 0.5
    for matrix in attention.qkv.weight.chunk(3):
        assert 0.99 * bound < matrix.abs().max() <= bound


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 300}, r"not divisible by num_heads=8.*try d_model=296"),
        ({"num_heads": 0}, "at least 1"),
        ({"d_model": 9, "num_heads": 3}, "is odd"),
        ({"dropout": 1.0}, "not a probability below 1"),
        ({"num_heads": 2.0}, "a whole number"),
        ({"context_length": 16_385}, "would fill gigabytes; choose a shorter one"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)


def test_a_text_longer_than_the_context_is_refused():
    model = Decoder(SMALL)
    with pytest.raises(ValueError, match="17 tokens do not fit a context of 1 to 16"):
        model(torch.ones(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="0 tokens do not fit"):
        model(torch.ones(1, 0, dtype=torch.long))


def forbidden_names(source: str) -> list[str]:
    """Ready-made parts that the assignment does not allow, wherever the syntax tree names them."""
    banned = {
        "LayerNorm",
        "RMSNorm",
        "MultiheadAttention",
        "scaled_dot_product_attention",
        "layer_norm",
        "multi_head_attention_forward",
    }
    tree = ast.parse(source)
    ours = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name, dotted = node.attr, ast.unparse(node)
        elif isinstance(node, ast.Name) and node.id not in ours:
            name = dotted = node.id
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("helpers"):
            found += [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if alias.name in banned or "Transformer" in alias.name
            ]
            name, dotted = "", node.module or ""
        elif isinstance(node, ast.Import):
            name, dotted = "", " ".join(alias.name for alias in node.names)
        else:
            continue
        if name in banned or "Transformer" in name or "utils.checkpoint" in dotted:
            found.append(dotted)
    return found


def test_the_check_for_ready_made_parts_finds_them():
    for line in (
        "norm = nn.LayerNorm(8)",
        "from torch.nn import MultiheadAttention as M",
        "y = F.scaled_dot_product_attention(q, k, v)",
        "block = torch.nn.TransformerEncoderLayer(8, 2)",
        "import torch.utils.checkpoint",
        "from torch.utils.checkpoint import checkpoint",
        "y = F.layer_norm(x, (8,))",
    ):
        assert forbidden_names(line), line


@pytest.mark.parametrize("path", sorted(Path("helpers").glob("*.py")), ids=lambda path: path.name)
def test_only_the_parts_that_the_assignment_allows(path):
    assert forbidden_names(path.read_text(encoding="utf-8")) == []


def test_loss_of_an_untrained_model_is_that_of_a_guess():
    torch.manual_seed(6)
    model = Decoder(ModelConfig(vocab_size=1000))
    ids = torch.randint(4, 1000, (8, 64))
    loss = F.cross_entropy(model(ids).flatten(0, 1), torch.randint(4, 1000, (8, 64)).flatten())
    assert loss.item() == pytest.approx(torch.log(torch.tensor(1000.0)).item(), rel=0.1)


# --- The cache ------------------------------------------------------------------------------------


def float64_decoder():
    torch.manual_seed(0)
    return Decoder(SMALL).double().eval()


def random_ids(rows, length, seed=0):
    return torch.randint(4, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 1, 1, 3], [8, 1]], ids=str)
@torch.no_grad()
def test_read_in_pieces_with_a_cache_as_read_at_once(pieces):
    model, ids = float64_decoder(), random_ids(3, 9)
    cache = KVCache(SMALL, 3, dtype=torch.float64)
    logits, attention = model(ids, return_attention=True)
    found = [model(piece, cache, return_attention=True) for piece in ids.split(pieces, dim=1)]
    assert cache.length == 9
    assert relative_error(torch.cat([piece for piece, _ in found], dim=1), logits) <= 1e-12
    last = found[-1][1]  # (L, B, H, T, S)
    assert relative_error(last, attention[..., -pieces[-1] :, :]) <= 1e-12


@torch.no_grad()
def test_padding_on_the_left_changes_nothing():
    model, ids = float64_decoder(), random_ids(3, 9)
    padding = torch.tensor([0, 2, 5])
    padded = torch.stack(
        [torch.cat([ids.new_zeros(n), row[: 9 - n]]) for n, row in zip(padding, ids, strict=True)]
    )
    cache = KVCache(SMALL, 3, capacity=30, dtype=torch.float64)
    at_once = model(padded, padding=padding)
    pieces = torch.cat(
        [model(piece, cache, padding=padding) for piece in padded.split([6, 1, 2], dim=1)], dim=1
    )
    for row, n in enumerate(padding.tolist()):
        alone = model(ids[row : row + 1, : 9 - n])[0]
        assert relative_error(at_once[row, n:], alone) <= 1e-12
        assert relative_error(pieces[row, n:], alone) <= 1e-12


@torch.no_grad()
def test_a_cache_is_reordered_and_cropped():
    model, ids = float64_decoder(), random_ids(3, 9)
    for rows in ([2, 0, 1], [1, 1, 1], [2], [0, 0, 1, 2, 2]):
        rows = torch.tensor(rows)
        cache = KVCache(SMALL, 3, dtype=torch.float64)
        model(ids, cache)
        cache.reorder(rows)
        cache.crop(5)
        assert relative_error(model(ids[rows, 5:], cache), model(ids[rows])[:, 5:]) <= 1e-12


def test_a_cache_takes_the_bytes_of_the_formula():
    cache = KVCache(SMALL, 3, capacity=10)
    assert cache.nbytes == 2 * SMALL.num_layers * 3 * SMALL.d_model * 10 * 4
    assert KVCache(SMALL, 3, dtype=torch.bfloat16).nbytes == 2 * 2 * 3 * 24 * 16 * 2


@torch.no_grad()
def test_a_cache_refuses_what_it_cannot_hold():
    model, ids = float64_decoder(), random_ids(3, 9)
    cache = KVCache(SMALL, 3, capacity=10, dtype=torch.float64)
    model(ids, cache)
    with pytest.raises(ValueError, match="9 tokens and 2 more exceed the cache's room for 10"):
        model(ids[:, :2], cache)
    with pytest.raises(ValueError, match="do not fit a cache of 3 rows"):
        model(ids[:2, :1], cache)
    with pytest.raises(ValueError, match="cannot crop to 10 tokens: the cache holds 9"):
        cache.crop(10)
    with pytest.raises(ValueError, match="17 tokens do not fit a context of 1 to 16"):
        model(random_ids(3, 8), cache)


@torch.no_grad()
def test_a_pass_that_was_broken_off_is_noticed():
    model, ids = float64_decoder(), random_ids(3, 4)
    cache = KVCache(SMALL, 3, dtype=torch.float64)
    model(ids, cache)
    model.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids, cache)
    with pytest.raises(RuntimeError, match=r"the layers hold \[8, 4\] tokens.*call cache.crop"):
        model(ids, cache)
    cache.crop(4)
    assert cache.length == 4
