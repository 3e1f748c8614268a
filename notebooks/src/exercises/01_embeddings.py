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
# # Exercises for 01 · Embeddings
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/exercises/01_embeddings.ipynb)
#
# Five exercises, about an hour: what a model is trained to do, how it learns where a word stands, and how many words it needs. Write your code
# in the cells that say `raise NotImplementedError`, and run the cell after each: it says what is right, or what the mistake looks like. Your
# functions must not change what they are given. The exercises go with [notebook 01](../01_embeddings.ipynb), whose letters for sizes are
# used here: $T$ tokens of a story, $V$ words in the vocabulary, $D$ numbers for each token.

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
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F

from checks import embeddings as check
from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer

# %% [markdown]
# ## 1 · Cross-entropy by hand
#
# ●○○ · 10 minutes
#
# A model gives each of the $V$ words that it knows a logit $z_v$. Then one word comes, with the id $w$. Return the loss of this prediction
# in nats, $-\ln p_w$ with $p_w = e^{z_w} / \sum_v e^{z_v}$. Use exponentials, logarithms and sums only: the check compares numbers, so it
# would accept `logsumexp` or a ready-made loss of PyTorch, but you would learn nothing. Your function must also survive logits of 1,000, which
# trained models do not have, but broken ones do, and you want to read their loss.


# %% tags=["exercise"]
def cross_entropy(logits, target):
    """The loss of one prediction, in nats.

    Args:
        logits: (V,), a score for each word.
        target: the id of the word that came, an int.

    Returns:
        A number, or a tensor of shape ().
    """
    raise NotImplementedError


# %% tags=["solution"]
def cross_entropy(logits, target):
    shifted = logits - logits.max()  # (V,): the same probabilities, and no exponential above 1
    return shifted.exp().sum().log() - shifted[target]  # ()


# %% tags=["second"]
def cross_entropy(logits, target):
    scores = [float(logit) for logit in logits]
    top = max(scores)
    total = sum(math.exp(score - top) for score in scores)
    return math.log(total) + top - scores[target]


# %% tags=["second"]
def cross_entropy(logits, target):
    return F.cross_entropy(logits[None], torch.tensor([target]))  # (), as a judge would do it


# %% tags=["mistake"] says="sign"
def cross_entropy(logits, target):
    return F.log_softmax(logits, dim=-1)[target]


# %% tags=["mistake"] says="bits"
def cross_entropy(logits, target):
    return -torch.log2(logits.softmax(-1))[target]


# %% tags=["mistake"] says="the probability itself"
def cross_entropy(logits, target):
    return logits.softmax(-1)[target]


# %% tags=["mistake"] says="1,000"
def cross_entropy(logits, target):
    probabilities = logits.exp() / logits.exp().sum()  # (V,)
    return -probabilities[target].log()


# %% tags=["mistake"] says="1,000"
def cross_entropy(logits, target):
    scores = logits.tolist()
    return -math.log(math.exp(scores[target]) / sum(math.exp(score) for score in scores))


# %% tags=["mistake"] says="is lost"
def cross_entropy(logits, target):
    return -logits.double().softmax(-1)[target].log()


# %% tags=["mistake"] says="capped"
def cross_entropy(logits, target):
    return -(logits.softmax(-1)[target] + 1e-9).log()


# %% tags=["mistake"] says="capped"
def cross_entropy(logits, target):
    return torch.nan_to_num(-logits.softmax(-1)[target].log())


# %% tags=["mistake"] says="by a limit"
def cross_entropy(logits, target):
    low = logits.clamp(max=80)  # (V,)
    return low.exp().sum().log() - low[target]


# %% tags=["mistake"] says="a mean of exponentials"
def cross_entropy(logits, target):
    low = logits - logits.max()  # (V,)
    return low.exp().mean().log() - low[target]


# %% tags=["mistake"] says="added back"
def cross_entropy(logits, target):
    return (logits - logits.max()).exp().sum().log() - logits[target]


# %% tags=["mistake"] says="judged by itself"
def cross_entropy(logits, target):
    came = F.one_hot(torch.tensor(target), len(logits)).float()  # (V,)
    return F.binary_cross_entropy_with_logits(logits, came)


