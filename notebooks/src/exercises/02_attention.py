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
# # Exercises for 02 · Attention
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/exercises/02_attention.ipynb)
#
# Five exercises, about an hour and a quarter: attention from its formula, and then a head that you make by hand. Write your code in the cells
# that say `raise NotImplementedError`, and run the cell after each: it says what is right, or what the mistake looks like. Stay in PyTorch,
# so that gradients can flow, and do not change what your functions are given. The exercises go with
# [notebook 02](../02_attention.ipynb). The letters for sizes are those of [notebook 01](../01_embeddings.ipynb): $B$ stories, $T$ tokens that
# read, $S$ tokens that are read, $D$ numbers for each token, $H$ heads of $d = D / H$ numbers.

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
import math

import torch

from checks import attention as check
from helpers.model import sinusoidal_positions

# %% [markdown]
# ## 1 · Scaled dot-product attention
#
# ●○○ · 10 minutes
#
# Each query scores every key by their dot product, divided by $\sqrt{d}$, where $d$ is the number of entries in a key. A softmax turns the scores of one
# query into weights, and the weights mix the values:
#
# $$\operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d}}\right)V$$
#
# Nothing is masked yet. Your function must work for one story as well as for a batch of stories with several heads, so treat the last two
# axes as a matrix, whatever axes come before them.


# %% tags=["exercise"]
def attention(q, k, v):
    """Mix the values by how well each key fits each query.

    Args:
        q: (…, T, d), the queries.
        k: (…, S, d), the keys.
        v: (…, S, e), the values; e may differ from d.

    Returns:
        The mixed values (…, T, e), and the weights (…, T, S).
    """
    raise NotImplementedError


# %% tags=["solution"]
def attention(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])  # (…, T, S)
    weights = scores.softmax(dim=-1)  # (…, T, S), each row sums to 1
    return weights @ v, weights  # (…, T, e), (…, T, S)


# %% tags=["second"]
def attention(q, k, v):
    scores = torch.einsum("...td,...sd->...ts", q * q.shape[-1] ** -0.5, k)  # (…, T, S)
    likelihood = (scores - scores.amax(-1, keepdim=True)).exp()  # (…, T, S)
    weights = likelihood / likelihood.sum(-1, keepdim=True)  # (…, T, S)
    return torch.einsum("...ts,...se->...te", weights, v), weights  # (…, T, e), (…, T, S)


# %% tags=["mistake"] says="without the root"
def attention(q, k, v):
    weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)  # (…, T, S)
    return weights @ v, weights


# %% tags=["mistake"] says="and not by its root"
def attention(q, k, v):
    weights = (q @ k.transpose(-2, -1) / k.shape[-1]).softmax(dim=-1)  # (…, T, S)
    return weights @ v, weights


# %% tags=["mistake"] says="number of keys"
def attention(q, k, v):
    weights = (q @ k.transpose(-2, -1) / math.sqrt(k.shape[-2])).softmax(dim=-1)  # (…, T, S)
    return weights @ v, weights


# %% tags=["mistake"] says="another size"
def attention(q, k, v):
    weights = (q @ k.transpose(-2, -1) / math.sqrt(v.shape[-1])).softmax(dim=-1)  # (…, T, S)
    return weights @ v, weights


# %% tags=["mistake"] says="columns sum to 1"
def attention(q, k, v):
    weights = (q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])).softmax(dim=-2)  # (…, T, S)
    return weights @ v, weights


# %% tags=["mistake"] says="after the softmax"
def attention(q, k, v):
    weights = (q @ k.transpose(-2, -1)).softmax(dim=-1) / math.sqrt(k.shape[-1])  # (…, T, S)
    return weights @ v, weights


# %% tags=["mistake"] says="scores themselves"
def attention(q, k, v):
    weights = q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])  # (…, T, S)
    return weights @ v, weights


# %% tags=["mistake"] says="last two axes"
def attention(q, k, v):
    scores = q @ k.transpose(0, 1) / math.sqrt(k.shape[-1])  # (T, S): right for one story
    weights = scores.softmax(dim=-1)  # (T, S)
    return weights @ v, weights


# %% tags=["mistake"] says="two things"
def attention(q, k, v):
    return (q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])).softmax(dim=-1) @ v


# %% tags=["mistake"] says="order"
def attention(q, k, v):
    weights = (q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])).softmax(dim=-1)  # (…, T, S)
    return weights, weights @ v


# %% tags=["mistake"] says="detached"
def attention(q, k, v):
    weights = (q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])).softmax(dim=-1)  # (…, T, S)
    return weights.detach() @ v, weights


