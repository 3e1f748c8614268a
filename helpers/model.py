"""The decoder-only transformer, from its basic parts.

Only `nn.Linear`, `nn.Embedding`, `nn.Parameter`, `nn.Dropout` and a non-linearity come from
PyTorch. Shape comments name the sizes: B stories, T tokens, S keys (T, or more with a cache), D
model width, E embedding width, H heads, K = D / H head width, F feed-forward width, L blocks, V
vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.memory import checkpoint

LONGEST_CONTEXT = 16_384  # tokens: the mask alone is a table of its square, one gigabyte


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a Decoder. The defaults are the assignment's: 8,940,768 parameters.

    Raises ValueError where the sizes cannot make a model.
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
        for name in (
            "vocab_size",
            "embedding_dim",
            "d_model",
            "num_layers",
            "num_heads",
            "d_ff",
            "context_length",
        ):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}={size!r}: every size must be a whole number, at least 1")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model={self.d_model} is not divisible by num_heads={self.num_heads}: each "
                "head takes an equal share of the width; try "
                f"d_model={self.d_model - self.d_model % self.num_heads or self.num_heads}"
            )
        if self.d_model % 2:
            raise ValueError(
                f"d_model={self.d_model} is odd: sinusoidal positions come in sine and cosine pairs"
            )
        if self.context_length > LONGEST_CONTEXT:
            raise ValueError(
                f"context_length={self.context_length}: more than {LONGEST_CONTEXT}, and the "
                "mask, its square, would fill gigabytes; choose a shorter one"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not a probability below 1")

    def check_vocabulary(self, tokens: int) -> None:
        """Raises ValueError where a tokenizer of so many tokens has more than the model's table."""
        if tokens > self.vocab_size:
            raise ValueError(
                f"the vocabulary of {tokens} is larger than the model's table of "
                f"{self.vocab_size}: train the tokenizer with vocab_size={self.vocab_size}, or "
                "build the model with more rows"
            )


class LayerNorm(nn.Module):
    """Each token's vector, shifted and scaled to mean 0 and variance 1, then by a learned gain and
    bias.

    Ba, Kiros & Hinton 2016, "Layer Normalization", section 3.
    """

    def __init__(self, d_model: int, eps: float = 1e-5):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))  # (D,)
        self.bias = nn.Parameter(torch.zeros(d_model))  # (D,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (…, D) -> (…, D)
        wide = x.to(
            torch.promote_types(x.dtype, torch.float32)
        )  # (…, D), for float16 cannot hold the squares
        centred = wide - wide.mean(dim=-1, keepdim=True)  # (…, D)
        variance = centred.square().mean(dim=-1, keepdim=True)  # (…, 1)
        return (centred * torch.rsqrt(variance + self.eps)).to(
            x.dtype
        ) * self.gain + self.bias  # (…, D)


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """One row per position, (length, d_model): sines in the even columns, cosines in the odd ones.

    Wavelengths grow geometrically from 2π to 10,000 · 2π. Vaswani et al. 2017, section 3.5.
    """
    position = torch.arange(length, dtype=torch.float64)  # (T,)
    frequency = 10_000 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (D/2,)
    angle = torch.outer(position, frequency)  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()  # (T, D)


