# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Embeddings
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/01_embeddings.ipynb)
#
# **Promise.** You will compute by hand the loss that a language model is trained to lower, and then follow one story
# from text to numbers: words, ids, vectors, positions. At the end you will know whether an average of word vectors can
# tell *the dog looked for the cat* from *the cat looked for the dog*, and what positions have to do with it.
#
# **You will be able to**
#
# - turn the scores of a model into probabilities, a loss in nats and a perplexity;
# - turn a text into ids and back, and say what is lost on the way;
# - explain why looking up a row of a table is a matrix product;
# - say what a word vector knows before the model is trained, and what it does not;
# - explain why a model needs positions, and what sinusoidal positions add.
#
# **Prerequisites.** Python and PyTorch tensors. This is the first notebook.
#
# **Running time.** About one minute on two cores, most of it for training word vectors; a few seconds once they are
# cached.

# %% tags=["parameters"]
CORPUS = "bundled"  # or "tinystories" (from the Hugging Face Hub), or the path of a file,
# or of a folder with train.* and validation.*

# %% cellView="form" tags=["setup"]
# @title Set-up: run this cell first
import os
import sys

REPOSITORY = "https://github.com/lohar-animesh-27112001/ELL881-advance_LLM-assignment"
if "google.colab" in sys.modules:
    os.system(f"cd /content && [ -d course ] || git clone -q --depth=1 {REPOSITORY} course")
sys.path[:0] = ["/content/course/notebooks", "notebooks", "."]
import colab  # not found? Open this notebook inside the repository, or correct REPOSITORY

colab.start()

# %%
import re
import textwrap
from collections import Counter

import fasttext
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from helpers import plots
from helpers.grammar import bundled_grammar, entropy_floor
from helpers.model import ModelConfig, sinusoidal_positions
from helpers.notebook import FigureFolder, claim, show_source, table
from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer
from helpers.vectors import neighbours, train_vectors

figures = FigureFolder(CORPUS)

# %% [markdown]
# ## The task: say what comes next
#
# A **language model** reads the beginning of a text and predicts its next piece. Such a piece is called a **token**.
# Our tokens are words and punctuation marks. Here is the story that this notebook follows:

# %%
STORY = (
    "Tom was a small boy. One sunny day, Tom met a hungry man on the bridge. Tom gave the man an "
    "apple. The man smiled and gave him a tin whistle. Whenever he blew it, the sun came out."
)
print(textwrap.fill(STORY, 88))

# %% [markdown]
# No author wrote this story. A **grammar** generated it: a list of sentence patterns with slots, and of the words that
# may fill each slot (`helpers/bundled_grammar.toml`). The course trains its model on ten thousand such *grammar
# stories*. They are useful because the grammar knows something that nobody knows about other texts: the exact
# probability of every next word. So we know how well a model can possibly do.
#
# Suppose a model has read *Tom was a small*. It gives every word that it knows a score, called a **logit**. A logit can
# be any real number; the higher it is, the likelier the word. Probabilities must be positive and sum to 1. The
# **softmax** turns the scores into probabilities: exponentiate each one, then divide by the sum,
# $p_w = e^{z_w} / \sum_v e^{z_v}$. Here are made-up logits $z$ for five words. (A comment such as `# (V,)` gives the
# shape of a tensor, here one number for each of $V$ words. All letters are in a table below.)

# %%
words = ["boy", "girl", "bear", "tom", "the"]
logits = torch.tensor([3.0, 2.0, 1.0, -1.0, -2.0])  # (V,), made up
probabilities = logits.exp() / logits.exp().sum()  # (V,), the softmax

# %% cellView="form" tags=["hide-input"]
table(
    zip(words, logits.tolist(), probabilities.tolist(), strict=True),
    ["next word", "logit", "probability"],
    caption="Five words, with the logits that we made up for them.",
)

# %% [markdown]
# The next word of the story is *boy*. How good was the prediction? The **loss**, called *cross-entropy*, is $-\ln p$ of
# that word: 0 if the model was certain of it, large if the word came as a surprise. Its unit is the **nat** (from
# *natural* logarithm; with $\log_2$ it would be the bit). A loss of 1 nat means that the model gave the word a
# probability of $1/e$, a little more than a third.
#
# (`claim` prints its sentence with a ✓ if its condition holds, and stops the notebook if not. Numbers after ≈ may
# differ from machine to machine.)

# %%
loss = -probabilities[words.index("boy")].log()  # ()
by_pytorch = F.cross_entropy(logits, torch.tensor(words.index("boy")))
claim(
    f"the loss is {loss:.3f} nats; PyTorch says {by_pytorch:.3f}", torch.isclose(loss, by_pytorch)
)

# %% [markdown]
# How large is that? The **perplexity** is $e^{\text{loss}}$: the number of equally likely words among which guessing
# would be equally hard.

# %%
five = torch.zeros(5)  # (V,): five equal logits
uncertain = F.cross_entropy(five, torch.tensor(0))
print(f"the made-up logits: perplexity {loss.exp():.2f}")
print(f"five equal logits: loss ln 5 = {uncertain:.2f}, perplexity {uncertain.exp():.2f}")

