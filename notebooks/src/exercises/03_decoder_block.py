# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises for 03 · The decoder block
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/exercises/03_decoder_block.ipynb)
#
# Five exercises, about an hour and a half: you build a decoder from its norm to its logits, and then read what it expects halfway up. Write
# your code in the cells that say `raise NotImplementedError`, and run the cell after each: it tells you what is right, or what the mistake
# looks like. Your functions must not change what they are given. The exercises go with [notebook 03](../03_decoder_block.ipynb); the letters for
# sizes are those of [notebook 01](../01_embeddings.ipynb).

# %% cellView="form" tags=["setup"]
# @title Set-up: run this cell first
import os
import sys

REPOSITORY = "https://github.com/lohar-animesh-27112001/ELL881-advance_LLM-assignment"
if "google.colab" in sys.modules:
    os.system(f"cd /content && [ -d course ] || git clone -q --depth=1 {REPOSITORY} course")
sys.path[:0] = ["/content/course/notebooks", "..", "../..", "notebooks", "."]
import colab  # not found? Open this notebook inside the repository, or correct REPOSITORY

colab.start()

# %%
import torch
from torch import nn

from checks import decoder_block as check
from helpers.model import DecoderBlock, LayerNorm, sinusoidal_positions

# %% [markdown]
# ## 1 · LayerNorm
#
# ●○○ · 10 minutes
#
# Each part of a block reads a copy of the stream at a fixed scale. Write this norm: take the mean $\mu$ and the variance $\sigma^2$ of the
# $D$ numbers of each token, and return
#
# $$g_i\,\frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}} + b_i, \qquad \sigma^2 = \frac{1}{D}\sum_j (x_j - \mu)^2$$
#
# with the gain $g$, the bias $b$ and a small number $\varepsilon$ (`eps`). Write it with means and arithmetic: the
# check compares numbers, so it would accept PyTorch's own norm, but you would learn nothing. It must work for one token as well as for a batch
# of stories.


# %% tags=["exercise"]
def layer_norm(x, gain, bias, eps=1e-5):
    """Shift and scale each token's vector to mean 0 and variance 1, then apply gain and bias.

    Args:
        x: (…, D).
        gain, bias: (D,) each.

    Returns:
        (…, D); x stays as it is.
    """
    raise NotImplementedError


# %% tags=["solution"]
def layer_norm(x, gain, bias, eps=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)  # (…, D)
    variance = centred.square().mean(dim=-1, keepdim=True)  # (…, 1)
    return gain * centred / torch.sqrt(variance + eps) + bias  # (…, D)


# %% tags=["second"]
def layer_norm(x, gain, bias, eps=1e-5):
    rows = x.reshape(-1, x.shape[-1]).double()  # (N, D)
    normed = [(row - row.mean()) / (row.var(unbiased=False) + eps) ** 0.5 for row in rows]  # (D,)
    return (torch.stack(normed) * gain + bias).to(x.dtype).view_as(x)  # (…, D)


# %% tags=["mistake"] says="D - 1"
def layer_norm(x, gain, bias, eps=1e-5):
    mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    return gain * (x - mean) / (deviation**2 + eps) ** 0.5 + bias


# %% tags=["mistake"] says="mean and variance of the whole tensor"
def layer_norm(x, gain, bias, eps=1e-5):
    return gain * (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + eps) + bias


# %% tags=["mistake"] says="over the tokens"
def layer_norm(x, gain, bias, eps=1e-5):
    mean, variance = x.mean(0, keepdim=True), x.var(0, unbiased=False, keepdim=True)
    return gain * (x - mean) / torch.sqrt(variance + eps) + bias


# %% tags=["mistake"] says="square root"
def layer_norm(x, gain, bias, eps=1e-5):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return gain * (x - mean) / (variance + eps) + bias


# %% tags=["mistake"] says="`eps`"
def layer_norm(x, gain, bias, eps=1e-5):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return gain * (x - mean) / (torch.sqrt(variance) + eps) + bias


# %% tags=["mistake"] says="mean is not 0"
def layer_norm(x, gain, bias, eps=1e-5):
    return gain * x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) + bias


# %% tags=["mistake"] says="gain"
def layer_norm(x, gain, bias, eps=1e-5):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) + bias


