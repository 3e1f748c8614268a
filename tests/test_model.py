"""The model against PyTorch's own modules, the assignment's table, and what causality means."""

import ast
import re

import pytest
import torch
import torch.nn.functional as F
from support import ROOT, SIZES, made_model, relative_error
from torch import nn

from helpers.kv_cache import KVCache
from helpers.memory import measure_peak_memory
from helpers.model import (
    Decoder,
    DecoderBlock,
    LayerNorm,
    ModelConfig,
    MultiHeadAttention,
    sinusoidal_positions,
)

SMALL = ModelConfig(vocab_size=40, **SIZES | {"num_heads": 4})
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def causal_mask(length, dtype):
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)


def random_ids(*shape):
    return torch.randint(4, 40, shape, generator=torch.Generator().manual_seed(0))


def scramble(module, dtype):
    """Random gains and biases too, so that no parameter hides behind a one or a zero."""
    module.to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def named_as_in_torch(ours: MultiHeadAttention | LayerNorm, prefix=""):
    """The parameters under the names that PyTorch's own module of the kind has."""
    if isinstance(ours, LayerNorm):
        return {f"{prefix}weight": ours.gain, f"{prefix}bias": ours.bias}
    joined = {"in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias}
    output = {"out_proj.weight": ours.output.weight, "out_proj.bias": ours.output.bias}
    return {prefix + name: parameter for name, parameter in (joined | output).items()}


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
        ours, reference = scramble(LayerNorm(24), dtype), nn.LayerNorm(24, dtype=dtype)
        reference.load_state_dict(named_as_in_torch(ours))
        x = 5 * torch.randn(3, 7, 24, dtype=dtype) + 2
        check_outputs_and_gradients(ours, reference, x, dtype)
        assert relative_error(ours.gain.grad, reference.weight.grad) < TOLERANCE[dtype]
        assert relative_error(ours.bias.grad, reference.bias.grad) < TOLERANCE[dtype]

    def test_attention(self, dtype):
        torch.manual_seed(1)
        ours = scramble(MultiHeadAttention(SMALL), dtype)
        reference = nn.MultiheadAttention(16, 4, batch_first=True, dtype=dtype)
        reference.load_state_dict(named_as_in_torch(ours))
        mask, x = causal_mask(9, dtype), torch.randn(3, 9, 16, dtype=dtype)
        mixed = lambda x: reference(x, x, x, attn_mask=mask, need_weights=False)[0]
        check_outputs_and_gradients(lambda x: ours(x, mask)[0], mixed, x, dtype)
        _, weights = ours(x, mask)
        _, expected = reference(x, x, x, attn_mask=mask, average_attn_weights=False)
        assert relative_error(weights, expected) < TOLERANCE[dtype]
        error = relative_error(ours.qkv.weight.grad, reference.in_proj_weight.grad)
        assert error < TOLERANCE[dtype]

    def test_whole_block(self, dtype):
        torch.manual_seed(2)
        ours = scramble(DecoderBlock(SMALL), dtype)
        how = {"activation": "gelu", "batch_first": True, "norm_first": True, "dtype": dtype}
        reference = nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, dropout=0.0, **how)
        state = named_as_in_torch(ours.attention, "self_attn.")
        state |= named_as_in_torch(ours.attention_norm, "norm1.")
        state |= named_as_in_torch(ours.feed_forward_norm, "norm2.")
        linear = ours.feed_forward.expand, ours.feed_forward.contract
        for name, layer in zip(("linear1", "linear2"), linear, strict=True):
            state |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
        reference.load_state_dict(state)
        mask, x = causal_mask(9, dtype), torch.randn(3, 9, 16, dtype=dtype)
        whole = lambda x: reference(x, src_mask=mask)
        check_outputs_and_gradients(lambda x: ours(x, mask)[0], whole, x, dtype)


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
    model, ids = made_model(num_heads=4).eval(), random_ids(2, 10)
    logits, attention = model(ids, return_attention=True)
    assert torch.equal(logits, model(ids))
    assert attention.shape == (2, 2, 4, 10, 10)  # (L, B, H, T, T)
    assert torch.allclose(attention.sum(-1), torch.ones(2, 2, 4, 10), atol=1e-6)
    assert attention.triu(1).abs().max() == 0