# %% [markdown]
# Is 0.424 nats a low loss for *boy*? The grammar knows. Here are the pattern of the story's first sentence and the list
# for the slot `kind`, if the hero is a *he*:
#
# ```text
# "{hero} was a {size} {kind}"
# kind.he = "5 boy, bear, fox, prince, hedgehog, puppy, frog, dragon, badger, gnome, rooster, cub, colt, ram, pirate"
# ```
#
# The word at place $r$ of a list has the weight $1/(r + 10)$, so earlier words are a little likelier. A number before a
# word multiplies its weight: that of *boy* is five times as large. The probability of a word is its weight divided by
# the sum of all weights. `next_words` returns these probabilities for any beginning of a story, and `judge` returns
# $-\ln p$ of each token of a whole one.

# %%
weights = [5 / 11] + [1 / (r + 10) for r in range(2, 16)]  # boy, bear, fox, …, pirate
by_hand = weights[0] / sum(weights)
possible = bundled_grammar().next_words(["tom", "was", "a", "small"])  # {word: probability}
judged = bundled_grammar().judge(STORY)
claim(
    f"boy: {by_hand:.4f} by hand, {possible['boy']:.4f} by `next_words`, one of {len(possible)} "
    f"words; −ln of it is {-np.log(by_hand):.2f} nats, and `judge` says {judged.nats[4]:.2f}",
    np.allclose([possible["boy"], np.exp(-judged.nats[4])], by_hand),
)

# %% [markdown]
# The made-up logits did better on this word, because they bet on it. In other stories they would lose: *fox*, for
# example, is not on their list at all. On average over many stories, no other probabilities $q$ cost less than the true
# ones, $p$. (Because $\ln x \le x - 1$, the mean of $\ln q - \ln p$ is
# $\sum p \ln (q/p) \le \sum p \, (q/p - 1) = 0$.)
#
# What does the rest of our story cost? (`<eos>` marks its end.)
#
# **Predict.** Which of these costs the grammar most, and which costs nothing: the first *Tom*, *hungry*, *apple*?

# %% tags=["hide-output"]
pieces = [*re.findall(r"\w+|[^\w\s]", STORY.lower()), "<eos>"]  # words and marks
priced = zip(pieces, judged.nats.tolist(), strict=True)
print(textwrap.fill(" ".join(f"{w} [{nats:.2f}]" if nats else w for w, nats in priced), 88))
total, mean = judged.nats.sum(), judged.nats.mean()
print(
    f"{len(pieces)} tokens: {total:.1f} nats, on average {mean:.2f}: perplexity {np.exp(mean):.2f}"
)
print(f"{len(bundled_grammar().next_words([]))} words can begin a story")

# %% [markdown]
# <details><summary>What happened</summary>
#
# The first *Tom* costs most, because so many words can begin a story. *Apple* costs nothing: after *an*, no other word
# is possible here, so the choice was paid for one word earlier. A word without a number had no alternative.
#
# </details>
#
# Each number in brackets is the loss, or *cost*, of the word on its left for a reader who knows the grammar by heart.
# The mean cost over many stories is the **floor** of the grammar: on stories that it has not seen, no model that reads
# from left to right can have a lower loss on average. We measure every model against it. (A model that knows a few
# stories by heart is another matter. Notebook 03 computes how low its loss on those few can get.)
#
# A story is cut to 64 tokens, the first of which is `<sos>`, the mark of the start. So at most 63 tokens of each story
# are predicted, and counted here. Later notebooks call `entropy_floor`, which does the same.

# %%
told = load_stories("bundled")  # with the −ln p of each token
floor = np.concatenate([nats[:63] for nats in told.validation_nats]).mean()
claim(
    f"the floor of {len(told.validation):,} stories is {floor:.3f} nats per token, a perplexity of "
    f"{np.exp(floor):.2f}",
    floor == entropy_floor(told, length=64),
)

# %% [markdown]
# **One story is many exercises.** Put `<sos>` before a story and `<eos>` after it. The input is all of this but the
# last token, and the target is all but the first: the same story *shifted by one*:

# %%
shift = zip(["<sos>", *pieces[:-1]], pieces, strict=True)
table(
    list(shift)[:8],
    ["the model reads …", "… and must predict"],
    caption=(
        "The shift by one: each token is read at its own place, and is the target at the place "
        "before it."
    ),
)

# %% [markdown]
# At each place the model may use everything that it has read so far. It also reads `<sos>`, so that the first word can
# be predicted too.
#
# ## Letters for sizes
#
# The letters in the comments that give shapes are the same throughout the course; some belong to parts that come later:

# %%
config = ModelConfig()