# %% tags=["mistake"] says="in place"
def attention(q, k, v):
    q /= math.sqrt(k.shape[-1])
    weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)  # (…, T, S)
    return weights @ v, weights


# %% tags=["check"]
check.attention(attention)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Write the shape of each step beside it before you run anything. The scores have a row for each query and a column for each key, and it is
# the numbers of a row that must sum to 1 afterwards.
#
# </details>

# %% [markdown]
# ## 2 · Nobody reads the future
#
# ●●○ · 15 minutes
#
# Turn the scores of a story into attention weights with which no token looks ahead: the token at $t$ may read the tokens $0, …, t$, itself
# included, and each row sums to 1. Scores may be very high or very low. The weight of a later token must be exactly 0, whatever its
# score, and a later token must not influence the past in any other way: if its score changes, the weights of the past stay as they are.


# %% tags=["exercise"]
def causal_weights(scores):
    """Attention weights of a story, in which no token reads a later one.

    Args:
        scores: (…, T, T); row t belongs to the token that reads, column s to the one that is read.

    Returns:
        (…, T, T); scores stays as it is.
    """
    raise NotImplementedError


# %% tags=["solution"]
def causal_weights(scores):
    T = scores.shape[-1]
    future = torch.ones(T, T, dtype=torch.bool, device=scores.device).triu(1)  # (T, T)
    return scores.masked_fill(future, -torch.inf).softmax(dim=-1)  # (…, T, T)


# %% tags=["second"]
def causal_weights(scores):
    weights = torch.zeros_like(scores)  # (…, T, T)
    for t in range(scores.shape[-1]):
        weights[..., t, : t + 1] = scores[..., t, : t + 1].softmax(dim=-1)
    return weights


# %% tags=["second"]
def causal_weights(scores):
    T = scores.shape[-1]
    mask = torch.full((T, T), -1e30).triu(1)  # (T, T), finite, and low enough
    return torch.softmax(scores.double() + mask, dim=-1).to(scores.dtype)  # (…, T, T)


# %% tags=["mistake"] says="after the softmax"
def causal_weights(scores):
    return scores.softmax(dim=-1).tril()  # (…, T, T)


# %% tags=["mistake"] says="exactly 0"
def causal_weights(scores):
    seen = scores.tril()  # (…, T, T)
    return seen.masked_fill(seen == 0, -torch.inf).softmax(dim=-1)


# %% tags=["mistake"] says="low enough"
def causal_weights(scores):
    future = torch.ones(scores.shape[-2:]).triu(1).bool()  # (T, T)
    return scores.masked_fill(future, -100.0).softmax(dim=-1)


# %% tags=["mistake"] says="rounded to 0"
def causal_weights(scores):
    likelihood = scores.exp().tril()  # (…, T, T)
    return likelihood / likelihood.sum(dim=-1, keepdim=True)


# %% tags=["mistake"] says="twice"
def causal_weights(scores):
    future = torch.ones(scores.shape[-2:]).triu(1).bool()  # (T, T)
    return scores.softmax(dim=-1).masked_fill(future, -torch.inf).softmax(dim=-1)


# %% tags=["mistake"] says="divided by their sum"
def causal_weights(scores):
    weights = scores.softmax(dim=-1).tril()  # (…, T, T)
    return weights / weights.sum(dim=-1, keepdim=True)


# %% tags=["mistake"] says="exponential of 0"
def causal_weights(scores):
    return scores.tril().softmax(dim=-1)  # (…, T, T)


# %% tags=["mistake"] says="the future has weight"
def causal_weights(scores):
    return scores.softmax(dim=-1)  # (…, T, T)


# %% tags=["mistake"] says="added after"
def causal_weights(scores):
    weights = scores.softmax(dim=-1)  # (…, T, T)
    mask = torch.full(scores.shape[-2:], -torch.inf).triu(1)  # (T, T)
    return weights + mask


# %% tags=["mistake"] says="itself"
def causal_weights(scores):
    mask = torch.full(scores.shape[-2:], -torch.inf).triu(0)  # (T, T)
    return (scores + mask).softmax(dim=-1)


# %% tags=["mistake"] says="next token"
def causal_weights(scores):
    mask = torch.full(scores.shape[-2:], -torch.inf).triu(2)  # (T, T)
    return (scores + mask).softmax(dim=-1)


# %% tags=["mistake"] says="the past is masked"
def causal_weights(scores):
    mask = torch.full(scores.shape[-2:], -torch.inf).tril(-1)  # (T, T)
    return (scores + mask).softmax(dim=-1)