# %% tags=["mistake"] says="bias"
def layer_norm(x, gain, bias, eps=1e-5):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return gain * ((x - mean) / torch.sqrt(variance + eps) + bias)


# %% tags=["mistake"] says="in place"
def layer_norm(x, gain, bias, eps=1e-5):
    x -= x.mean(-1, keepdim=True)
    return gain * x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) + bias


# %% tags=["mistake"] says="gradient"
def layer_norm(x, gain, bias, eps=1e-5):
    mean = x.mean(-1, keepdim=True).detach()
    variance = x.var(-1, unbiased=False, keepdim=True).detach()
    return gain * (x - mean) / torch.sqrt(variance + eps) + bias


# %% tags=["check"]
check.layer_norm(layer_norm)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `keepdim=True` leaves a last axis of size 1, so that you can subtract the mean of each token from its numbers, whatever axes come before. The mean of squares of what is left after the subtraction is the variance.
# </details>

# %% [markdown]
# ## 2 · Count the parameters
#
# ●●○ · 15 minutes
#
# How large is a decoder of given sizes? Write the number of its parameters as a formula of its config. (To build it and count gives the same
# number; the formula shows where it comes from.) The model is that
# of notebook 03: an embedding table without a bias; a projection from $E$ to $D$; $L$ blocks of attention, feed-forward and two norms; a
# final norm; an output layer. Every linear layer has a bias, every norm a gain and a bias. Positions are computed, so they have no parameters.


# %% tags=["exercise"]
def number_of_parameters(config):
    """How many numbers a decoder learns.

    Args:
        config: a ModelConfig. Its sizes are vocab_size (V), embedding_dim (E), d_model (D),
            num_layers (L), num_heads (H), d_ff (F) and context_length.

    Returns:
        A whole number.
    """
    raise NotImplementedError


# %% tags=["solution"]
def number_of_parameters(config):
    V, E, D, F = config.vocab_size, config.embedding_dim, config.d_model, config.d_ff
    norm = D + D
    attention = 4 * (D * D + D)  # queries, keys, values, output; whatever the number of heads
    feed_forward = (D * F + F) + (F * D + D)
    blocks = config.num_layers * (attention + feed_forward + 2 * norm)
    return V * E + (E * D + D) + blocks + norm + (D * V + V)


# %% tags=["second"]
def number_of_parameters(config):
    D, d = config.d_model, config.d_model // config.num_heads

    def linear(inputs, outputs):
        return (inputs + 1) * outputs

    block = 4 * D + 3 * config.num_heads * linear(D, d) + linear(D, D)
    block += linear(D, config.d_ff) + linear(config.d_ff, D)
    ends = linear(config.embedding_dim, D) + 2 * D + linear(D, config.vocab_size)
    return config.vocab_size * config.embedding_dim + config.num_layers * block + ends


# %% tags=["mistake"] says="heads"
def number_of_parameters(config):
    V, E, D, F = config.vocab_size, config.embedding_dim, config.d_model, config.d_ff
    block = config.num_heads * 3 * (D * D + D) + D * D + D + 2 * D * F + F + D + 4 * D
    return V * E + E * D + D + config.num_layers * block + 2 * D + D * V + V


# %% tags=["mistake"] says="biases of linear layers"
def number_of_parameters(config):
    V, E, D, F = config.vocab_size, config.embedding_dim, config.d_model, config.d_ff
    return V * E + E * D + config.num_layers * (4 * D * D + 2 * D * F + 4 * D) + 2 * D + D * V


# %% tags=["mistake"] says="projection"
def number_of_parameters(config):
    V, E, D, F = config.vocab_size, config.embedding_dim, config.d_model, config.d_ff
    block = 4 * (D * D + D) + 2 * D * F + F + D + 4 * D
    return V * E + config.num_layers * block + 2 * D + D * V + V


# %% tags=["mistake"] says="final norm"
def number_of_parameters(config):
    V, E, D, F = config.vocab_size, config.embedding_dim, config.d_model, config.d_ff
    block = 4 * (D * D + D) + 2 * D * F + F + D + 4 * D
    return V * E + E * D + D + config.num_layers * block + D * V + V


# %% tags=["mistake"] says="norms of a block"
def number_of_parameters(config):
    V, E, D, F = config.vocab_size, config.embedding_dim, config.d_model, config.d_ff
    block = 4 * (D * D + D) + 2 * D * F + F + D + 2 * D
    return V * E + E * D + D + config.num_layers * block + 2 * D + D * V + V