# %% cellView="form" tags=["hide-input"]
table(
    [
        ["B", "stories in a batch", ""],
        ["T", "tokens in a story, at most", config.context_length],
        ["S", "tokens that attention may read; equal to T until notebook 05", ""],
        ["V", "tokens in the vocabulary, at most", config.vocab_size],
        ["E", "numbers in a word vector", config.embedding_dim],
        ["D", "the width of the model: numbers for each token inside it", config.d_model],
        ["H, d", "attention heads (notebook 02), and the numbers in each: H · d = D", "8, 37"],
        ["F", "width of a feed-forward layer (notebook 03)", config.d_ff],
        ["L", "blocks, one after another (notebook 03)", config.num_layers],
        ["N", "anything else that is counted: words, samples, stories", ""],
    ],
    ["letter", "what it counts", "in our model"],
    caption="The letters for sizes in all notebooks of the course.",
)

# %% [markdown]
# ## A story becomes words
#
# Most of today's models cut words into fragments. We keep them whole, so that whatever we look at can be labelled with
# a word. The text is put in lower case, so that *One* and *one* share an id. Then one regular expression finds the
# tokens. It has three alternatives:

# %%
token = re.compile(
    r"""'s\b                         # a possessive 's
    | \w+ (?: ['-] (?!s\b) \w+ )*  # a word; hyphens and apostrophes inside belong to it
    | [^\w\s]                      # a single mark""",
    re.VERBOSE,
)


def split(text):
    return token.findall(text.lower())


print(split(STORY)[:17])

# %% [markdown]
# ## Words become ids
#
# The **vocabulary** is the list of the words that the model knows: the most frequent words of the training stories. Ids
# 0 to 3 are special tokens: `<pad>` pads short stories, `<sos>` and `<eos>` mark the start and the end, and `<unk>`
# stands for any word that is not in the list. The words follow, the most frequent first. The number of a token is its
# **id**.

# %%
stories = load_stories(CORPUS)
counts = Counter(word for text in stories.train for word in split(text))
most_frequent = sorted(counts, key=lambda word: (-counts[word], word))[: config.vocab_size - 4]
id_of = {w: i for i, w in enumerate(["<pad>", "<sos>", "<eos>", "<unk>", *most_frequent])}
print([id_of.get(word, id_of["<unk>"]) for word in split(STORY)[:17]])

# %% [markdown]
# The course's `WordTokenizer` does the same:

# %%
tokenizer = WordTokenizer.train(stories.train, vocab_size=config.vocab_size)
same = sum(tokenizer.word(i) == word for word, i in id_of.items())
print(f"{same:,} of our {len(id_of):,} tokens have the same id in `WordTokenizer`")
claim(
    f"our story has the same {len(pieces) - 1} ids",
    [id_of.get(word, 3) for word in split(STORY)] == tokenizer.encode(STORY),
)

# %% [markdown]
# So from here on $V$ is the number of tokens in use. The model reads a story as `encode_story` prepares it:

# %%
show_source(WordTokenizer.encode_story)

# %%
ids = tokenizer.encode_story("Tom met a zyzzyva.", length=10)
table(
    [[place, token_id, tokenizer.word(token_id)] for place, token_id in enumerate(ids)],
    ["position", "id", "token"],
    caption=(
        "A short text as the model receives it, padded to ten ids. From 4 on, a small id means a "
        "frequent word."
    ),
)

# %% [markdown]
# *Zyzzyva* (a beetle) occurs in no story, so the model reads `<unk>`. `decode` goes the other way. It restores spaces,
# quotation marks and capitals. Capitals go at the start of sentences, in *I*, and in names, which it learned from the
# training stories.

# %%
back = tokenizer.decode(tokenizer.encode(STORY))
claim("the ids of our story decode to the story itself", back == STORY)
print(tokenizer.decode(tokenizer.encode("Tom  saw a ZYZZYVA - and a Ball in the Tree!")))

# %% [markdown]
# The last line shows what is lost: unknown words, capitals in mid-sentence, double spaces and rare marks.
#
# The **context** is the largest number of tokens that the model can read. **A longer story is cut**, and then has no
# `<eos>`, because it did not end there. How much do we lose at our context of 64?

# %%
CONTEXT = config.context_length
tokens = [len(tokenizer.encode(text)) + 2 for text in stories.train]  # with <sos> and <eos>
cut = np.mean([n > CONTEXT for n in tokens])
lost = 1 - sum(min(n, CONTEXT) for n in tokens) / sum(tokens)
print(f"cut: {cut:.2%} of {len(tokens):,} training stories; {lost:.1%} of all tokens are lost")

# %% [markdown]
# Few tokens are lost, but they are all endings, so the model never sees how these stories end.
#
# **How many words are enough?** The first $n$ words of the vocabulary cover a share of the validation stories (which
# are never trained on). The figure shows this share against $n$.

# %%
counts = Counter(i for text in stories.validation for i in tokenizer.encode(text))
frequency = np.array([counts[i] for i in range(4, len(tokenizer))])  # (V - 4,)
coverage = frequency.cumsum() / counts.total()  # (V - 4,)
unknown_rate = counts[tokenizer.unk_id] / counts.total()
half = int(np.searchsorted(coverage, 0.5)) + 1
print(f"{len(tokenizer):,} tokens; unknown: {unknown_rate:.2%} of the validation words")
for words_kept in (half, 100, 500, 1000):
    print(f"the first {words_kept:5,} words cover {coverage[words_kept - 1]:.1%}")

