"""The decoder-only transformer, from its basic parts.

Only `nn.Linear`, `nn.Embedding`, `nn.Parameter`, `nn.Dropout` and a non-linearity come from
PyTorch. Shape comments name the sizes: B stories, T tokens, S keys (T, or more with a cache), D
model width, E embedding width, H heads, d = D / H head width, F feed-forward width, L blocks, V
vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.kv_cache import KVCache
from helpers.loss import output_loss
from helpers.memory import checkpoint
from helpers.support.checks import check, counts, require
from helpers.tokenizer import WordTokenizer

LONGEST_CONTEXT = 16_384  # tokens: the mask alone is a table of its square, one gigabyte


_SIZE_RULES = {
    "vocab_size embedding_dim d_model num_layers num_heads d_ff context_length": (
        "a whole number of at least 1",
        counts,
    ),
    "d_model": ("even: positions come in pairs of sine and cosine", lambda size: size % 2 == 0),
    "context_length": (
        f"at most {LONGEST_CONTEXT}: the mask is its square, and would fill gigabytes",
        lambda length: length <= LONGEST_CONTEXT,
    ),
    "dropout": ("a probability below 1", lambda dropout: 0 <= dropout < 1),
}


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a Decoder. The defaults are the assignment's: 8,940,768 parameters.

    Raises ValueError if the sizes cannot make a model.
    """

    vocab_size: int = 10_000
    embedding_dim: int = 300  # width of the word vectors
    d_model: int = 296  # width inside the model; a multiple of num_heads, which 300 is not
    num_layers: int = 3
    num_heads: int = 8
    d_ff: int = 1024
    context_length: int = 64
    dropout: float = 0.0

    def __post_init__(self):
        check(vars(self), _SIZE_RULES)
        require(
            self.d_model % self.num_heads == 0,
            f"d_model={self.d_model} is not divisible by num_heads={self.num_heads}: each "
            "head takes an equal share of the width; try "
            f"d_model={self.d_model - self.d_model % self.num_heads or self.num_heads}",
        )


class LayerNorm(nn.Module):
    """Shift and scale each token's vector to mean 0 and variance 1, then apply gain and bias.

    Ba, Kiros & Hinton 2016, "Layer Normalization", section 3.
    """

    def __init__(self, d_model: int, eps: float = 1e-5):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))  # (D,)
        self.bias = nn.Parameter(torch.zeros(d_model))  # (D,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (…, D) -> (…, D)
        # In float32 at least: float16 cannot hold the squares.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # (…, D)
        centred = wide - wide.mean(dim=-1, keepdim=True)  # (…, D)
        variance = centred.square().mean(dim=-1, keepdim=True)  # (…, 1)
        normed = (centred * torch.rsqrt(variance + self.eps)).to(x.dtype)  # (…, D)
        return normed * self.gain + self.bias  # (…, D)


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """One row per position, (length, d_model): sines in the even columns, cosines in the odd ones.

    Wavelengths grow geometrically from 2π to nearly 10,000 · 2π. Vaswani et al. 2017, section 3.5.
    """
    position = torch.arange(length, dtype=torch.float64)  # (T,)
    frequency = 10_000 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (D/2,)
    angle = torch.outer(position, frequency)  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()  # (T, D)