# %% tags=["mistake"] says="each layer of attention"
def number_of_parameters(config):
    V, E, D, F = config.vocab_size, config.embedding_dim, config.d_model, config.d_ff
    block = 3 * (D * D + D) + 2 * D * F + F + D + 4 * D
    return V * E + E * D + D + config.num_layers * block + 2 * D + D * V + V


# %% tags=["mistake"] says="number of blocks"
def number_of_parameters(config):
    V, E, D, F = config.vocab_size, config.embedding_dim, config.d_model, config.d_ff
    block = 4 * (D * D + D) + 2 * D * F + F + D + 4 * D
    return V * E + E * D + D + block + 2 * D + D * V + V


# %% tags=["mistake"] says="one table"
def number_of_parameters(config):
    V, E, D, F = config.vocab_size, config.embedding_dim, config.d_model, config.d_ff
    block = 4 * (D * D + D) + 2 * D * F + F + D + 4 * D
    return V * E + E * D + D + config.num_layers * block + 2 * D + V


# %% tags=["mistake"] says="context_length"
def number_of_parameters(config):
    V, E, D, F = config.vocab_size, config.embedding_dim, config.d_model, config.d_ff
    block = 4 * (D * D + D) + 2 * D * F + F + D + 4 * D
    positions = config.context_length * D
    return V * E + E * D + D + positions + config.num_layers * block + 2 * D + D * V + V


# %% tags=["mistake"] says="feed-forward"
def number_of_parameters(config):
    V, E, D = config.vocab_size, config.embedding_dim, config.d_model
    block = 4 * (D * D + D) + 2 * D * 4 * D + 4 * D + D + 4 * D
    return V * E + E * D + D + config.num_layers * block + 2 * D + D * V + V


# %% tags=["check"]
check.number_of_parameters(number_of_parameters)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A linear layer from $n$ numbers to $m$ has an $n \times m$ matrix and $m$ biases. Attention has one layer that makes queries, keys and values
# from $D$ numbers, each $D$ wide over all heads together, and one that goes from the joined heads back to the stream.
# </details>

# %% [markdown]
# ## 3 · The block
#
# ●●○ · 10 minutes
#
# Put the parts together. In a pre-norm block, attention reads a normed copy of the stream and adds what it found; then feed-forward reads a
# normed copy of the stream as it is *now*, and adds its result. You get the four parts as functions. `attention` takes a mask, which is 0
# where a token may look and $-\infty$ where it may not, and returns two things, as in the course: the mixed tokens, and the weights, which the block does not need.


# %% tags=["exercise"]
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    """The stream after one pre-norm block.

    Args:
        x: the stream, (B, T, D).
        mask: (T, T), 0 for what a token may look at, -inf for the future.
        attention: attention(x, mask) gives the mixed tokens (B, T, D), and weights (B, H, T, T).
        attention_norm, feed_forward_norm, feed_forward: (B, T, D) -> (B, T, D) each.

    Returns:
        The stream, (B, T, D); x stays as it is.
    """
    raise NotImplementedError


# %% tags=["solution"]
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    mixed, _ = attention(attention_norm(x), mask)  # (B, T, D), (B, H, T, T)
    x = x + mixed  # (B, T, D)
    return x + feed_forward(feed_forward_norm(x))  # (B, T, D)


# %% tags=["second"]
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    writes = [x, attention(attention_norm(x), mask)[0]]  # (B, T, D) each
    writes.append(feed_forward(feed_forward_norm(sum(writes))))  # (B, T, D)
    return torch.stack(writes).sum(0)  # (B, T, D)


# %% tags=["mistake"] says="after the sum"
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    x = attention_norm(x + attention(x, mask)[0])
    return feed_forward_norm(x + feed_forward(x))


# %% tags=["mistake"] says="overwrites"
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    x, _ = attention(attention_norm(x), mask)
    return x + feed_forward(feed_forward_norm(x))


# %% tags=["mistake"] says="what attention wrote"
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    mixed, _ = attention(attention_norm(x), mask)
    return x + feed_forward(feed_forward_norm(x + mixed))