class KVCache:
    """The keys and values of all tokens read so far, which no later token changes: a new token
    needs only its own.

    Room for `capacity` tokens (None: the context) of `batch_size` rows is set aside at once: keys
    and values are (L, B, H, capacity, K) each. Pass it to `Decoder.forward`, which reads what is
    new and appends to it.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        capacity = config.context_length if capacity is None else capacity
        shape = (
            config.num_layers,
            batch_size,
            config.num_heads,
            capacity,
            config.d_model // config.num_heads,
        )
        self.keys = torch.empty(shape, device=device, dtype=dtype)  # (L, B, H, capacity, K)
        self.values = torch.empty_like(self.keys)  # (L, B, H, capacity, K)
        self._lengths = [
            0
        ] * config.num_layers  # within a pass, the layers before the present one are ahead

    @property
    def length(self) -> int:
        """How many tokens every layer holds. Raises RuntimeError where the layers disagree: a pass
        was broken off.
        """
        if len(set(self._lengths)) > 1:
            raise RuntimeError(
                f"the layers hold {self._lengths} tokens, not the same number: a pass through the "
                "model was broken off; call cache.crop(length) with the length before it"
            )
        return self._lengths[0]

    @property
    def nbytes(self) -> int:
        """Bytes set aside: 2 · L · B · H · capacity · K · bytes per number."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add T new keys and values (B, H, T, K) of one layer, counted from 0; returns all of that
        layer, (B, H, S, K).

        Raises ValueError where they do not fit the cache, or where it is full.
        """
        _, B, H, capacity, K = self.keys.shape
        start, T = self._lengths[layer], keys.shape[-2]
        if keys.shape != (B, H, T, K) or values.shape != keys.shape:
            raise ValueError(
                f"keys {tuple(keys.shape)} and values {tuple(values.shape)} do not fit a cache of "
                f"{B} rows, {H} heads of width {K}: build it with KVCache(model.config, "
                "batch_size)"
            )
        if start + T > capacity:
            raise ValueError(
                f"{start} tokens and {T} more exceed the cache's room for {capacity}: ask for "
                "more capacity"
            )
        self.keys[layer, :, :, start : start + T] = keys
        self.values[layer, :, :, start : start + T] = values
        self._lengths[layer] = start + T
        return self.keys[layer, :, :, : start + T], self.values[layer, :, :, : start + T]

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was; rows may repeat, or be fewer or more than before. For
        beams and ended rows.
        """
        if len(rows) != self.keys.shape[1]:
            self.keys = self.keys.index_select(1, rows)  # (L, len(rows), H, capacity, K)
            self.values = self.values.index_select(1, rows)  # (L, len(rows), H, capacity, K)
            return
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[
            :, 0
        ]  # the others stay where they are
        for held in (self.keys, self.values):
            held[:, moved, :, : max(self._lengths)] = held[:, rows[moved], :, : max(self._lengths)]

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError where there are fewer."""
        if not 0 <= length <= min(self._lengths):
            raise ValueError(
                f"cannot crop to {length} tokens: the cache holds {min(self._lengths)}"
            )
        self._lengths = [length] * len(self._lengths)


class MultiHeadAttention(nn.Module):
    """Causal self-attention: every token takes a weighted mean of the tokens before it and itself,
    once per head.

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
        """x (B, T, D) -> mixed x (B, T, D) and the weights (B, H, T, S).

        mask: (T, S) or (B, 1, T, S), 0 where a query may look and -inf where it may not. remember:
        takes the new keys and values and returns all of them, those of earlier calls first
        (`KVCache.append`); None: there are none.
        """
        B, T, D = x.shape
        q, k, v = (
            self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        )  # (B, H, T, K)
        if remember is not None:
            k, v = remember(k, v)  # (B, H, S, K) each
        scores = (q * k.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask  # (B, H, T, S)
        weights = scores.softmax(dim=-1)  # (B, H, T, S), each row sums to 1
        mixed = self.dropout(weights) @ v  # (B, H, T, K)
        return self.output(
            mixed.transpose(1, 2).reshape(B, T, D)
        ), weights  # (B, T, D), (B, H, T, S)


class FeedForward(nn.Module):
    """The same small two-layer network at every position. Vaswani et al. 2017, section 3.3, with
    GELU for ReLU.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.expand = nn.Linear(config.d_model, config.d_ff)
        self.dropout = nn.Dropout(config.dropout)
        self.contract = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.contract(self.dropout(F.gelu(self.expand(x))))  # (B, T, F) inside


class DecoderBlock(nn.Module):
    """Attention, then feed-forward; each reads a normed copy of the residual stream and adds its
    result to it.

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
        """x (B, T, D) -> x (B, T, D), attention weights (B, H, T, S). mask and remember: as in the
        attention.
        """
        mixed, weights = self.attention(
            self.attention_norm(x), mask, remember
        )  # (B, T, D), (B, H, T, S)
        x = x + self.dropout(mixed)  # (B, T, D)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), weights  # (B, T, D)


class Decoder(nn.Module):
    """Token ids in, scores of every possible next token out.

    embedding (V, E) → projection (E, D) + positions → L blocks → norm → output (D, V).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(
            config.vocab_size, config.embedding_dim, padding_idx=0
        )  # <pad> is id 0
        self.projection = nn.Linear(config.embedding_dim, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size)
        mask = torch.full((config.context_length, config.context_length), float("-inf")).triu(
            1
        )  # (T, T)
        self.register_buffer("mask", mask, persistent=False)
        positions = sinusoidal_positions(config.context_length, config.d_model)  # (T, D)
        self.register_buffer("positions", positions, persistent=False)
        self.segments: tuple[int, ...] = ()
        self.initialize()

    def initialize(self) -> None:
        """Word vectors with standard deviation 0.02, Xavier-uniform matrices (Glorot & Bengio
        2010), biases zero.
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

    def load_vectors(
        self, matrix, std: float = 0.02, output_std: float | None = 0.06, freeze: bool = False
    ) -> None:
        """Start from word vectors, (V, E) of float32: the embedding, and the output layer too.

        The output layer becomes the same vectors seen through the projection, less their mean:
        words of like use start with like inputs and like scores. Each is scaled as a whole to its
        standard deviation; output_std=None leaves the output layer alone. Rows of zeros stay zero
        and do not count. freeze=True keeps the embedding from training. Raises ValueError where the
        shapes differ, or no row has a vector.
        """
        matrix = torch.as_tensor(matrix)  # (V, E)
        if matrix.shape != self.embedding.weight.shape:
            raise ValueError(
                f"word vectors of shape {tuple(matrix.shape)} do not fit an embedding of "
                f"{tuple(self.embedding.weight.shape)}: build them with vectors.matrix(tokenizer, "
                "rows=config.vocab_size), and the model with embedding_dim = the vectors' width"
            )
        filled = matrix.any(dim=1)  # (V,)
        if not filled.any():
            raise ValueError("all word vectors are zero: build them with vectors.matrix(tokenizer)")
        with torch.no_grad():
            self.embedding.weight.copy_(matrix * (std / matrix[filled].std()))
            if output_std is not None:
                seen = self.embedding.weight @ self.projection.weight.T  # (V, D)
                seen = (seen - seen[filled].mean(dim=0)) * filled[:, None]  # (V, D)
                self.output.weight.copy_(seen * (output_std / seen[filled].std()))
        self.embedding.weight.requires_grad_(not freeze)

    def set_dropout(self, probability: float) -> None:
        """Use this dropout everywhere, whatever the config said."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability

    def set_checkpointing(self, *segments: int) -> None:
        """In training, keep only the input of each segment of blocks, and compute its inside again
        in the backward pass.

        One number: how many segments the blocks are divided into, num_layers for one each. Two:
        each of these is divided again, and so on. No number: keep everything. Raises ValueError
        where there are fewer blocks than segments.
        """
        blocks = len(self.blocks)
        for count in segments:
            if not 1 <= count <= blocks:
                raise ValueError(
                    f"checkpoint segments {segments}: {blocks} blocks cannot be divided into "
                    f"{count}; the model has {len(self.blocks)} blocks"
                )
            blocks //= count
        self.segments = segments

    def _through(
        self, x: Tensor, mask: Tensor, blocks: list[DecoderBlock], segments: tuple[int, ...]
    ) -> Tensor:
        """x (B, T, D) after these blocks, in checkpointed segments where there are any."""
        if not segments:
            for block in blocks:
                x, _ = block(x, mask)  # (B, T, D)
            return x
        ends = [len(blocks) * i // segments[0] for i in range(segments[0] + 1)]
        for start, end in pairwise(ends):
            frozen = not any(
                p.requires_grad for block in blocks[start:end] for p in block.parameters()
            )
            through = (
                partial(checkpoint, self._through)
                if x.requires_grad or not frozen
                else self._through
            )
            x = through(x, mask, blocks[start:end], segments[1:])  # (B, T, D)
        return x

    def hidden(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        return_attention: bool = False,
        padding: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """ids (B, T) -> the normed residual stream (B, T, D) that the output layer reads, and the
        attention weights of each block, (B, H, T, S), where asked for.

        cache: ids follow the tokens that it holds, and are added to it. padding: (B,), how many
        `<pad>` each row began with, the tokens in the cache counted; they are not looked at, and
        positions count from after them.

        Raises ValueError where there are no tokens or more than the context holds, IndexError where
        an id is outside the vocabulary.
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
            x, weights = block(
                x, mask, None if cache is None else partial(cache.append, layer)
            )  # (B, T, D), (B, H, T, S)
            if return_attention:
                attention.append(weights)
        return self.norm(x), attention

    def _mask_and_positions(
        self, T: int, before: int, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Of T tokens after `before` others: the mask (T, S) or (B, 1, T, S), the positions (T, D)
        or (B, T, D).
        """
        if padding is None:
            return self.mask[before : before + T, : before + T], self.positions[before : before + T]
        keys = torch.arange(before + T, device=padding.device)  # (S,)
        queries = keys[before:]  # (T,)
        # A `<pad>` looks at itself: a row of -inf alone would make the softmax NaN.
        seen = (keys <= queries[:, None]) & (keys >= padding[:, None, None]) | (
            keys == queries[:, None]
        )  # (B, T, S)
        mask = torch.zeros_like(seen, dtype=self.positions.dtype).masked_fill(
            ~seen, float("-inf")
        )  # (B, T, S)
        return mask[:, None], self.positions[
            (queries - padding[:, None]).clamp(min=0)
        ]  # (B, 1, T, S), (B, T, D)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        return_attention: bool = False,
        padding: Tensor | None = None,
    ):
        """ids (B, T) -> logits (B, T, V); with return_attention also the weights (L, B, H, T, S).

        Row t of the logits scores the token that follows token t. cache, padding and errors: as in
        `hidden`.
        """
        x, attention = self.hidden(ids, cache, return_attention, padding)  # (B, T, D)
        logits = self.output(x)  # (B, T, V)
        return (logits, torch.stack(attention)) if return_attention else logits

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