# %% tags=["mistake"] says="columns sum to 1"
def causal_weights(scores):
    mask = torch.full(scores.shape[-2:], -torch.inf).triu(1)  # (T, T)
    return (scores + mask).softmax(dim=-2)


# %% tags=["mistake"] says="multiplied by inf"
def causal_weights(scores):
    return (scores - torch.inf * torch.ones_like(scores).triu(1)).softmax(dim=-1)  # 0 · inf is nan


# %% tags=["mistake"] says="low enough"
def causal_weights(scores):
    mask = torch.full(scores.shape[-2:], -20.0).triu(1)  # (T, T)
    return (scores + mask).softmax(dim=-1)


# %% tags=["mistake"] says="in place"
def causal_weights(scores):
    future = torch.ones(scores.shape[-2:]).triu(1).bool()  # (T, T)
    return scores.masked_fill_(future, -torch.inf).softmax(dim=-1)


# %% tags=["mistake"] says="gradient"
def causal_weights(scores):
    future = torch.ones(scores.shape[-2:]).triu(1).bool()  # (T, T)
    return scores.detach().masked_fill(future, -torch.inf).softmax(dim=-1)


# %% tags=["check"]
check.causal_weights(causal_weights)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A weight is an exponential divided by the sum of its row. Which score has an exponential of 0? And must it be in its place before the sum is
# taken, or after?
#
# </details>

# %% [markdown]
# ## 3 · Split into heads
#
# ●●○ · 10 minutes
#
# Each token has $D$ numbers. Head 0 is to get the first $d = D / H$ of them, head 1 the next $d$, and so on, of every token. Return, for each
# head, a matrix with one row for each token. You only move numbers, so the danger is that the shape is right and the content is not.


# %% tags=["exercise"]
def split_into_heads(x, num_heads):
    """Give each head its share of each token's numbers.

    Args:
        x: (B, T, D).
        num_heads: H, which divides D.

    Returns:
        (B, H, T, d), with d = D / H.
    """
    raise NotImplementedError