# %% tags=["mistake"] says="all words"
def cross_entropy(logits, target):
    return -F.log_softmax(logits, dim=-1).mean()


# %% tags=["mistake"] says="did not come"
def cross_entropy(logits, target):
    return -F.log_softmax(logits, dim=-1).max()


# %% tags=["mistake"] says="twice"
def cross_entropy(logits, target):
    return F.cross_entropy(logits.softmax(-1), torch.tensor(target))


# %% tags=["mistake"] says="a logit is not yet"
def cross_entropy(logits, target):
    return -logits[target]


# %% tags=["mistake"] says="exponentials"
def cross_entropy(logits, target):
    return -(logits[target] / logits.sum()).log()


# %% tags=["mistake"] says="perplexity"
def cross_entropy(logits, target):
    return F.cross_entropy(logits, torch.tensor(target)).exp()


# %% tags=["mistake"] says="in place"
def cross_entropy(logits, target):
    logits -= logits.max()
    return logits.exp().sum().log() - logits[target]


# %% tags=["check"]
check.cross_entropy(cross_entropy)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# If the same number is added to all logits, each exponential is multiplied by the same factor, and the factor cancels in the fraction. Which
# number makes the largest exponential harmless?
#
# </details>

# %% [markdown]
# ## 2 · The loss of a story
#
# ●●○ · 10 minutes
#
# A story is a row of $T$ ids that begins with `<sos>` and ends with `<eos>`. The model has read it all at once: `logits[t]` is its guess after
# reading `ids[0]` to `ids[t]`. Return the mean loss of its predictions in nats. You must decide which row of logits is compared with which
# id, and how many predictions a story of $T$ tokens holds. `torch`'s own cross-entropy is allowed here, and so is yours.


# %% tags=["exercise"]
def story_loss(logits, ids):
    """The mean cross-entropy of the predictions in one story, in nats.

    Args:
        logits: (T, V); row t is what the model says after it has read ids[0] to ids[t].
        ids: (T,), the whole story, from <sos> to <eos>.

    Returns:
        A number, or a tensor of shape ().
    """
    raise NotImplementedError


# %% tags=["solution"]
def story_loss(logits, ids):
    return F.cross_entropy(logits[:-1], ids[1:])  # (), the mean over T - 1 predictions


# %% tags=["second"]
def story_loss(logits, ids):
    total = 0.0
    for t in range(len(ids) - 1):
        scores = logits[t].double()  # (V,)
        total += float(scores.logsumexp(0) - scores[ids[t + 1]])
    return total / (len(ids) - 1)


# %% tags=["mistake"] says="has just read"
def story_loss(logits, ids):
    return F.cross_entropy(logits, ids)


# %% tags=["mistake"] says="the other way"
def story_loss(logits, ids):
    return F.cross_entropy(logits[1:], ids[:-1])


# %% tags=["mistake"] says="first word"
def story_loss(logits, ids):
    return F.cross_entropy(logits, ids.roll(-1))


# %% tags=["mistake"] says="a sum"
def story_loss(logits, ids):
    return F.cross_entropy(logits[:-1], ids[1:], reduction="sum")


# %% tags=["mistake"] says="how many predictions"
def story_loss(logits, ids):
    return F.cross_entropy(logits[:-1], ids[1:], reduction="sum") / len(ids)


# %% tags=["mistake"] says="last prediction"
def story_loss(logits, ids):
    return F.cross_entropy(logits[:-2], ids[1:-1])


# %% tags=["mistake"] says="first prediction"
def story_loss(logits, ids):
    return F.cross_entropy(logits[1:-1], ids[2:])


# %% tags=["mistake"] says="before the logarithm"
def story_loss(logits, ids):
    probabilities = logits.softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]  # (T - 1,)
    return -probabilities.mean().log()


# %% tags=["mistake"] says="sign"
def story_loss(logits, ids):
    return F.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]].mean()


# %% tags=["mistake"] says="softmax"
def story_loss(logits, ids):
    return F.cross_entropy(logits[:-1].softmax(-1), ids[1:])


