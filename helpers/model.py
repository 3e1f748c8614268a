"""The decoder-only transformer, from its basic parts.

Only `nn.Linear`, `nn.Embedding`, `nn.Parameter`, `nn.Dropout` and a non-linearity come from PyTorch. Shape comments name
the sizes: B stories, T tokens, D model width, E embedding width, H heads, K = D / H head width, F feed-forward width,
L blocks, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        for name in ("vocab_size", "embedding_dim", "d_model", "num_layers", "num_heads", "d_ff", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: every size must be at least 1")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model={self.d_model} is not divisible by num_heads={self.num_heads}: each head takes an equal share of "
                f"the width; try d_model={self.d_model - self.d_model % self.num_heads or self.num_heads}"
            )
        if self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} is odd: sinusoidal positions come in sine and cosine pairs")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not a probability below 1")


class LayerNorm(nn.Module):
    """Each token's vector, shifted and scaled to mean 0 and variance 1, then by a learned gain and bias.

    Ba, Kiros & Hinton 2016, "Layer Normalization", section 3.
    """

    def __init__(self, d_model: int, eps: float = 1e-5):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))  # (D,)
        self.bias = nn.Parameter(torch.zeros(d_model))  # (D,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (…, D) -> (…, D)
        centred = x - x.mean(dim=-1, keepdim=True)  # (…, D)
        variance = centred.square().mean(dim=-1, keepdim=True)  # (…, 1)
        return centred * torch.rsqrt(variance + self.eps) * self.gain + self.bias  # (…, D)


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """One row per position, (length, d_model): sines in the even columns, cosines in the odd ones.

    Wavelengths grow geometrically from 2π to 10,000 · 2π. Vaswani et al. 2017, section 3.5.
    """
    position = torch.arange(length, dtype=torch.float64)  # (T,)
    frequency = 10_000 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (D/2,)
    angle = torch.outer(position, frequency)  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()  # (T, D)


class MultiHeadAttention(nn.Module):
    """Causal self-attention: every token takes a weighted mean of the tokens before it and itself, once per head.

    Vaswani et al. 2017, section 3.2. Queries, keys and values come from one matrix product.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.output = nn.Linear(config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D); mask (T, T), 0 where a query may look and -inf where it may not. Returns mixed x and weights."""
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)  # (B, H, T, K)
        scores = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5 + mask  # (B, H, T, T)
        weights = scores.softmax(dim=-1)  # (B, H, T, T), each row sums to 1
        mixed = self.dropout(weights) @ v  # (B, H, T, K)
        return self.output(mixed.transpose(1, 2).reshape(B, T, D)), weights  # (B, T, D), (B, H, T, T)


class FeedForward(nn.Module):
    """The same small two-layer network at every position. Vaswani et al. 2017, section 3.3, with GELU for ReLU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.expand = nn.Linear(config.d_model, config.d_ff)
        self.dropout = nn.Dropout(config.dropout)
        self.contract = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.contract(self.dropout(F.gelu(self.expand(x))))  # (B, T, F) inside


class DecoderBlock(nn.Module):
    """Attention, then feed-forward; each reads a normed copy of the residual stream and adds its result to it.

    Pre-norm: x + f(norm(x)), as in Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", figure 1b.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = LayerNorm(config.d_model)
        self.attention = MultiHeadAttention(config)
        self.feed_forward_norm = LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D), mask (T, T) -> x (B, T, D), attention weights (B, H, T, T)."""
        mixed, weights = self.attention(self.attention_norm(x), mask)  # (B, T, D), (B, H, T, T)
        x = x + self.dropout(mixed)  # (B, T, D)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), weights  # (B, T, D)


class Decoder(nn.Module):
    """Token ids in, scores of every possible next token out.

    embedding (V, E) → projection (E, D) + positions → L blocks → norm → output (D, V).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim, padding_idx=0)  # <pad> is id 0
        self.projection = nn.Linear(config.embedding_dim, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size)
        mask = torch.full((config.context_length, config.context_length), float("-inf")).triu(1)  # (T, T)
        self.register_buffer("mask", mask, persistent=False)
        positions = sinusoidal_positions(config.context_length, config.d_model)  # (T, D)
        self.register_buffer("positions", positions, persistent=False)
        self.initialize()

    def initialize(self) -> None:
        """Word vectors with standard deviation 0.02, Xavier-uniform matrices (Glorot & Bengio 2010), biases zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # Queries, keys and values are three matrices side by side, not one wide one.
                for matrix in module.weight.chunk(3) if name.endswith("qkv") else [module.weight]:
                    nn.init.xavier_uniform_(matrix)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            self.embedding.weight[0] = 0.0  # <pad>

    def load_vectors(self, matrix, std: float = 0.02, output_std: float | None = 0.06, freeze: bool = False) -> None:
        """Start from word vectors, (V, E) of float32: the embedding, and the output layer too.

        The output layer becomes the same vectors seen through the projection, less their mean: words of like use start with
        like inputs and like scores. Each is scaled as a whole to its standard deviation; output_std=None leaves the output
        layer alone. Rows of zeros stay zero and do not count. freeze=True keeps the embedding from training.
        Raises ValueError where the shapes differ, or no row has a vector.
        """
        matrix = torch.as_tensor(matrix)  # (V, E)
        if matrix.shape != self.embedding.weight.shape:
            raise ValueError(
                f"word vectors of shape {tuple(matrix.shape)} do not fit an embedding of "
                f"{tuple(self.embedding.weight.shape)}: build them with vectors.matrix(tokenizer, rows=config.vocab_size), "
                "and the model with embedding_dim = the vectors' width"
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

    def hidden(self, ids: Tensor, return_attention: bool = False) -> tuple[Tensor, list[Tensor]]:
        """ids (B, T) -> the normed residual stream (B, T, D) that the output layer reads, and the attention weights
        of each block, (B, H, T, T), where asked for.

        Raises ValueError where T is 0 or exceeds the context, IndexError where an id is outside the vocabulary.
        """
        T = ids.shape[-1]
        if not 0 < T <= self.config.context_length:
            raise ValueError(
                f"{T} tokens do not fit a context of 1 to {self.config.context_length}: shorten the text, or build the "
                "model with a longer context_length"
            )
        # Vaswani et al. 2017, section 3.4: scaled by √D, or the positions would drown the words.
        x = self.projection(self.embedding(ids)) * self.config.d_model**0.5 + self.positions[:T]  # (B, T, D)
        x = self.dropout(x)
        attention = []
        for block in self.blocks:
            x, weights = block(x, self.mask[:T, :T])  # (B, T, D), (B, H, T, T)
            if return_attention:
                attention.append(weights)
        return self.norm(x), attention

    def forward(self, ids: Tensor, return_attention: bool = False):
        """ids (B, T) -> logits (B, T, V); with return_attention also the weights (L, B, H, T, T).

        Row t of the logits scores the token that follows token t. Raises as `hidden` does.
        """
        x, attention = self.hidden(ids, return_attention)  # (B, T, D)
        logits = self.output(x)  # (B, T, V)
        return (logits, torch.stack(attention)) if return_attention else logits

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