# %% tags=["mistake"] says="only a copy"
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    x = attention_norm(x)
    x = x + attention(x, mask)[0]
    x = feed_forward_norm(x)
    return x + feed_forward(x)


# %% tags=["mistake"] says="side by side"
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    mixed, _ = attention(attention_norm(x), mask)
    return x + mixed + feed_forward(feed_forward_norm(x))


# %% tags=["mistake"] says="Each part has its own norm"
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    x = x + attention(attention_norm(x), mask)[0]
    return x + feed_forward(attention_norm(x))


# %% tags=["mistake"] says="in place"
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    x += attention(attention_norm(x), mask)[0]
    return x + feed_forward(feed_forward_norm(x))


# %% tags=["mistake"] says="the mask"
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    x = x + attention(attention_norm(x), torch.zeros_like(mask))[0]
    return x + feed_forward(feed_forward_norm(x))


# %% tags=["mistake"] says="two things"
def decoder_block(x, mask, attention_norm, attention, feed_forward_norm, feed_forward):
    x = x + attention(attention_norm(x), mask)
    return x + feed_forward(feed_forward_norm(x))


# %% tags=["check"]
check.decoder_block(decoder_block)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Draw the stream as one straight line from the left to the right. Which arrows leave it, and which come back? A norm never stands *on* the
# line.
# </details>

# %% [markdown]
# ## 4 · The whole decoder
#
# ●●● · 30 minutes
#
# Write the model: ids in, logits out. Its blocks are `DecoderBlock(config)`, whose call `block(x, mask)` returns the stream and the weights. You
# may also use `LayerNorm(D)`; `sinusoidal_positions(length, D)`, of shape (length, D); and all of `torch.nn`. Word vectors, projected to the width of the
# model, are multiplied by $\sqrt{D}$ before the positions are added. The check puts the weights of the course's own decoder into your layers,
# whatever you call them, in the order in which they run, and the logits must agree.


# %% tags=["exercise"]
class Decoder(nn.Module):
    """Token ids in, scores of every possible next token out."""

    def __init__(self, config):
        """config: a ModelConfig, with vocab_size, embedding_dim, d_model, num_layers, …"""
        super().__init__()
        raise NotImplementedError

    def forward(self, ids):
        """ids (B, T), T at most config.context_length -> logits (B, T, V)."""
        raise NotImplementedError


# %% tags=["solution"]
class Decoder(nn.Module):
    """Token ids in, scores of every possible next token out."""

    def __init__(self, config):
        super().__init__()
        self.scale = config.d_model**0.5
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.projection = nn.Linear(config.embedding_dim, config.d_model)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size)
        positions = sinusoidal_positions(config.context_length, config.d_model)  # (length, D)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, ids):  # (B, T) -> (B, T, V)
        T = ids.shape[1]
        mask = torch.full((T, T), float("-inf"), device=ids.device).triu(1)  # (T, T)
        stream = self.projection(self.embedding(ids)) * self.scale + self.positions[:T]  # (B, T, D)
        for block in self.blocks:
            stream, _ = block(stream, mask)  # (B, T, D)
        return self.output(self.norm(stream))  # (B, T, V)


# %% tags=["second"]
class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.unembed = nn.Linear(config.d_model, config.vocab_size)
        self.last = nn.LayerNorm(config.d_model)
        self.layers = nn.Sequential(*[DecoderBlock(config) for _ in range(config.num_layers)])
        self.read = nn.Sequential(
            nn.Embedding(config.vocab_size, config.embedding_dim),
            nn.Linear(config.embedding_dim, config.d_model),
        )

    def forward(self, ids):
        T, D = ids.shape[-1], self.config.d_model
        allowed = torch.ones(T, T).tril()  # (T, T)
        mask = allowed.log()  # (T, T)
        x = D**0.5 * self.read(ids) + sinusoidal_positions(T, D)  # (B, T, D)
        for layer in self.layers:
            x = layer(x, mask)[0]  # (B, T, D)
        return self.unembed(self.last(x))  # (B, T, V)


# %% tags=["mistake"] says="√D"
from helpers.model import Decoder as Whole


class Decoder(Whole):
    def forward(self, ids):
        T = ids.shape[1]
        stream = self.projection(self.embedding(ids)) + self.positions[:T]
        for block in self.blocks:
            stream, _ = block(stream, self.mask[:T, :T])
        return self.output(self.norm(stream))