# %% tags=["mistake"] says="compete at each place"
def story_loss(logits, ids):
    return -F.log_softmax(logits, dim=0)[torch.arange(len(ids) - 1), ids[1:]].mean()


# %% tags=["check"]
check.story_loss(story_loss)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Write the story *a b c* with its two special tokens on paper, one below the other, and beside each of them the row of logits that the model
# gives after reading it. Draw an arrow from each row to the token that it should have predicted. Which row has no arrow, and which token?
#
# </details>

# %% [markdown]
# ## 3 · Sinusoidal positions
#
# ●●○ · 15 minutes
#
# Return a table with a row for each position $t = 0, 1, 2, …$ In row $t$, the columns $2i$ and $2i + 1$ are a pair, the sine and the cosine of
# one angle:
#
# $$p_{t,\,2i} = \sin\frac{t}{b^{\,2i/D}}, \qquad p_{t,\,2i+1} = \cos\frac{t}{b^{\,2i/D}}, \qquad i = 0, 1, …, D/2 - 1$$
#
# The base $b$ is 10,000 in the paper, and an argument here, so that you can see what it does.


# %% tags=["exercise"]
def positions(length, d_model, base=10_000):
    """Sines and cosines of each position.

    Args:
        length: how many positions, T.
        d_model: how many columns, D; even.
        base: b, which sets the longest wavelength.

    Returns:
        (T, D)
    """
    raise NotImplementedError


# %% tags=["solution"]
def positions(length, d_model, base=10_000):
    frequency = base ** (-torch.arange(0, d_model, 2) / d_model)  # (D/2,)
    angle = torch.arange(length)[:, None] * frequency  # (T, D/2)
    table = torch.zeros(length, d_model)  # (T, D)
    table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()
    return table