# %% cellView="form" tags=["hide-input"]
figure = plots.compare_curves(
    {"validation words covered": (np.arange(1, len(coverage) + 1), 100 * coverage)},
    landmarks={"half of the text (%)": 50},
    x_label="words and marks in the vocabulary, most frequent first (logarithmic)",
    y_label="covered (% of the validation text)",
    title=f"{half} words and marks make up half of the text",
)
figure.axes[0].set_xscale("log")
figure.axes[0].set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
figures.save_figure(
    figure,
    "01_coverage",
    alt="Share of the validation words covered by the n most frequent words, against n.",
    caption=(
        "Look where the curve crosses the dotted line. The horizontal axis is logarithmic: each "
        "tenfold growth of the vocabulary covers about the same share more. The curve counts "
        "words; it does not show how much a rare word matters to its story."
    ),
)

# %% [markdown]
# A few dozen words, such as the full stop, *a* and *the*, make up half of the text. But a story may be about a rare
# word. So we keep all words, which we can because these stories have fewer than 10,000 different ones.
# (Real stories have more.)
#
# ## Ids become vectors
#
# An id says nothing about a word except how frequent it is: word 17 need not resemble word 18. So each id gets a vector
# of 300 numbers, its **embedding**. The embeddings are the rows of a table, and the model computes with these rows.
# Looking up row 17 gives the same as multiplying the table by a **one-hot** vector, which is 1 at place 17 and 0
# elsewhere. A product can be differentiated, so the table can be trained like any other weight matrix.

# %%
embedding = nn.Embedding(len(tokenizer), 300)  # (V, E)
batch = torch.tensor([tokenizer.encode(STORY)])  # (B, T), B = 1
one_hot = F.one_hot(batch, len(tokenizer)).float()  # (B, T, V)
product = one_hot @ embedding.weight  # (B, T, E)

# %% cellView="form" tags=["hide-input"]
claim(
    f"looking up {batch.shape[1]} rows = one-hot {tuple(one_hot.shape)} @ table "
    f"{tuple(embedding.weight.shape)}, bit for bit",
    torch.equal(embedding(batch), product),
)

# %%
embedding(batch).square().sum().backward()  # any loss will do
trained = embedding.weight.grad.any(dim=1)  # (V,)
claim(
    f"{trained.sum()} of {len(trained):,} rows get a gradient: those of the story's words",
    torch.equal(trained.nonzero().flatten(), batch.unique()),
)

# %% [markdown]
# For each token, the lookup copies 300 numbers; the product needs $300 \cdot V$ multiplications for the same result. On
# their own, one-hot vectors would describe words poorly: any two of them are equally far apart ($\sqrt{2}$), so what a
# model learns about one word would not carry over to a similar one.
#
# ## Vectors that know something before training
#
# A new table is random. Word vectors that were trained on text know more from the start: words used in similar places
# have similar vectors. **Skip-gram** ([Mikolov et al. 2013](https://arxiv.org/abs/1310.4546), section 2.2) learns them
# by playing a game: given a word and a second one, say whether the second stood near the first in the text or was drawn
# at random. Each word has two vectors, one for its role as the first word and one for its role as the second. The score
# of a pair is the dot product of the two vectors: the higher it is, the likelier the answer *near*. The **logistic
# sigmoid** turns a score $s$ into a probability, $\sigma(s) = 1 / (1 + e^{-s})$. The loss is $-\ln p$ of the right
# answer, as before: $-\ln \sigma(s)$ for a near word, and $-\ln (1 - \sigma(s)) = -\ln \sigma(-s)$ for a drawn one.
# Here is the game in its simplest form, with 50 numbers per word and all stories joined to one text. (The original
# draws several words for each near one, rare words somewhat more often than in the text, and skips many of the very
# frequent words.)