# %% tags=["mistake"] says="positions too"
from helpers.model import Decoder as Whole


class Decoder(Whole):
    def forward(self, ids):
        T = ids.shape[1]
        stream = (
            self.projection(self.embedding(ids)) + self.positions[:T]
        ) * self.config.d_model**0.5
        for block in self.blocks:
            stream, _ = block(stream, self.mask[:T, :T])
        return self.output(self.norm(stream))


# %% tags=["mistake"] says="without positions"
from helpers.model import Decoder as Whole


class Decoder(Whole):
    def forward(self, ids):
        T = ids.shape[1]
        stream = self.projection(self.embedding(ids)) * self.config.d_model**0.5
        for block in self.blocks:
            stream, _ = block(stream, self.mask[:T, :T])
        return self.output(self.norm(stream))


# %% tags=["mistake"] says="final norm"
from helpers.model import Decoder as Whole


class Decoder(Whole):
    def forward(self, ids):
        T = ids.shape[1]
        stream = (
            self.projection(self.embedding(ids)) * self.config.d_model**0.5 + self.positions[:T]
        )
        for block in self.blocks:
            stream, _ = block(stream, self.mask[:T, :T])
        return self.output(stream)


# %% tags=["mistake"] says="later token"
from helpers.model import Decoder as Whole


class Decoder(Whole):
    def forward(self, ids):
        T = ids.shape[1]
        stream = (
            self.projection(self.embedding(ids)) * self.config.d_model**0.5 + self.positions[:T]
        )
        for block in self.blocks:
            stream, _ = block(stream, torch.zeros(T, T))
        return self.output(self.norm(stream))


# %% tags=["mistake"] says="same block"
from helpers.model import Decoder as Whole


class Decoder(Whole):
    def __init__(self, config):
        super().__init__(config)
        self.blocks = nn.ModuleList([DecoderBlock(config)] * config.num_layers)


# %% tags=["mistake"] says="ModuleList"
from helpers.model import Decoder as Whole


class Decoder(Whole):
    def __init__(self, config):
        super().__init__(config)
        del self.blocks
        self.blocks = [DecoderBlock(config) for _ in range(config.num_layers)]


# %% tags=["mistake"] says="probabilities"
from helpers.model import Decoder as Whole


class Decoder(Whole):
    def forward(self, ids):
        return super().forward(ids).softmax(dim=-1)


# %% tags=["mistake"] says="shorter than"
from helpers.model import Decoder as Whole


class Decoder(Whole):
    def forward(self, ids):
        T = ids.shape[1]
        stream = self.projection(self.embedding(ids)) * self.config.d_model**0.5 + self.positions
        for block in self.blocks:
            stream, _ = block(stream, self.mask[:T, :T])
        return self.output(self.norm(stream))


# %% tags=["mistake"] says="learned"
from helpers.model import Decoder as Whole


class Decoder(Whole):
    def __init__(self, config):
        super().__init__(config)
        del self.positions
        self.positions = nn.Parameter(torch.randn(config.context_length, config.d_model))


# %% tags=["check"]
check.decoder(Decoder)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Five things have parameters: an embedding, a projection, the blocks, a norm, an output layer. A list of modules must be a `nn.ModuleList`, or
# PyTorch does not see them. The mask is 0 on and below the diagonal, and `float("-inf")` above it. `ids` may be shorter than
# `config.context_length`.
# </details>

# %% [markdown]
# ## 5 · The logit lens
#
# ●●● · 20 minutes
#
# What does a model expect halfway up? Read its stream early: send it through the final norm and the output layer as if no more blocks came.
# Do this for the stream with which the first block starts, and for the stream after each block, so that the last of them gives the model's own
# logits. The model is the course's; its parts are `embedding`, `projection`, `positions` (context_length, D), `mask`
# (context_length, context_length), `blocks`, `norm` and `output`.


# %% tags=["exercise"]
def logit_lens(model, ids):
    """What the model expects before its first block, and after each block.

    Args:
        model: a Decoder with L blocks, without dropout.
        ids: (B, T).

    Returns:
        Logits, (L + 1, B, T, V).
    """
    raise NotImplementedError