# %% tags=["second"]
def positions(length, d_model, base=10_000):
    pairs = [
        [
            wave(t / base ** (2 * i / d_model))
            for i in range(d_model // 2)
            for wave in (math.sin, math.cos)
        ]
        for t in range(length)
    ]
    return np.array(pairs)  # (T, D)


# %% tags=["mistake"] says="side by side"
def positions(length, d_model, base=10_000):
    frequency = base ** (-torch.arange(0, d_model, 2) / d_model)  # (D/2,)
    angle = torch.arange(length)[:, None] * frequency  # (T, D/2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)  # (T, D)


# %% tags=["mistake"] says="exchanged"
def positions(length, d_model, base=10_000):
    frequency = base ** (-torch.arange(0, d_model, 2) / d_model)  # (D/2,)
    angle = torch.arange(length)[:, None] * frequency  # (T, D/2)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(1)  # (T, D)


# %% tags=["mistake"] says="half as fast"
def positions(length, d_model, base=10_000):
    frequency = base ** (-torch.arange(d_model // 2) / d_model)  # (D/2,)
    angle = torch.arange(length)[:, None] * frequency  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (T, D)


# %% tags=["mistake"] says="an angle of its own"
def positions(length, d_model, base=10_000):
    angle = torch.arange(length)[:, None] * base ** (-torch.arange(d_model) / d_model)  # (T, D)
    table = angle.sin()
    table[:, 1::2] = angle[:, 1::2].cos()
    return table


# %% tags=["mistake"] says="an angle of its own"
def positions(length, d_model, base=10_000):
    angle = torch.arange(length)[:, None] / base ** (2 * torch.arange(d_model) / d_model)  # (T, D)
    table = angle.sin()
    table[:, 1::2] = angle[:, 1::2].cos()
    return table


# %% tags=["mistake"] says="start at 0"
def positions(length, d_model, base=10_000):
    frequency = base ** (-torch.arange(0, d_model, 2) / d_model)  # (D/2,)
    angle = torch.arange(1, length + 1)[:, None] * frequency  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (T, D)


# %% tags=["mistake"] says="base"
def positions(length, d_model, base=10_000):
    frequency = 10_000 ** (-torch.arange(0, d_model, 2) / d_model)  # (D/2,)
    angle = torch.arange(length)[:, None] * frequency  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (T, D)


# %% tags=["mistake"] says="faster"
def positions(length, d_model, base=10_000):
    frequency = base ** (torch.arange(0, d_model, 2) / d_model)  # (D/2,)
    angle = torch.arange(length)[:, None] * frequency  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (T, D)


# %% tags=["mistake"] says="decimal"
def positions(length, d_model, base=10_000):
    frequency = torch.exp(-math.log10(base) * torch.arange(0, d_model, 2) / d_model)  # (D/2,)
    angle = torch.arange(length)[:, None] * frequency  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (T, D)


# %% tags=["mistake"] says="whole number"
def positions(length, d_model, base=10_000):
    frequency = base ** (-(torch.arange(0, d_model, 2) // d_model))  # (D/2,)
    angle = torch.arange(length)[:, None] * frequency  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (T, D)


# %% tags=["mistake"] says="exchanged"
def positions(length, d_model, base=10_000):
    frequency = base ** (-torch.arange(0, d_model, 2) / d_model)  # (D/2,)
    angle = frequency[:, None] * torch.arange(length)  # (D/2, T)
    return torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)  # (D, T)


# %% tags=["check"]
check.positions(positions)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# First make the angles: a table with $T$ rows and $D/2$ columns, one for each *pair*. Only then take sines and cosines, and let them take
# turns. A small table that you can check by head: `positions(2, 2)` is the sine and the cosine of 0, and the sine and the cosine of 1.
#
# </details>

# %% [markdown]
# ## 4 · Words that the model cannot see
#
# ●●○ · 15 minutes
#
# A vocabulary of `vocab_size` entries, the four special tokens among them, holds the most frequent words of the training stories. Every other
# word is read as `<unk>`. Return the **unknown rate**: which share of all words and punctuation marks in the validation stories is
# `<unk>`? A word that occurs ten times counts ten times. `WordTokenizer.train` makes the vocabulary, `encode` turns a text into ids without special
# tokens, and `unk_id` is the id of `<unk>`.

# %%
stories = load_stories("bundled", train=1_000, validation=200)


# %% tags=["exercise"]
def unknown_rate(train, validation, vocab_size):
    """The share of validation words that a vocabulary of the training stories lacks, 0 to 1.

    Args:
        train: texts, of which the vocabulary is made.
        validation: texts, whose words are counted.
        vocab_size: entries of the vocabulary, the four special tokens included.
    """
    raise NotImplementedError


# %% tags=["solution"]
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train, vocab_size=vocab_size)
    ids = [i for text in validation for i in tokenizer.encode(text)]
    return ids.count(tokenizer.unk_id) / len(ids)


# %% tags=["second"]
def unknown_rate(train, validation, vocab_size):
    split = WordTokenizer([]).split
    counts = Counter(word for text in train for word in split(text))
    listed = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - 4]
    found = Counter(word for text in validation for word in split(text))
    return 1 - sum(found[word] for word in listed) / found.total()


# %% tags=["mistake"] says="percent"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train, vocab_size=vocab_size)
    ids = [i for text in validation for i in tokenizer.encode(text)]
    return 100 * ids.count(tokenizer.unk_id) / len(ids)


# %% tags=["mistake"] says="known words"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train, vocab_size=vocab_size)
    ids = [i for text in validation for i in tokenizer.encode(text)]
    return sum(i != tokenizer.unk_id for i in ids) / len(ids)


# %% tags=["mistake"] says="different words"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train, vocab_size=vocab_size)
    words = {word for text in validation for word in tokenizer.split(text)}
    return len(words - set(tokenizer.words)) / len(words)


# %% tags=["mistake"] says="special tokens"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train, vocab_size=vocab_size + 4)
    ids = [i for text in validation for i in tokenizer.encode(text)]
    return ids.count(tokenizer.unk_id) / len(ids)


# %% tags=["mistake"] says="every story the same weight"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train, vocab_size=vocab_size)
    rows = [tokenizer.encode(text) for text in validation]
    return sum(row.count(tokenizer.unk_id) / len(row) for row in rows) / len(rows)


# %% tags=["mistake"] says="training stories"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train, vocab_size=vocab_size)
    ids = [i for text in train for i in tokenizer.encode(text)]
    return ids.count(tokenizer.unk_id) / len(ids)


# %% tags=["mistake"] says="must not see"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train([*train, *validation], vocab_size=vocab_size)
    ids = [i for text in validation for i in tokenizer.encode(text)]
    return ids.count(tokenizer.unk_id) / len(ids)


# %% tags=["mistake"] says="<pad>"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train, vocab_size=vocab_size)
    ids = [i for text in validation for i in tokenizer.encode_story(text, 64)]
    return ids.count(tokenizer.unk_id) / len(ids)


# %% tags=["mistake"] says="a number of words"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train, vocab_size=vocab_size)
    return sum(tokenizer.encode(text).count(tokenizer.unk_id) for text in validation)


# %% tags=["mistake"] says="the same for every vocab_size"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train)
    ids = [i for text in validation for i in tokenizer.encode(text)]
    return ids.count(tokenizer.unk_id) / len(ids)


# %% tags=["mistake"] says="spaces"
def unknown_rate(train, validation, vocab_size):
    listed = set(WordTokenizer.train(train, vocab_size=vocab_size).words)
    words = [word.lower() for text in validation for word in text.split()]
    return sum(word not in listed for word in words) / len(words)


# %% tags=["mistake"] says="stories with an unknown word"
def unknown_rate(train, validation, vocab_size):
    tokenizer = WordTokenizer.train(train, vocab_size=vocab_size)
    return sum(tokenizer.unk_id in tokenizer.encode(text) for text in validation) / len(validation)


# %% tags=["check"]
check.unknown_rate(unknown_rate)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Put the ids of all validation stories into one long list. The rate is a fraction of two numbers that this list gives you.
#
# </details>

# %% [markdown]
# ## 5 · How many words are enough?
#
# ●○○ · 10 minutes, an experiment
#
# A vocabulary costs parameters: in our model each word has a row in the embedding and one in the output layer, about 600 numbers. Find the
# **smallest** `vocab_size` for which at most 1% of the validation words in `stories` are unknown (`stories.train` has 1,000 stories,
# `stories.validation` 200). Guess first. Then use your `unknown_rate`, and write the number that you find into the cell.

# %% tags=["exercise"]
enough = ...  # your number

# %% tags=["solution"]
too_few, enough = 4, 2_000  # entries: the first leave more than 1% unknown, the second do not
while enough - too_few > 1:
    middle = (too_few + enough) // 2
    if unknown_rate(stories.train, stories.validation, middle) > 0.01:
        too_few = middle
    else:
        enough = middle

# %% tags=["second"]
split = WordTokenizer([]).split
listed = Counter(word for text in stories.train for word in split(text))
found = Counter(word for text in stories.validation for word in split(text))
ranked = sorted(listed, key=lambda word: (-listed[word], word))
covered = np.cumsum([found[word] for word in ranked]) / found.total()
enough = int(np.argmax(covered >= 0.99)) + 1 + 4

# %% tags=["mistake"] says="special tokens"
split = WordTokenizer([]).split
listed = Counter(word for text in stories.train for word in split(text))
found = Counter(word for text in stories.validation for word in split(text))
ranked = sorted(listed, key=lambda word: (-listed[word], word))
covered = np.cumsum([found[word] for word in ranked]) / found.total()
enough = int(np.argmax(covered >= 0.99)) + 1

# %% tags=["mistake"] says="smaller"
enough = 1_900

# %% tags=["mistake"] says="are unknown, more than"
enough = 500

# %% tags=["mistake"] says="training stories"
split = WordTokenizer([]).split
listed = Counter(word for text in stories.train for word in split(text))
ranked = sorted(listed.values(), reverse=True)
enough = int(np.argmax(np.cumsum(ranked) >= 0.99 * listed.total())) + 1 + 4

# %% tags=["mistake"] says="a number of entries"
enough = 0.01

# %% tags=["check"]
check.enough(enough)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The rate falls as the vocabulary grows, and the training stories fill about 2,000 entries. Eleven trials find one size among 2,000, if each
# halves what is left.
#
# </details>