# %%
rows = [tokenizer.encode_story(text, CONTEXT) for text in stories.train]
text = torch.tensor([i for row in rows for i in row if i != tokenizer.pad_id])  # (N,)
torch.manual_seed(0)
given, other = (nn.Parameter(0.1 * torch.randn(len(tokenizer), 50)) for _ in range(2))  # (V, 50)
optimizer = torch.optim.Adam([given, other], lr=0.01)
for _ in range(300):
    place = torch.randint(5, len(text) - 5, (4096,))  # (4096,)
    away = torch.randint(1, 6, (4096,)) * (2 * torch.randint(2, (4096,)) - 1)  # 1 to 5 words
    word, near = text[place], text[place + away]  # (4096,) each
    drawn = text[torch.randint(len(text), (4096,))]  # (4096,)
    score_near = (given[word] * other[near]).sum(-1)  # (4096,)
    score_drawn = (given[word] * other[drawn]).sum(-1)  # (4096,)
    loss = -(F.logsigmoid(score_near) + F.logsigmoid(-score_drawn)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# (`optimizer.step()` changes each number a little so that the loss falls; notebook 04 takes it apart.) Has it learned
# anything? Ask for nearest neighbours: the words whose vectors point in the most similar direction. The measure is the
# **cosine** of the angle between two vectors: their dot product, divided by both lengths. (The **length** of a vector
# is the root of the sum of its squares.)

# %%
known = tokenizer.words  # without the special tokens
queries = ["mia", "tuesday", "mother", "sunny", "she", "said"]


def nearest(vector, table_of_words, k):
    lengths = np.linalg.norm(table_of_words, axis=1) * np.linalg.norm(vector)  # (V - 4,)
    cosines = table_of_words @ vector / lengths  # (V - 4,)
    return [known[i] for i in np.argsort(-cosines, kind="stable")[:k]]


by_game = given.detach().numpy()[4:]  # (V - 4, 50)
found = {w: nearest(by_game[known.index(w)], by_game, 6)[1:] for w in queries if w in known}

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [[word, ", ".join(near)] for word, near in found.items()],
    ["word", "nearest words"],
    caption="Nearest neighbours by cosine similarity, using the vectors from this short game.",
)

# %% [markdown]
# Names lie near names, and days near days. The game does not ask for this: words that occur in the same places end up
# with vectors in similar directions. But being used alike is not the same as meaning the same: *she* lies close to
# *he*. Some neighbours make no sense.
#
# This game gives no vector to a word that it has not seen. **fastText** ([Bojanowski et al.
# 2017](https://arxiv.org/abs/1607.04606), section 3.2) does, because it also looks inside the word. It marks the ends
# of a word with `<` and `>`, and lists its **n-grams**: all runs of 3 to 6 characters, `<` and `>` included. It plays
# the same game, but the vector of the *first* word is the mean of its own row and the rows of its n-grams, so words
# that have parts in common learn together. (The paper adds the rows up; the fastText program, which we use, takes their
# mean.) A large text has far too many n-grams to give each one its own row. So a hash function assigns every n-gram to
# one of 20,000 rows, called **buckets**, and several n-grams may share one.


# %%
def ngrams_of(word):
    marked = f"<{word}>"
    return {marked[i : i + n] for n in range(3, 7) for i in range(len(marked) - n + 1)}


# %%
vectors = train_vectors(stories.train, tokenizer)  # with the fastText program
program = fasttext.load_model(str(vectors.path))
names, rows_of_dog = program.get_subwords("dog")
by_hand = program.get_input_matrix()[rows_of_dog].mean(axis=0)  # (E,)

# %% cellView="form" tags=["hide-input"]
own = program.get_word_id("dog")
in_dictionary, _, _ = vectors.coverage(tokenizer)
table(
    [
        ["the word itself" if row == own else name, row]
        for name, row in zip(names, rows_of_dog.tolist(), strict=True)
    ],
    ["part of dog", "row"],
    caption=(
        "The rows whose mean is the vector of dog. The hash function scatters the n-grams. "
        f"{in_dictionary:,} of {len(known):,} words have a row of their own."
    ),
)

# %%
error = np.abs(by_hand - vectors["dog"]).max()
claim(
    f"our n-grams are those of fastText, and the mean of the rows is `vectors['dog']`, within "
    f"≈{error:.0e}",
    ngrams_of("dog") == {*names} and error < 1e-6,
)

# %%
matrix = vectors.matrix(tokenizer)  # (V, E)
answers = {w: nearest(vectors[w], matrix[4:], 6)[1:] for w in queries if w in known}

# %% cellView="form" tags=["hide-input"]
table(
    [[word, ", ".join(near)] for word, near in answers.items()],
    ["word", "nearest words"],
    caption="The same question, put to the vectors that fastText trained.",
)

# %% [markdown]
# The neighbours of *she* and *tuesday* are cleaner, those of *said* are not. (The two trainings also differ in width
# and length, so the tables do not show what the n-grams contribute.) What we gain for certain is vectors for unseen
# words.
#
# **Predict.** *Grandmothers* and *zyzzyva* are not in the vocabulary. Do both, one or neither of them get neighbours
# that make sense?

# %%
unseen = ["grandmothers", "zyzzyva"]
seen_grams = {gram for word in known for gram in ngrams_of(word)}
trained_rows = {row for word in known for row in program.get_subwords(word)[1].tolist()}


# %% cellView="form" tags=["hide-input", "hide-output"]
def inside(word):
    grams, rows_of_word = ngrams_of(word), program.get_subwords(word)[1].tolist()
    found = neighbours(matrix[4:], known, vectors[word], 4)  # `nearest`, with the cosines
    near = ", ".join(f"{other} ({cosine:.2f})" for other, cosine in found)
    return [word, near, len(grams), len(grams & seen_grams), len(trained_rows & {*rows_of_word})]