# %% tags=["solution"]
def logit_lens(model, ids):
    T, D = ids.shape[1], model.config.d_model
    stream = model.projection(model.embedding(ids)) * D**0.5 + model.positions[:T]  # (B, T, D)
    streams = [stream]
    for block in model.blocks:
        stream, _ = block(stream, model.mask[:T, :T])  # (B, T, D)
        streams.append(stream)
    return model.output(model.norm(torch.stack(streams)))  # (L + 1, B, T, V)


# %% tags=["second"]
def logit_lens(model, ids):
    """Listens to the model instead of repeating what it does."""
    heard = []
    listeners = [
        block.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
        for block in model.blocks
    ]
    last = model(ids)  # (B, T, V)
    for listener in listeners:
        listener.remove()
    return torch.stack([*(model.output(model.norm(stream)) for stream in heard), last])


# %% tags=["mistake"] says="final norm"
def logit_lens(model, ids):
    T, D = ids.shape[1], model.config.d_model
    stream = model.projection(model.embedding(ids)) * D**0.5 + model.positions[:T]
    lens = [model.output(stream)]
    for block in model.blocks:
        stream, _ = block(stream, model.mask[:T, :T])
        lens.append(model.output(stream))
    return torch.stack(lens)


# %% tags=["mistake"] says="goes on from the normed"
def logit_lens(model, ids):
    T, D = ids.shape[1], model.config.d_model
    stream = model.norm(model.projection(model.embedding(ids)) * D**0.5 + model.positions[:T])
    lens = [model.output(stream)]
    for block in model.blocks:
        stream = model.norm(block(stream, model.mask[:T, :T])[0])
        lens.append(model.output(stream))
    return torch.stack(lens)


# %% tags=["mistake"] says="L + 1"
def logit_lens(model, ids):
    T, D = ids.shape[1], model.config.d_model
    stream = model.projection(model.embedding(ids)) * D**0.5 + model.positions[:T]
    lens = []
    for block in model.blocks:
        stream, _ = block(stream, model.mask[:T, :T])
        lens.append(model.output(model.norm(stream)))
    return torch.stack(lens)


# %% tags=["mistake"] says="what each block adds"
def logit_lens(model, ids):
    T, D = ids.shape[1], model.config.d_model
    stream = model.projection(model.embedding(ids)) * D**0.5 + model.positions[:T]
    parts = [stream]
    for block in model.blocks:
        after, _ = block(stream, model.mask[:T, :T])
        parts.append(after - stream)
        stream = after
    return model.output(model.norm(torch.stack(parts)))


# %% tags=["mistake"] says="√D"
def logit_lens(model, ids):
    T = ids.shape[1]
    stream = model.projection(model.embedding(ids)) + model.positions[:T]
    streams = [stream]
    for block in model.blocks:
        stream, _ = block(stream, model.mask[:T, :T])
        streams.append(stream)
    return model.output(model.norm(torch.stack(streams)))


# %% tags=["mistake"] says="mask"
def logit_lens(model, ids):
    T, D = ids.shape[1], model.config.d_model
    stream = model.projection(model.embedding(ids)) * D**0.5 + model.positions[:T]
    streams = [stream]
    for block in model.blocks:
        stream, _ = block(stream, torch.zeros(T, T))
        streams.append(stream)
    return model.output(model.norm(torch.stack(streams)))


# %% tags=["mistake"] says="probabilities"
def logit_lens(model, ids):
    T, D = ids.shape[1], model.config.d_model
    stream = model.projection(model.embedding(ids)) * D**0.5 + model.positions[:T]
    streams = [stream]
    for block in model.blocks:
        stream, _ = block(stream, model.mask[:T, :T])
        streams.append(stream)
    return model.output(model.norm(torch.stack(streams))).softmax(-1)


# %% tags=["mistake"] says="same stream"
def logit_lens(model, ids):
    T, D = ids.shape[1], model.config.d_model
    start = model.projection(model.embedding(ids)) * D**0.5 + model.positions[:T]
    streams = [start]
    for block in model.blocks:
        streams.append(block(start, model.mask[:T, :T])[0])
    return model.output(model.norm(torch.stack(streams)))


# %% tags=["check"]
check.logit_lens(logit_lens)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Walk through `forward` of exercise 4 and keep the stream in a list at each stop. Only then norm and score what is in the list: the norm is for
# reading, and must not change the stream that goes on.
# </details>