def padded_pairs():
    """A float64 model, ids (B, T) and what follows each: rows of 11, 8, 5 and 1 tokens."""
    ids = random_ids(4, 12)
    for row, length in enumerate((12, 9, 6, 2)):
        ids[row, length:] = 0
    return made_model().double(), ids[:, :-1], ids[:, 1:]


def test_with_targets_the_loss_is_pytorchs_cross_entropy_of_all_logits():
    model, ids, targets = padded_pairs()
    total, count = model(ids, targets=targets)
    logits = model(ids).flatten(0, 1)  # (B·T, V)
    expected = F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=0)
    assert total.shape == count.shape == ()
    assert count.item() == 11 + 8 + 5 + 1
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    parameters = list(model.parameters())
    pairs = zip(*(torch.autograd.grad(loss, parameters) for loss in (total, expected)), strict=True)
    for ours, reference in pairs:
        assert (ours - reference).abs().max() <= 1e-12 * max(1.0, reference.abs().max())


def test_with_targets_attention_comes_second():
    model, ids, targets = padded_pairs()
    (total, count), attention = model(ids, targets=targets, return_attention=True)
    assert [total, count] == list(model(ids, targets=targets))
    assert torch.equal(attention, model(ids, return_attention=True)[1])
    assert attention.shape == (2, 4, 2, 11, 11)  # (L, B, H, T, T)
    last, attention = model(ids, last_only=True, return_attention=True)
    assert torch.equal(last, model(ids, last_only=True))
    assert attention.shape == (2, 4, 2, 11, 11)


def test_all_logits_of_a_batch_are_made_only_if_somebody_asks_for_them():
    """With targets not even in a training step, whose gradients are as large again."""
    model, ids = made_model(vocab_size=2_000), random_ids(512, 12)
    logits = 512 * 12 * 2_000 * 4  # bytes

    def peak(then=lambda result: None, **how):
        model.zero_grad(set_to_none=True)
        return measure_peak_memory(lambda: then(model(ids, **how)), "cpu")

    assert peak() > logits
    assert peak(lambda result: result[0].backward(), targets=ids) < logits / 2
    with torch.no_grad():
        assert peak() > logits
        assert peak(targets=ids) < logits / 2
        assert peak(last_only=True) < logits / 4


@torch.no_grad()
def test_the_last_logits_alone_are_those_of_the_last_token():
    model, ids = made_model().double().eval(), random_ids(3, 9)
    for padding in (None, torch.tensor([0, 2, 5])):
        logits = model(ids, padding=padding)  # (B, T, V)
        last = model(ids, padding=padding, last_only=True)  # (B, V)
        assert last.shape == (3, 40)
        assert relative_error(last, logits[:, -1]) <= 1e-12
        cache, end = KVCache(model.config, 3, dtype=torch.float64), 0
        for piece in ids.split([6, 1, 2], dim=1):
            end += piece.shape[1]
            last = model(piece, cache, padding=padding, last_only=True)  # (B, V)
            assert relative_error(last, logits[:, end - 1]) <= 1e-12


def test_sinusoidal_positions_are_the_papers_formula():
    table = sinusoidal_positions(5, 6)
    for position in range(5):
        for i in range(3):
            angle = torch.tensor(position / 10_000 ** (2 * i / 6), dtype=torch.float64)
            assert table[position, 2 * i].item() == pytest.approx(angle.sin().item(), abs=1e-7)
            assert table[position, 2 * i + 1].item() == pytest.approx(angle.cos().item(), abs=1e-7)


def test_dropout_only_acts_in_training_and_can_be_set():
    model, ids = made_model(), random_ids(2, 10)
    assert torch.equal(model.train()(ids), model.eval()(ids))
    model.set_dropout(0.5)
    assert not torch.equal(model.train()(ids), model.eval()(ids))


def test_padding_vector_is_zero_and_stays_zero():
    model = made_model()
    assert model.embedding.weight[0].abs().max() == 0
    model(torch.tensor([[1, 5, 0, 0]])).sum().backward()
    assert model.embedding.weight.grad[0].abs().max() == 0