table(
    [inside(word) for word in unseen],
    [
        "word",
        "nearest words (cosine)",
        "its n-grams",
        "of these in known words",
        "its trained rows",
    ],
    caption=(
        "Two words that did not occur in training. A row is trained if an n-gram of a known word "
        "falls into it."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Both have a vector. *Grandmothers* consists of known n-grams and lies near its relatives. *Zyzzyva* has a single known
# n-gram. Its other trained rows belong to n-grams of other words, which happen to share the bucket; the rest
# were never trained. So its neighbours are there by chance.
#
# </details>
#
# The vector of an unseen word is only a guess from its spelling, and a high cosine does not mean that the guess is
# good.
#
# A map of a few words shows some groups at a glance. It projects three hundred dimensions onto the two in which these
# words differ most (their principal components).

# %% cellView="form" tags=["hide-input"]
groups = {
    "name": "mia tom ben lucy anna",
    "colour": "red green pink blue",
    "family": "mother uncle aunt grandfather",
    "day": "monday tuesday friday sunday",
    "animal": "snail turtle penguin hamster",
    "thing": "ball drum kite doll",
}
chosen = [(w, group) for group, members in groups.items() for w in members.split() if w in known]
points = np.stack([vectors[word] / np.linalg.norm(vectors[word]) for word, _ in chosen])  # (N, E)
points = (points - points.mean(axis=0)).astype(np.float64)  # (N, E)
_, spread, directions = np.linalg.svd(points, full_matrices=False)
share = (spread[:2] ** 2).sum() / (spread**2).sum()  # of the variance
directions *= np.sign(directions[:, [0]])  # a direction and its opposite are equally good

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.scatter_words(
        points @ directions[:2].T,
        *zip(*chosen, strict=True),
        title="Some of the groups that we chose by hand lie together",
    ),
    "01_words",
    alt="A map of 25 words: names, family, days and animals form groups; things lie near colours.",
    caption=(
        "Look for groups of one colour and shape: names and family lie apart from the rest, days "
        f"and animals touch, and the colour words are spread out. The two directions hold "
        f"≈{100 * share:.0f} % of the variance of these words, so the map does not show all "
        "distances: groups that touch here may be far apart in another direction."
    ),
)

# %% [markdown]
# The groups are ours; the vectors were trained without them.
#
# ## Where is the order?
#
# Take two sentences with the same words: *The dog looked for the cat* and *The cat looked for the dog*.
#
# **Predict.** Average the word vectors of each sentence. How far apart are the two averages: about as far as *dog* from
# *cat*, less far, or not at all?

# %% cellView="form" tags=["hide-input"]
SENTENCES = ["The dog looked for the cat.", "The cat looked for the dog."]
first, second = (
    torch.from_numpy(matrix[tokenizer.encode(text)]).double() for text in SENTENCES
)  # (T, E) each
apart = (first.mean(0) - second.mean(0)).norm()

# %% cellView="form" tags=["hide-input", "hide-output"]
dog, cat = vectors["dog"], vectors["cat"]
print(f"'dog' and 'cat' are ≈{np.linalg.norm(dog - cat):.2f} apart")
claim(f"the two averages are the same: {apart:.6f} apart", apart < 1e-9)

# %% [markdown]
# <details><summary>What happened</summary>
#
# The two averages are equal: a mean is the same in any order.
#
# </details>
#
# Attention, which the next notebook builds, is a weighted mean. If its weights depend only on the words, it cannot tell
# in which order the earlier words came. So the position is written *into* the vectors.
#
# The idea of [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), section 3.5, is to give each position a vector of
# its own, made of waves of different lengths, like the hands of many clocks. Fast hands tell neighbours apart; slower
# hands tell the start of a story from its end. At position $t$, the $i$-th pair of numbers is
#
# $$p_{t,2i} = \sin\left(\frac{t}{10000^{2i/D}}\right) \qquad p_{t,2i+1} = \cos\left(\frac{t}{10000^{2i/D}}\right)$$

# %%
show_source(sinusoidal_positions)

# %%
positions = sinusoidal_positions(CONTEXT, config.d_model)  # (T, D)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.position_heatmap(positions, title="Every position has a pattern of its own"),
    "01_positions",
    alt=(
        "Two heat-maps of 64 positions by 148 waves, sines and cosines: fast waves at the top, "
        "ever slower ones towards the bottom."
    ),
    caption=(
        "Read one column from top to bottom, in both pictures: together they are the vector of one "
        "position. The fast waves at the top change with every word. The slow waves at the bottom "
        "hardly change within 64 words; they would over tens of thousands."
    ),
)

# %% [markdown]
# What are the waves good for? Compare positions by their dot product.

# %%
similarity = positions @ positions.T  # (T, T)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        {"position 32 with …": (range(CONTEXT), similarity[32].tolist())},
        x_label="position in the text",
        y_label="dot product (no unit)",
        title="Nearby positions are more alike than distant ones",
        from_zero=True,
    ),
    "01_similarity",
    alt="Dot product of position 32 with every position: a peak at 32, falling off on both sides.",
    caption=(
        "Follow the curve from its peak, position 32 compared with itself, to both sides: it falls "
        "nearly everywhere, in steps. The curve follows from the formula. It does not show how "
        "attention uses positions, which is learned."
    ),
)