class MultiHeadAttention(nn.Module):
    """Causal self-attention: in each head, a token takes a weighted mean of itself and the past.

    Vaswani et al. 2017, section 3.2. Queries, keys and values come from one matrix product.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.output = nn.Linear(config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor, remember: Callable | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mix the tokens of x.

        Args:
            x: (B, T, D).
            mask: (T, S) or (B, 1, T, S), 0 if a query may look at a key and -inf if not.
            remember: takes the new keys and values and returns all, those of earlier calls first
                (`KVCache.append`); None if there were no earlier calls.

        Returns:
            The mixed tokens (B, T, D), and the attention weights (B, H, T, S).
        """
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads)  # (B, T, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, d) each
        if remember is not None:
            k, v = remember(k, v)  # (B, H, S, d) each
        scores = (q * k.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask  # (B, H, T, S)
        weights = scores.softmax(dim=-1)  # (B, H, T, S), each row sums to 1
        mixed = self.dropout(weights) @ v  # (B, H, T, d)
        joined = mixed.transpose(1, 2).reshape(B, T, D)  # (B, T, D), the heads side by side
        return self.output(joined), weights  # (B, T, D), (B, H, T, S)


class FeedForward(nn.Module):
    """The same small two-layer network at every position.

    Vaswani et al. 2017, section 3.3, with GELU for ReLU.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.expand = nn.Linear(config.d_model, config.d_ff)
        self.dropout = nn.Dropout(config.dropout)
        self.contract = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.contract(self.dropout(F.gelu(self.expand(x))))  # (B, T, F) inside


class DecoderBlock(nn.Module):
    """Attention, then feed-forward: each reads a normed copy of the stream and adds its result.

    Pre-norm: x + f(norm(x)), as in Xiong et al. 2020, "On Layer Normalization in the Transformer
    Architecture", figure 1b.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = LayerNorm(config.d_model)
        self.attention = MultiHeadAttention(config)
        self.feed_forward_norm = LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor, remember: Callable | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `MultiHeadAttention.forward`: x (B, T, D) -> x (B, T, D), weights (B, H, T, S)."""
        normed = self.attention_norm(x)  # (B, T, D)
        mixed, weights = self.attention(normed, mask, remember)  # (B, T, D), (B, H, T, S)
        x = x + self.dropout(mixed)  # (B, T, D)
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # (B, T, D)
        return x, weights


class Decoder(nn.Module):
    """Token ids in, scores of every possible next token out.

    embedding (V, E) → projection (E, D) + positions → L blocks → norm → output (D, V).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        # <pad> is id 0.
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim, padding_idx=0)
        self.projection = nn.Linear(config.embedding_dim, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size)
        length = config.context_length
        mask = torch.full((length, length), float("-inf")).triu(1)  # (T, T)
        self.register_buffer("mask", mask, persistent=False)
        positions = sinusoidal_positions(length, config.d_model)  # (T, D)
        self.register_buffer("positions", positions, persistent=False)
        self.segments: tuple[int, ...] = ()
        self.tokenizer_digest: str | None = None  # of the one that it was made for; None: any
        self.initialize()

    def initialize(self) -> None:
        """Draw word vectors with standard deviation 0.02 and Xavier-uniform matrices; zero biases.

        Glorot & Bengio 2010, "Understanding the Difficulty of Training Deep Feedforward
        Neural Networks".
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # Queries, keys and values are three matrices side by side, not one wide one.
                for matrix in module.weight.chunk(3) if name.endswith("qkv") else [module.weight]:
                    nn.init.xavier_uniform_(matrix)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            self.embedding.weight[0] = 0.0  # <pad>

    def start_from_vectors(
        self, matrix, std: float = 0.02, output_std: float | None = 0.06, freeze: bool = False
    ) -> None:
        """Start the embedding, and the output layer too, from word vectors.

        The output layer becomes the same vectors seen through the projection, less their mean:
        words of similar use start with similar inputs and similar scores.

        Args:
            matrix: (V, E) of float32; rows of zeros stay zero and do not count.
            std: standard deviation that the embedding as a whole is scaled to.
            output_std: the same for the output layer; None leaves that layer alone.
            freeze: whether to keep the embedding from training.

        Raises:
            ValueError: if the shapes differ, or if no row has a vector.
        """
        matrix = torch.as_tensor(matrix)  # (V, E)
        filled = matrix.any(dim=-1)  # (V,)
        require(
            matrix.shape == self.embedding.weight.shape and filled.any(),
            f"word vectors of shape {tuple(matrix.shape)}, {int(filled.sum())} of them not zero, "
            f"do not fit an embedding of {tuple(self.embedding.weight.shape)}: build them with "
            "vectors.matrix(tokenizer, rows=config.vocab_size), and the model with embedding_dim = "
            "the vectors' width",
        )
        with torch.no_grad():
            self.embedding.weight.copy_(matrix * (std / matrix[filled].std()))
            if output_std is not None:
                seen = self.embedding.weight @ self.projection.weight.T  # (V, D)
                seen = (seen - seen[filled].mean(dim=0)) * filled[:, None]  # (V, D)
                self.output.weight.copy_(seen * (output_std / seen[filled].std()))
        self.embedding.weight.requires_grad_(not freeze)

    def check_tokenizer(self, tokenizer: WordTokenizer) -> None:
        """Raises ValueError if the tokenizer is another model's, or has too many tokens."""
        require(
            len(tokenizer) <= self.config.vocab_size,
            f"the vocabulary of {len(tokenizer)} is larger than the model's table of "
            f"{self.config.vocab_size}: train the tokenizer with this vocab_size, or build the "
            "model with more rows",
        )
        require(
            self.tokenizer_digest in (None, tokenizer.digest),
            "the tokenizer is another model's: take the one that `load_checkpoint` returned with "
            "this model, or that it was trained with",
        )

    def set_dropout(self, probability: float) -> None:
        """Use this dropout everywhere, whatever the config said."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability

    def set_recomputation(self, *segments: int) -> None:
        """In training, keep only the input of each segment of blocks, and recompute its inside.

        One number says into how many segments the blocks are divided (num_layers: one each), a
        second divides each of these again, and so on. No number: keep everything.

        Raises ValueError if there are fewer blocks than segments.
        """
        blocks = len(self.blocks)
        for count in segments:
            require(
                counts(count) and count <= blocks,
                f"recompute_segments={segments}: {blocks} blocks cannot be divided into "
                f"{count}; the model has {len(self.blocks)} blocks",
            )
            blocks //= count
        self.segments = segments

    def _through(
        self, x: Tensor, mask: Tensor, blocks: list[DecoderBlock], segments: tuple[int, ...]
    ) -> Tensor:
        """x (B, T, D) after these blocks, in checkpointed segments if there are any."""
        if not segments:
            for block in blocks:
                x, _ = block(x, mask)  # (B, T, D)
            return x
        ends = [len(blocks) * i // segments[0] for i in range(segments[0] + 1)]
        for start, end in pairwise(ends):
            x = checkpoint(self._through, x, mask, blocks[start:end], segments[1:])  # (B, T, D)
        return x

    def hidden(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        padding: Tensor | None = None,
        return_attention: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """What the output layer reads: the normed residual stream. Arguments as in `forward`.

        Returns:
            The stream (B, T, D), and each block's attention weights (B, H, T, S) if asked for.
        """
        T, before = ids.shape[-1], 0 if cache is None else cache.length
        tokens = before + T - (0 if padding is None else int(padding.min()))
        if T < 1 or tokens > self.config.context_length:
            raise ValueError(
                f"{tokens} tokens do not fit a context of 1 to {self.config.context_length}: "
                "shorten the text, or build the model with a longer context_length"
            )
        mask, positions = self._mask_and_positions(T, before, padding)
        # Vaswani et al. 2017, section 3.4: scaled by √D, or the positions would drown the words.
        x = self.projection(self.embedding(ids)) * self.config.d_model**0.5 + positions  # (B, T, D)
        x = self.dropout(x)
        if self.segments and cache is None and not return_attention:
            return self.norm(self._through(x, mask, list(self.blocks), self.segments)), []
        attention = []
        for layer, block in enumerate(self.blocks):
            remember = None if cache is None else partial(cache.append, layer)
            x, weights = block(x, mask, remember)  # (B, T, D), (B, H, T, S)
            if return_attention:
                attention.append(weights)
        return self.norm(x), attention

    def _mask_and_positions(
        self, T: int, before: int, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """After `before` tokens: mask (T, S) or (B, 1, T, S), positions (T, D) or (B, T, D)."""
        S = before + T
        if padding is None:
            return self.mask[before:S, :S], self.positions[before:S]
        keys = torch.arange(S, device=padding.device)  # (S,)
        queries = keys[before:, None]  # (T, 1)
        # A `<pad>` looks at itself: a row of -inf alone would make the softmax NaN.
        seen = (keys <= queries) & (keys >= padding[:, None, None]) | (keys == queries)  # (B, T, S)
        mask = torch.zeros_like(seen, dtype=self.positions.dtype)  # (B, T, S)
        mask = mask.masked_fill(~seen, float("-inf"))[:, None]  # (B, 1, T, S)
        places = (keys[before:] - padding[:, None]).clamp(min=0)  # (B, T)
        return mask, self.positions[places]  # (B, 1, T, S), (B, T, D)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        padding: Tensor | None = None,
        targets: Tensor | None = None,
        last_only: bool = False,
        return_attention: bool = False,
    ):
        """Logits: row t scores every token that may follow token t.

        Args:
            ids: (B, T).
            cache: ids follow the tokens that it holds, and are added to it.
            padding: (B,), how many `<pad>` each row began with, counting the tokens in the cache.
                No word looks at them, and positions count from after them.
            targets: (B, T), the ids that do follow; `<pad>` counts nothing.
            last_only: whether to score the last token alone; not with targets.
            return_attention: whether to return a pair, with the weights (L, B, H, T, S) second.

        Returns:
            Logits (B, T, V), or (B, V) with last_only. With targets, the sum of their
            cross-entropies in nats and their number, two scalars; the logits of a batch are never
            all in memory.

        Raises:
            ValueError: if there are no tokens, or more than the context holds.
            IndexError: if an id is outside the vocabulary (a target: RuntimeError).
        """
        x, attention = self.hidden(
            ids, cache, padding=padding, return_attention=return_attention
        )  # (B, T, D)
        if targets is not None:
            pad, layer = self.embedding.padding_idx, self.output
            total = output_loss(x, layer.weight, layer.bias, targets, ignore_index=pad)  # ()
            result = total, (targets != pad).sum()  # (), ()
        else:
            result = self.output(x[:, -1] if last_only else x)  # (B, V) or (B, T, V)
        return (result, torch.stack(attention)) if return_attention else result

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