# %% tags=["solution"]
def split_into_heads(x, num_heads):
    B, T, D = x.shape
    return x.view(B, T, num_heads, D // num_heads).transpose(1, 2)  # (B, H, T, d)


# %% tags=["second"]
def split_into_heads(x, num_heads):
    return torch.stack(x.chunk(num_heads, dim=-1), dim=1)  # (B, H, T, d)


# %% tags=["mistake"] says="between tokens"
def split_into_heads(x, num_heads):
    B, T, D = x.shape
    return x.view(B, num_heads, T, D // num_heads)  # (B, H, T, d)


# %% tags=["mistake"] says="between tokens"
def split_into_heads(x, num_heads):
    B, T, D = x.shape
    return x.mT.reshape(B, num_heads, T, D // num_heads)  # (B, H, T, d)


# %% tags=["mistake"] says="every H-th"
def split_into_heads(x, num_heads):
    B, T, D = x.shape
    return x.view(B, T, D // num_heads, num_heads).permute(0, 3, 1, 2)  # (B, H, T, d)


# %% tags=["mistake"] says="exchanged"
def split_into_heads(x, num_heads):
    B, T, D = x.shape
    return x.view(B, T, num_heads, D // num_heads)  # (B, T, H, d)


# %% tags=["mistake"] says="exchanged"
def split_into_heads(x, num_heads):
    B, T, D = x.shape
    return x.view(B, T, num_heads, D // num_heads).permute(0, 2, 3, 1)  # (B, H, d, T)


# %% tags=["mistake"] says="8 heads"
def split_into_heads(x, num_heads):
    B, T, D = x.shape
    return x.reshape(B, T, 8, D // 8).transpose(1, 2)  # (B, 8, T, D / 8)


# %% tags=["mistake"] says="whole numbers"
def split_into_heads(x, num_heads):
    B, T, D = x.shape
    return x.view(B, T, num_heads, D / num_heads).transpose(1, 2)  # (B, H, T, d)


# %% tags=["mistake"] says="num_heads numbers each"
def split_into_heads(x, num_heads):
    return torch.stack(x.split(num_heads, dim=-1), dim=1)  # (B, D / H, T, H)


# %% tags=["check"]
check.split_into_heads(split_into_heads)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Think of one token alone: $D$ numbers in a row become $H$ rows of $d$. Cut there first, while the tokens still stand where they are, and
# change the order of the axes afterwards.
#
# </details>

# %% [markdown]
# ## 4 · Join the heads
#
# ●○○ · 5 minutes
#
# The way back: put the results of the heads side by side again, so that each token has $D$ numbers, those of head 0 first. What you split and
# join must come back as it was.


# %% tags=["exercise"]
def join_heads(x):
    """Put the heads side by side.

    Args:
        x: (B, H, T, d).

    Returns:
        (B, T, D), with D = H · d.
    """
    raise NotImplementedError


# %% tags=["solution"]
def join_heads(x):
    return x.transpose(1, 2).flatten(2)  # (B, T, D)


# %% tags=["second"]
def join_heads(x):
    return torch.cat([x[:, h] for h in range(x.shape[1])], dim=-1)  # (B, T, D)


# %% tags=["mistake"] says="before the axes are exchanged"
def join_heads(x):
    B, H, T, d = x.shape
    return x.reshape(B, T, H * d)


# %% tags=["mistake"] says="take turns"
def join_heads(x):
    return x.permute(0, 2, 3, 1).flatten(2)  # (B, T, D), the heads take turns


# %% tags=["mistake"] says="before stories"
def join_heads(x):
    B, H, T, d = x.shape
    return x.permute(2, 0, 1, 3).reshape(B, T, H * d)


# %% tags=["mistake"] says="added up"
def join_heads(x):
    return x.sum(dim=1)  # (B, T, d)


# %% tags=["mistake"] says="averaged"
def join_heads(x):
    return x.mean(dim=1)  # (B, T, d)


# %% tags=["mistake"] says="`view` only"
def join_heads(x):
    B, H, T, d = x.shape
    return x.transpose(1, 2).view(B, T, H * d)


# %% tags=["mistake"] says="below each other"
def join_heads(x):
    return torch.cat([x[:, h] for h in range(x.shape[1])], dim=1)  # (B, H · T, d)


# %% tags=["mistake"] says="opposite order"
def join_heads(x):
    return x.flip(1).transpose(1, 2).flatten(2)  # (B, T, D)


# %% tags=["check"]
check.join_heads(join_heads)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Two axes can be joined into one only if they stand next to each other, and in the right order. Which two must be joined here, and do they?
#
# </details>

# %% [markdown]
# ## 5 · A head that looks two words back
#
# ●●○ · 20 minutes
#
# The position vectors of the course are hands of clocks: in row $t$ stand $\sin\omega_0 t, \cos\omega_0 t, \sin\omega_1 t, \cos\omega_1 t, …$
# There are $n$ hands here, and hand $i$ turns by the angle $\omega_i$ from each word to the next; `omega` holds these angles. Make the two
# matrices of a head in which the word at each place $t \geq 2$ gives at least 0.9 of its attention to the word at $t - 2$. The head sees nothing
# but positions. With one position in each row of $P$, $Q = P W_Q^\top$ and $K = P W_K^\top$ (`nn.Linear` multiplies in this way), and the
# weights are $\operatorname{softmax}(QK^\top / \sqrt{2n})$ under the causal mask. Any two matrices that do it are right. The check also gives
# you hands that turn by other angles; there the word at $t - 2$ needs only the largest weight, and not 0.9.

# %%
omega = 10_000 ** (-torch.arange(0, 36, 2) / 296)  # (18,), the fastest hands of our model
P = sinusoidal_positions(64, 296)[:, :36]  # (T, 2n)
print(f"row 1 of P begins with {P[1, 0]:.3f} and {P[1, 1]:.3f}: the sine and the cosine of 1")


# %% tags=["exercise"]
def two_words_back(omega):
    """The matrices of a head that reads the word before the previous one.

    Args:
        omega: (n,), by how much each hand turns from word to word.

    Returns:
        W_Q and W_K, (2n, 2n) each.
    """
    raise NotImplementedError


# %% tags=["solution"]
def two_words_back(omega):
    s, c = (2 * omega).sin(), (2 * omega).cos()  # (n,) each
    turns = torch.stack([c, -s, s, c], dim=-1).view(-1, 2, 2)  # (n, 2, 2), back by two words
    sharpness = 20
    return sharpness * torch.block_diag(*turns), torch.eye(2 * len(omega))  # (2n, 2n) each


# %% tags=["second"]
def two_words_back(omega):
    s, c = (2 * omega).sin(), (2 * omega).cos()  # (n,) each
    turns = torch.stack([c, -s, s, c], dim=-1).view(-1, 2, 2)  # (n, 2, 2)
    return 10 * torch.block_diag(*turns), torch.eye(2 * len(omega))  # as sharp as in notebook 02


# %% tags=["second"]
def two_words_back(omega):
    W_K = torch.zeros(2 * len(omega), 2 * len(omega))  # (2n, 2n)
    for i, angle in enumerate(omega.tolist()):
        s, c = math.sin(2 * angle), math.cos(2 * angle)
        W_K[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, s], [-s, c]])
    return 5 * torch.eye(len(W_K)), 5 * W_K  # the keys are turned forward, the queries stay


# %% tags=["mistake"] says="one word back"
def two_words_back(omega):
    s, c = omega.sin(), omega.cos()  # (n,) each
    turns = torch.stack([c, -s, s, c], dim=-1).view(-1, 2, 2)  # (n, 2, 2)
    return 20 * torch.block_diag(*turns), torch.eye(2 * len(omega))


# %% tags=["mistake"] says="different numbers of words"
def two_words_back(omega):
    s, c = torch.full_like(omega, 2).sin(), torch.full_like(omega, 2).cos()  # (n,) each
    turns = torch.stack([c, -s, s, c], dim=-1).view(-1, 2, 2)  # (n, 2, 2)
    return 20 * torch.block_diag(*turns), torch.eye(2 * len(omega))


# %% tags=["mistake"] says="mirrored"
def two_words_back(omega):
    s, c = omega.sin(), omega.cos()  # (n,) each
    turns = torch.stack([c, -s, s, c], dim=-1).view(-1, 2, 2)  # (n, 2, 2)
    return 20 * torch.block_diag(*turns) ** 2, torch.eye(2 * len(omega))  # entry by entry


# %% tags=["mistake"] says="two words ahead"
def two_words_back(omega):
    s, c = (2 * omega).sin(), (2 * omega).cos()  # (n,) each
    turns = torch.stack([c, s, -s, c], dim=-1).view(-1, 2, 2)  # (n, 2, 2)
    return 20 * torch.block_diag(*turns), torch.eye(2 * len(omega))


# %% tags=["mistake"] says="not sharp enough"
def two_words_back(omega):
    s, c = (2 * omega).sin(), (2 * omega).cos()  # (n,) each
    turns = torch.stack([c, -s, s, c], dim=-1).view(-1, 2, 2)  # (n, 2, 2)
    return torch.block_diag(*turns), torch.eye(2 * len(omega))


# %% tags=["mistake"] says="reads itself"
def two_words_back(omega):
    return 20 * torch.eye(2 * len(omega)), torch.eye(2 * len(omega))


# %% tags=["mistake"] says="four words back"
def two_words_back(omega):
    s, c = (2 * omega).sin(), (2 * omega).cos()  # (n,) each
    back = torch.block_diag(*torch.stack([c, -s, s, c], dim=-1).view(-1, 2, 2))  # (2n, 2n)
    return 20 * back, back.T


# %% tags=["mistake"] says="reads itself"
def two_words_back(omega):
    s, c = (2 * omega).sin(), (2 * omega).cos()  # (n,) each
    back = torch.block_diag(*torch.stack([c, -s, s, c], dim=-1).view(-1, 2, 2))  # (2n, 2n)
    return 20 * back, back


# %% tags=["mistake"] says="take turns"
def two_words_back(omega):
    S, C = torch.diag((2 * omega).sin()), torch.diag((2 * omega).cos())  # (n, n) each
    W_Q = torch.cat([torch.cat([C, -S], dim=1), torch.cat([S, C], dim=1)])  # (2n, 2n)
    return 20 * W_Q, torch.eye(2 * len(omega))


# %% tags=["mistake"] says="shape"
def two_words_back(omega):
    return torch.eye(len(omega)), torch.eye(len(omega))


# %% tags=["mistake"] says="nan"
def two_words_back(omega):
    s, c = (2 * omega).sin(), (2 * omega).cos()  # (n,) each
    turns = torch.stack([c, -s, s, c], dim=-1).view(-1, 2, 2)  # (n, 2, 2)
    return torch.inf * torch.block_diag(*turns), torch.eye(2 * len(omega))


# %% tags=["mistake"] says="other hands"
def two_words_back(omega):
    fixed = 2 * 10_000 ** (-torch.arange(0, 36, 2) / 296)  # (18,)
    s, c = fixed.sin()[: len(omega)], fixed.cos()[: len(omega)]  # (n,) each
    turns = torch.stack([c, -s, s, c], dim=-1).view(-1, 2, 2)  # (n, 2, 2)
    return 20 * torch.block_diag(*turns), torch.eye(2 * len(omega))


# %% tags=["check"]
check.two_words_back(two_words_back)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Notebook 02 has the matrix that turns one hand back by one word. A turn by two words is the same matrix with another angle. Which of the two
# matrices of the head has to do nothing at all? And if the right word wins, but its neighbours come close: what makes a softmax more certain?
#
# </details>