# %%
moved = (similarity[1:, 1:] - similarity[:-1, :-1]).abs().max()
claim(f"p(s + 1) · p(t + 1) = p(s) · p(t) for all 63 × 63 pairs, within ≈{moved:.0e}", moved < 1e-4)

# %% [markdown]
# The dot product depends only on the *distance* between two positions, because each pair of numbers adds
# $\cos a \cos b + \sin a \sin b = \cos(a - b)$. That alone does not let a model look for "the
# word before": the peak lies on the word itself. Notebook 02 shows the missing step, one rotation that turns every
# position into the one before it.
#
# ## How long is a word vector, and how long is a position vector?
#
# Words and positions are *added*. If one were a hundred times longer than the other, the sum would hardly show the
# shorter one. So we compare lengths before training: that of a position, that of a random word vector, and that of a
# fastText vector. The numbers of a random word vector start with a standard deviation of 0.02, as in
# GPT-2. We scale the fastText vectors to the same. Then a linear layer takes
# each word vector from $E = 300$ to $D = 296$ numbers, because the model will split them into eight equal parts of 37.
# (`xavier_uniform_` gives this layer random weights that change the length of a vector little; see notebook 03.)

# %%
torch.manual_seed(0)
fresh = 0.02 * torch.randn(1000, config.embedding_dim)  # (V, E)
projection = nn.Linear(config.embedding_dim, config.d_model)  # E → D
nn.init.xavier_uniform_(projection.weight)
nn.init.zeros_(projection.bias)
learned = torch.from_numpy(matrix[4:] * (0.02 / matrix[4:].std()))  # (V - 4, E)
with torch.no_grad():
    word, known_word = (projection(x).norm(dim=1).mean().item() for x in (fresh, learned))
position = positions.norm(dim=1).mean().item()
lengths = {"position": position, "word": word, "word × √D": word * config.d_model**0.5}

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.bars(
        {
            "position": position,
            "random word": word,
            "random word × √D": word * config.d_model**0.5,
            "fastText word": known_word,
            "fastText word × √D": known_word * config.d_model**0.5,
        },
        x_label="length of the vector (no unit)",
        title=f"Before √D, a position is {position / word:.0f} times as long as a random word",
    ),
    "01_lengths",
    alt=(
        "Bars: a position has length 12, a random word vector 0.35, and 5.9 after scaling by √D; "
        "the vectors of fastText are about as long as the random ones."
    ),
    caption=(
        "Compare each bar with the first one. These are mean lengths at the start of training; "
        "the figure does not show what the model makes of them later."
    ),
)

# %% [markdown]
# Every position has the length $\sqrt{D/2} \approx 12.2$, because $\sin^2 + \cos^2 = 1$ in each of the $D/2$ pairs.
# Beside it, word vectors whose numbers have a standard deviation of 0.02 are very short. Multiplying the words by
# $\sqrt{D}$, as in Vaswani et al. 2017, section 3.4, makes the two comparable.
#
# ## The two sentences again
#
# Now add positions to the words of the same two sentences, and square each number before you average. (Squaring is the
# simplest step that is not linear. The words are fastText's vectors as they were trained.)
#
# **Predict.** Are the two averages still equal, or does the order show?

# %% cellView="form" tags=["hide-input"]
p = sinusoidal_positions(len(first), vectors.dim).double()  # (T, E)


def mean_square(words, position):
    return (words + position).square().mean(0)  # (E,)


without = (mean_square(first, 0) - mean_square(second, 0)).norm()
with_positions = (mean_square(first, p) - mean_square(second, p)).norm()