def test_starting_from_vectors():
    model, matrix = made_model(), torch.randn(40, 12)
    matrix[[0, 38, 39]] = 0
    model.start_from_vectors(matrix.numpy(), std=0.5, output_std=0.25, freeze=True)
    assert torch.allclose(model.embedding.weight, matrix * 0.5 / matrix[1:38].std())
    assert not model.embedding.weight.requires_grad
    assert model.output.weight[1:38].std().item() == pytest.approx(0.25, rel=1e-5)
    assert model.output.weight[[0, 38, 39]].abs().max() == 0
    seen_through = (matrix @ model.projection.weight.T)[1:38]
    seen_through -= seen_through.mean(0)
    assert torch.cosine_similarity(model.output.weight[1:38], seen_through).min() > 0.9999
    output = model.output.weight.clone()
    model.start_from_vectors(matrix, output_std=None)
    assert torch.equal(model.output.weight, output)
    assert model.embedding.weight.requires_grad


def test_vectors_that_do_not_fit_are_refused():
    model, matrix = made_model(), torch.randn(40, 12)
    cases = {"(30, 12), 30": matrix[:30], "(40, 10), 40": matrix[:, :10]}
    for told, wrong in (cases | {"(40, 12), 0": torch.zeros(40, 12)}).items():
        message = f"word vectors of shape {told} of them not zero, do not fit an embedding of (40,"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            model.start_from_vectors(wrong)


def test_queries_keys_and_values_start_as_three_xavier_matrices():
    torch.manual_seed(8)
    attention = Decoder(ModelConfig()).blocks[0].attention
    bound = (6 / (296 + 296)) ** 0.5
    for matrix in attention.qkv.weight.chunk(3):
        assert 0.99 * bound < matrix.abs().max() <= bound


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 300}, "d_model=300 is not divisible by num_heads=8: each head takes an equal"),
        ({"d_model": 300}, "share of the width; try d_model=296"),
        ({"num_heads": 0}, "num_heads=0: must be a whole number of at least 1"),
        ({"num_heads": 2.0}, "num_heads=2.0: must be a whole number of at least 1"),
        (
            {"d_model": 9, "num_heads": 3},
            "d_model=9: must be even: positions come in pairs of sine and cosine",
        ),
        ({"dropout": 1.0}, "dropout=1.0: must be a probability below 1"),
        (
            {"context_length": 16_385},
            "context_length=16385: must be at most 16384: the mask is its",
        ),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig(**changes)


def test_a_text_longer_than_the_context_is_refused():
    model = made_model()
    with pytest.raises(ValueError, match="13 tokens do not fit a context of 1 to 12"):
        model(torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="0 tokens do not fit a context of 1 to 12"):
        model(torch.ones(1, 0, dtype=torch.long))


BANNED = {"LayerNorm", "RMSNorm", "MultiheadAttention", "scaled_dot_product_attention"}
BANNED |= {"layer_norm", "multi_head_attention_forward"}


def forbidden_names(source: str) -> list[str]:
    """Ready-made parts that the assignment does not allow, wherever the syntax tree names them."""
    tree = ast.parse(source)
    ours = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    banned = lambda name: name in BANNED or "Transformer" in name
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name, dotted = node.attr, ast.unparse(node)
        elif isinstance(node, ast.Name) and node.id not in ours:
            name = dotted = node.id
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("helpers"):
            names = [alias.name for alias in node.names]
            found += [f"{node.module}.{name}" for name in names if banned(name)]
            name, dotted = "", node.module or ""
        elif isinstance(node, ast.Import):
            name, dotted = "", " ".join(alias.name for alias in node.names)
        else:
            continue
        if banned(name) or "utils.checkpoint" in dotted:
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


SOURCES = sorted((ROOT / "helpers").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_parts_that_the_assignment_allows(path):
    assert forbidden_names(path.read_text(encoding="utf-8")) == []


def test_loss_of_an_untrained_model_is_that_of_a_guess():
    torch.manual_seed(6)
    model = Decoder(ModelConfig(vocab_size=1000))
    ids = torch.randint(4, 1000, (8, 64))
    loss = F.cross_entropy(model(ids).flatten(0, 1), torch.randint(4, 1000, (8, 64)).flatten())
    assert loss.item() == pytest.approx(torch.log(torch.tensor(1000.0)).item(), rel=0.1)