# %% cellView="form" tags=["hide-input", "hide-output"]
claim(
    f"without positions: {without:.6f} apart; with positions: ≈{with_positions:.2f} apart, "
    f"beside a length of ≈{mean_square(first, p).norm():.1f}, of which the squared positions alone "
    f"make ≈{mean_square(0, p).norm():.1f}",
    without < 1e-9 and with_positions > 0.01,
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# With positions the averages differ. The difference is about 1 % of their length, because most of the length is that of
# the squared positions, which both sentences share.
#
# </details>
#
# Where does the difference come from? In $(w + p)^2 = w^2 + 2wp + p^2$, the averages of $w^2$ and of $p^2$ are the same
# for both sentences. Only the product $2wp$ depends on *which* word stands at *which* position: *dog at position 1* is
# not *dog at position 5*. The plain mean of $w + p$ has no such product, so it would not help. Attention has one.
#
# **In an average, only positions tell the two sentences apart,** and only after a step in which word and position
# interact.

# %% cellView="form" tags=["numbers"]
# @title The numbers that notebook 07 reports
figures.save_numbers(
    "01",
    {
        "train_stories": len(stories.train),
        "validation_stories": len(stories.validation),
        "vocabulary": len(tokenizer),
        "unknown_rate": unknown_rate,
        "cut_stories": cut,
        "words_for_half_of_the_text": half,
        "words_with_a_vector_of_their_own": in_dictionary,
        "neighbours": answers,
        "lengths": lengths,
    },
)

# %% [markdown]
# ## Recap
#
# - A language model turns the beginning of a text into logits, the softmax turns them into probabilities, and $-\ln p$
#   of the word that follows is the loss, in nats. $e^{\text{loss}}$ is the perplexity. A story of $T$ tokens, including
#   `<sos>` and `<eos>`, gives $T - 1$ exercises.
# - A grammar generated our stories, so the lowest possible mean loss, the floor, is known.
# - A word has an id, the id selects a row of a table, and this selection equals a product with a one-hot vector.
# - fastText gives words that are used alike similar vectors, and guesses the vectors of unseen words from n-grams.
# - A mean of vectors does not depend on their order. Sinusoidal positions, added to the words, bring the order back as
#   soon as a step mixes word and position non-linearly. $\sqrt{D}$ makes words and positions comparable in length.
#
# ## What GPT and Llama do differently
#
# GPT (from OpenAI) and Llama (from Meta) are language models built like ours, but larger. Each notebook
# ends with what they do differently, and why.
#
# - **Tokens.** They cut words into frequent fragments (byte-pair encoding, [Sennrich et al.
#   2016](https://arxiv.org/abs/1508.07909)). GPT-2 and later models cut down to single bytes if necessary (byte-level
#   BPE), so no text is ever unknown. Some 30,000 to 200,000 tokens serve many languages, whereas we need a row for
#   every word.
# - **Word vectors** start at random and are learned along with everything else: these models read enough text to need
#   no head start.
# - **Positions.** GPT-2 learns a vector for each position, which is possible because its context has a fixed length. It
#   needs no $\sqrt{D}$: its positions start as small random numbers, like its words. Llama adds no positions at all.
#   Inside attention, it rotates the two vectors that are compared by an angle that grows with the position (rotary
#   embeddings, RoPE, [Su et al. 2021](https://arxiv.org/abs/2104.09864)), so that scores depend on the distance.
#   Notebook 02 makes one fixed rotation of this kind. (Without any positions, a stack of several layers in which words
#   read only backwards can still learn something about order: [Haviv et al. 2022](https://arxiv.org/abs/2203.16634).)
#
# Next: [02 · Attention](02_attention.ipynb) lets the words read each other.
#
# ## Can you?
#
# 1. Two words can follow. A model gives them the logits ln 3 and 0. What are their probabilities? The second one comes:
#    what are the loss and the perplexity?
#    <details><summary>Answer:</summary> 3/4 and 1/4, because exponentiating gives 3 and 1. The loss is ln 4 ≈ 1.39 nats,
#    and the perplexity is 4.</details>
# 2. *The Mayor's dog* goes through the tokenizer and back. What may be lost?
#    <details><summary>Answer:</summary> The capital of <em>Mayor</em>, unless it is known as a name; and any word that
#    is not in the vocabulary, which comes back as an unknown one.</details>
# 3. Why is looking up a row the same as a matrix product, and why does that matter?
#    <details><summary>Answer:</summary> A one-hot vector times the table picks out one row. A product has a gradient, so
#    the table can be trained; only the rows that were looked up get one.</details>
# 4. What does a word vector know before the model is trained, and what does it not know?
#    <details><summary>Answer:</summary> Which words are used in the same places. Not what they mean: <em>she</em> lies
#    next to <em>he</em>.</details>
# 5. Why does a model need positions, and what do sinusoidal positions add?
#    <details><summary>Answer:</summary> If its weights depend only on the words, a weighted mean of word
#    vectors is the same in any order. Sinusoidal positions
#    give each place a vector of its own, and the dot product of two of them depends only on their distance.</details>
#
# ## Exercises
#
# There are five tasks, with solutions and with checks that name your mistake: the loss by hand, even if a logit is
# 1,000; the loss of a story; sinusoidal positions; the words that a vocabulary of 500 misses; and an experiment on how
# many words are enough. They take about an hour: [exercises for 01](exercises/01_embeddings.ipynb).
#
# ## References
#
# - [Bojanowski et al. 2017](https://arxiv.org/abs/1607.04606), *Enriching Word Vectors with Subword Information*
# - [Haviv et al. 2022](https://arxiv.org/abs/2203.16634), *Transformer Language Models without Positional Encodings
#   Still Learn Positional Information*
# - [Mikolov et al. 2013](https://arxiv.org/abs/1310.4546), *Distributed Representations of Words and Phrases and their
#   Compositionality*, section 2.2
# - [Sennrich et al. 2016](https://arxiv.org/abs/1508.07909), *Neural Machine Translation of Rare Words with Subword
#   Units*
# - [Su et al. 2021](https://arxiv.org/abs/2104.09864), *RoFormer: Enhanced Transformer with Rotary Position Embedding*
# - [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), *Attention Is All You Need*
