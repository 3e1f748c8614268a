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
# from text to numbers: words, ids, vectors, positions. At the end you will see that word vectors alone cannot tell *the
# dog looked for the cat* from *the cat looked for the dog*, and you will know what can.
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
# **Running time.** About one minute on two cores, most of it for training word vectors; a few seconds once they are cached.

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
import textwrap
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from helpers import plots
from helpers.grammar import bundled_grammar
from helpers.model import ModelConfig, sinusoidal_positions
from helpers.notebook import FigureFolder, claim, show_source, table
from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer
from helpers.vectors import neighbours, train_vectors

figures = FigureFolder(CORPUS)

# %% [markdown]
# ## The task: say what comes next
#
# A **language model** reads the beginning of a text and predicts its next piece. Our pieces are words. Here is the story that
# this notebook follows:

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
# probability of every next word. So we can always say how well any model could possibly do.
#
# Suppose a model has read *Tom was a small*. It gives every word that it knows a score, called a **logit**. A logit can
# be any real number; the higher it is, the likelier the word. Probabilities must be positive and sum to 1. The
# **softmax** turns the scores into probabilities: exponentiate each one, then divide by the sum,
# $p_w = e^{z_w} / \sum_v e^{z_v}$. Here are made-up logits $z$ for five words:

# %%
words = ["boy", "girl", "bear", "tom", "the"]
logits = torch.tensor([3.0, 2.0, 1.0, -1.0, -2.0])  # (V,), made up
probabilities = logits.exp() / logits.exp().sum()  # (V,), the softmax

# %% cellView="form" tags=["hide-input"]
table(
    zip(words, logits.tolist(), probabilities.tolist(), strict=True),
    ["next word", "logit", "probability"],
    caption="Five words that could come next, with the logits that we made up for them.",
)

# %% [markdown]
# The next word of the story is *boy*. How good was the prediction? The **loss**, called *cross-entropy*, is $-\ln p$ of
# that word: 0 if the model was certain of it, large if the word came as a surprise. Its unit is the **nat** (from
# *natural* logarithm; with $\log_2$ it would be the bit). A loss of 1 nat means that the model gave the word a
# probability of $1/e$, a little more than a third.
#
# (`claim` prints its sentence with a ✓ if its condition holds, and stops the notebook if not. Numbers after ≈ may differ from
# machine to machine.)

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
# The grammar is the perfect model of its stories. `judge` asks it for $-\ln p$ of every word of our story. (`<eos>`
# marks the end of the story.)
#
# **Predict.** Which words of the story cost the grammar nothing?

# %%
judged = bundled_grammar().judge(STORY)
pieces = [*WordTokenizer([]).split(STORY), "<eos>"]
priced = zip(pieces, judged.nats.tolist(), strict=True)
print(textwrap.fill(" ".join(f"{w} [{nats:.2f}]" if nats else w for w, nats in priced), 88))


# %%
mean = judged.nats.mean()
claim(
    f"{len(pieces)} words and marks cost {judged.nats.sum():.1f} nats, {mean:.2f} on average: a "
    f"perplexity of {np.exp(mean):.2f}",
    judged.complete,
)

# %% [markdown]
# Each number in brackets is the loss, or *cost*, of the word on its left for a reader who knows the grammar by heart.
# Words without a number cost nothing, because the sentence leaves no choice. Names, days and other choices have a cost.
# (*Apple* costs nothing here, because *an* has already given it away: the cost of the choice was paid there.) The
# second *Tom* costs $\ln 2 \approx 0.69$ nats: it could equally well have been *he*. Nobody who reads from left
# to right can do better than this on average. We call the mean over many stories the **floor**, and measure every model against it.
#
# **One story is many exercises.** The input is the story without its last piece; the target is the same story *shifted
# by one*:

# %%
shift = zip(["<sos>", *pieces[:-1]], pieces, strict=True)
table(
    list(shift)[:8],
    ["the model reads …", "… and must predict"],
    caption=(
        "The shift by one: each word or mark is read at its own place, and is the target at the "
        "place before it."
    ),
)

# %% [markdown]
# At each place the model may use everything that it has read so far. `<sos>` marks the start, so that the first word
# can be predicted too.
#
# ## Letters for sizes
#
# A comment on the line that makes a tensor gives its shape. The letters are the same throughout the course; some belong
# to parts that come later:

# %%
config = ModelConfig()

# %% cellView="form" tags=["hide-input"]
table(
    [
        ["B", "stories in a batch", ""],
        ["T", "tokens in a story, at most; a token is a word or a mark", config.context_length],
        ["S", "tokens that attention may read; equal to T until notebook 05", ""],
        ["V", "words in the vocabulary, at most", config.vocab_size],
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
# a word. The tokenizer
# splits at spaces, makes each punctuation mark between words a token of its own, and writes everything in lower case, so that *One* and
# *one* share a vector.

# %%
stories = load_stories(CORPUS)
tokenizer = WordTokenizer.train(stories.train, vocab_size=10_000)
print(tokenizer.split(STORY)[:17])

# %% [markdown]
# ## Words become ids
#
# The **vocabulary** lists the most frequent words of the training stories. A word's place in that list is its **id**. The
# first four ids are special tokens: `<pad>` fills short stories up, `<sos>` and `<eos>` mark the start and the end, and `<unk>`
# stands for any word that is not in the list.

# %%
show_source(WordTokenizer.encode_story)

# %%
ids = tokenizer.encode_story("Tom met a zyzzyva.", length=10)
table(
    [[place, token_id, tokenizer.word(token_id)] for place, token_id in enumerate(ids)],
    ["position", "id", "token"],
    caption=(
        "One story as the model receives it. Ids are ordered by frequency: a common word has a "
        "small id."
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
# `<eos>`, because it did not end there. How many stories are cut at our context of 64?

# %%
CONTEXT = config.context_length
rows = [tokenizer.encode_story(text, CONTEXT) for text in stories.train]
cut = np.mean([row[-1] not in (tokenizer.pad_id, tokenizer.eos_id) for row in rows])
print(f"cut: {cut:.2%} of {len(rows):,} training stories")

# %% [markdown]
# **How many words are enough?** The figure shows what share of the validation stories (which are never trained on) the
# first $n$ words of the vocabulary cover.

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
    landmarks={"half of the text": 50},
    x_label="words in the vocabulary, most frequent first (logarithmic)",
    y_label="covered (%)",
    title=f"{half} words make up half of the text",
)
figure.axes[0].set_xscale("log")

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    figure,
    "01_coverage",
    alt="Share of the validation words covered by the n most frequent words, against n.",
    caption=(
        "The axis is logarithmic: each tenfold growth of the vocabulary covers about the same "
        "share more. Every occurrence of a word is counted, so a rare word adds almost nothing, "
        "however much it matters to its story."
    ),
)

# %% [markdown]
# The axis is logarithmic: each labelled tick to the right stands for ten times as many words. A few dozen words, such
# as the full stop, *a* and *the*, make up half of the text. Covering the rest takes many more words, and they are what
# the stories are about. The figure counts words, not meaning: a rare word is often the one that matters. So we keep
# them all, which we can because these stories have fewer than 10,000 different words. (Real stories have more.)
#
# ## Ids become vectors
#
# An id says nothing about a word except how frequent it is: word 17 need not resemble word 18. So each id gets a vector
# of 300 numbers, its **embedding**. The embeddings are the rows of a table, and the model computes with these rows.
# Looking up row 17 gives the same as multiplying the
# table by a **one-hot** vector, which is 1 at place 17 and 0 elsewhere. A product can be differentiated, so the table can be
# trained like any other weight matrix.

# %%
embedding = nn.Embedding(len(tokenizer), 300)  # (V, E)
batch = torch.tensor([tokenizer.encode(STORY)])  # (B, T), B = 1
one_hot = F.one_hot(batch, len(tokenizer)).float()  # (B, T, V)
product = one_hot @ embedding.weight  # (B, T, E)

# %%
claim(
    f"looking up {batch.shape[1]} rows = one-hot {tuple(one_hot.shape)} @ table "
    f"{tuple(embedding.weight.shape)}, bit for bit",
    torch.equal(embedding(batch), product),
)

# %% [markdown]
# For each token, the lookup copies 300 numbers; the product gets the same result with 300 multiplications for every
# word of the vocabulary. On their own, one-hot vectors would describe words poorly: any two of them are equally far
# apart.
#
# ## Vectors that know something before training
#
# A new table is random. Word vectors that were trained on text know more from the start: words used in similar places
# have similar vectors. **Skip-gram** ([Mikolov et al. 2013](https://arxiv.org/abs/1310.4546), section 2.2) learns them
# by playing a game: given a word and a second one, say whether the second stood near the first in a story or was drawn
# at random. Each word has two vectors, one for its role as the first word and one for its role as the second. The score
# of a pair is the dot product of the two vectors: the higher it is, the likelier the answer *near*. The logistic
# sigmoid turns a score $s$ into a probability, $1 / (1 + e^{-s})$, and the loss is $-\ln p$ of the right answers, as
# before. Here is the whole game, with 50 numbers per word:

# %%
text = torch.tensor([i for row in rows for i in row if i != tokenizer.pad_id])  # (N,)
torch.manual_seed(0)
given, other = (nn.Parameter(0.1 * torch.randn(len(tokenizer), 50)) for _ in range(2))  # (V, 50)
optimizer = torch.optim.Adam([given, other], lr=0.01)
for _ in range(300):
    place = torch.randint(5, len(text) - 5, (4096,))  # (N,)
    away = torch.randint(1, 6, (4096,)) * (2 * torch.randint(2, (4096,)) - 1)  # (N,): 1 to 5 words
    word, near = text[place], text[place + away]  # (N,) each
    drawn = text[torch.randint(len(text), (4096,))]  # (N,)
    score_near = (given[word] * other[near]).sum(-1)  # (N,)
    score_drawn = (given[word] * other[drawn]).sum(-1)  # (N,)
    loss = -(F.logsigmoid(score_near) + F.logsigmoid(-score_drawn)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# (`optimizer.step()` moves each number a little against its gradient; notebook 04 takes that apart.) Has it learned anything? Ask for
# nearest neighbours: the words whose vectors point in the most similar direction (the cosine of the angle between them is largest).

# %%
known = tokenizer.words  # without the special tokens
queries = ["mia", "tuesday", "mother", "sunny", "she", "said"]


def nearest(vector, table_of_words, k=5):
    return [word for word, _ in neighbours(table_of_words, known, vector, k + 1)][1:]


by_game = given.detach().numpy()[4:]  # (V - 4, 50)
found = {w: nearest(by_game[known.index(w)], by_game) for w in queries if w in known}

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [[word, ", ".join(near)] for word, near in found.items()],
    ["word", "nearest words"],
    caption="Nearest neighbours by cosine similarity, using the vectors from this short game.",
)

# %% [markdown]
# Names lie near names, and days near days. The game does not ask for this: words that occur in the same places end up
# with vectors in similar directions. But being used alike is not the same as meaning the same: *she* lies close to
# *he*. After so short a game, some neighbours are still there by chance.
#
# **fastText** ([Bojanowski et al. 2017](https://arxiv.org/abs/1607.04606), section 3.2) also looks inside the word. It
# marks the ends of a word with `<` and `>`, and lists its **n-grams**: all runs of 3 to 6 characters. In the game, a
# word's vector is the mean of its own row and the rows of its n-grams, so words that have parts in common learn
# together. (The paper adds the rows up; the fastText program, which we use, takes their mean.) There are too many
# n-grams to give each one its own row. So a hash function assigns every n-gram to one of a fixed
# number of rows, its *bucket*, and some n-grams share one.


# %%
def ngrams_of(word):
    marked = f"<{word}>"
    return {marked[i : i + n] for n in range(3, 7) for i in range(len(marked) - n + 1)}


# %%
vectors = train_vectors(stories.train, tokenizer)
in_dictionary, _, _ = vectors.coverage(tokenizer)
print(f"{in_dictionary:,} of {len(tokenizer.words):,} words have a row of their own")
print("n-grams of 'dogs':", *sorted(ngrams_of("dogs")))
claim("fastText finds the same n-grams", ngrams_of("dogs") == {*vectors.subwords("dogs")})

# %%
matrix = vectors.matrix(tokenizer)  # (V, E)
answers = {w: nearest(vectors[w], matrix[4:]) for w in queries if w in known}

# %% cellView="form" tags=["hide-input"]
table(
    [[word, ", ".join(near)] for word, near in answers.items()],
    ["word", "nearest words"],
    caption="The same question, put to the vectors that fastText trained.",
)

# %% [markdown]
# The result is much the same, from 300 numbers per word and a longer game. Days also share n-grams with each other, and
# so do relatives. A word that is used next to almost anything, like *said*, has neighbours that tell us little.
#
# **Predict.** *Grandmothers* and *zyzzyva* are not in the vocabulary. Can they have vectors? If so, near which words?

# %%
unseen = ["grandmothers", "zyzzyva"]


def shared(word):
    """A word's nearest words, each with the number of n-grams that the two share."""
    near = [other for other, _ in neighbours(matrix[4:], known, vectors[word], 4)]
    return ", ".join(f"{other} ({len(ngrams_of(word) & ngrams_of(other))})" for other in near)


# %% cellView="form" tags=["hide-input"]
table(
    [[word, "yes" if word in known else "no", shared(word)] for word in unseen],
    ["word", "in the vocabulary", "nearest words (n-grams in common)"],
    caption=(
        "Two words that did not occur in training, and the neighbours that their n-grams give them."
    ),
)

# %%
for word in unseen:
    alike = [other for other in known if ngrams_of(word) & ngrams_of(other)]
    print(f"{word}: {len(alike)} of {len(known):,} words share an n-gram with it")

# %% [markdown]
# Both have a vector, built from n-grams alone. *Grandmothers* lies near its relatives, all of which share n-grams with it. *Zyzzyva* has
# next to nothing in common with the words of the stories. Some of its n-grams share a row with n-grams of other words,
# and the rest have rows that were never trained, so its neighbours are a matter of chance. The vector of an unseen word
# is only a guess from its spelling.
#
# A map of a few words shows some groups at a glance. It projects three hundred dimensions onto the two in which these words differ most
# (their principal components).

# %%
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
_, _, directions = np.linalg.svd(points, full_matrices=False)
directions *= np.sign(directions[:, [0]])  # a direction and its opposite are equally good

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.scatter_words(
        points @ directions[:2].T,
        *zip(*chosen, strict=True),
        title="Most words that are used alike lie together",
    ),
    "01_words",
    alt="A map of 25 words: names, family, days and animals form groups; things lie near colours.",
    caption=(
        "Look for groups of one colour. A map in two directions loses most of the distances, so "
        "two words that touch here need not be neighbours."
    ),
)

# %% [markdown]
# Words of one colour and shape belong to one group. We chose the groups; the vectors were trained without them.
# The map shows two of
# three hundred directions, so two groups that touch here may be far apart in another direction.
#
# ## Where is the order?
#
# Take two sentences with the same words.
#
# **Predict.** Average the word vectors of each sentence. How far apart are the two averages?

# %%
SENTENCES = ["The dog looked for the cat.", "The cat looked for the dog."]
first, second = (
    torch.from_numpy(matrix[tokenizer.encode(text)]).double() for text in SENTENCES
)  # (T, E) each
apart = (first.mean(0) - second.mean(0)).norm()

# %%
claim(f"the two averages are the same: {apart:.6f} apart", apart < 1e-9)

# %% [markdown]
# The difference is gone, because a mean does not depend on the order. Attention, which the next notebook builds, is
# a weighted mean. Even if each word reads only the words before it, a layer of attention cannot tell in which order
# they came. So the
# position is written *into* the vectors.
#
# The idea of [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), section 3.5, is to give each position a vector of
# its own, made of waves of different lengths, like the hands of many clocks. Fast hands tell neighbours apart; slow
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
        "position. The slow waves at the bottom hardly change within 64 words; over thousands of "
        "words they would."
    ),
)

# %% [markdown]
# Look at one column in both pictures: together the two are the vector of one position. The top rows change with every
# word; in the lower third hardly anything changes within 64 words: sines stay near 0, cosines near 1. These waves would
# serve much longer contexts than ours.
#
# What are they good for? Compare positions by their dot product.

# %%
similarity = positions @ positions.T  # (T, T)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        {"position 32 with …": (range(CONTEXT), similarity[32].tolist())},
        x_label="position",
        y_label="dot product (no unit)",
        title="Nearby positions are more alike than distant ones",
    ),
    "01_similarity",
    alt="Dot product of position 32 with every position: a peak at 32, falling off on both sides.",
    caption=(
        "The peak is position 32 compared with itself. The curve follows from the formula; how "
        "attention uses it is learned later."
    ),
)

# %%
moved = (similarity[10, :54] - similarity[20, 10:]).abs().max()
claim(
    "the dot product of positions 10 and 10 + n equals that of 20 and 20 + n, for every n, "
    f"within ≈{moved:.0e}",
    moved < 1e-4,
)
claim(
    f"a position's dot product with itself is D/2 = {config.d_model / 2:.0f}: sin² + cos² = 1",
    torch.allclose(similarity.diagonal(), torch.tensor(config.d_model / 2)),
)

# %% [markdown]
# The peak is the position itself. On both sides the curve falls in steps, nearly everywhere. It depends only on the
# *distance* between two positions. That alone does not let a model look for "the word before": the peak lies on the
# word itself. Notebook 02 shows the missing step, one rotation that turns every position into the one before it.
#
# ## How long is a word vector, and how long is a position vector?
#
# Words and positions are *added*. If one were a hundred times longer than the other, the sum would hardly show the
# shorter one. So we compare two lengths: that of a position, and that of a random word vector. The word vector is as in
# our model before training, after the linear layer that takes it from 300 to 296 numbers (notebook 03).

# %%
torch.manual_seed(0)
fresh = 0.02 * torch.randn(1000, config.embedding_dim)  # (V, E)
projection = nn.Linear(config.embedding_dim, config.d_model)  # E → D
nn.init.xavier_uniform_(projection.weight)
with torch.no_grad():
    word = (projection(fresh) - projection.bias).norm(dim=1).mean().item()
position = positions.norm(dim=1).mean().item()
lengths = {"position": position, "word": word, "word × √D": word * config.d_model**0.5}

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.bars(
        {name: float(f"{value:.2g}") for name, value in lengths.items()},
        x_label="length of the vector (no unit)",
        title="Without √D, positions drown out the words",
    ),
    "01_lengths",
    alt="Bars: a position has length 12, a random word vector 0.35, and 5.9 after scaling by √D.",
    caption=(
        "Compare the first bar with the other two. These are lengths at the start of "
        "training; the model may change them later."
    ),
)

# %% [markdown]
# Every position has the length $\sqrt{D/2}$. A word vector of random numbers with a standard deviation of 0.02 is 35 times shorter
# (notebook 04 scales fastText vectors to the same size), so the sum would be almost the position alone.
# Multiplying the words by
# $\sqrt{D}$, as in Vaswani et al. 2017, section 3.4, makes the two comparable. The bars show only the start of
# training, which can change the lengths of the word vectors.
#
# ## Order, restored
#
# **Predict.** Add positions to the words of the same two sentences, and square each number before you average.
# (Squaring is the simplest step that is not linear.) Are the averages still equal?

# %%
p = sinusoidal_positions(len(first), vectors.dim).double()  # (T, E)


def distance(position):
    """Distance between the two sentences' averages of (word + position)²."""
    return ((first + position).square().mean(0) - (second + position).square().mean(0)).norm()


claim(f"without positions the averages are equal: {distance(0):.6f} apart", distance(0) < 1e-9)
size = first.square().mean(0).norm()

# %%
claim(
    f"with positions they are ≈{distance(p):.2f} apart; for comparison, the average of the squared "
    f"words alone has the length ≈{size:.2f}",
    distance(p) > 0.01,
)

# %% [markdown]
# **Only positions tell the two sentences apart.** Without them the averages are equal, whatever we do to each word by
# itself before averaging. With them, *dog at position 1* and *dog at position 5* are different vectors.
#
# (Why the square? The plain mean of word + position is the mean word plus the mean position, the same for both sentences. Order
# shows only when word and position *interact*, as they do in attention.)

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
# - A grammar generated our stories, so the lowest possible loss is known.
# - A word has an id, the id selects a row of a table, and this selection equals a product with a one-hot vector.
# - fastText gives words that are used alike similar vectors, and guesses the vectors of unseen words from n-grams.
# - A mean of vectors does not depend on their order. Sinusoidal positions, added to the words, bring the order back.
#   Multiplying the words by $\sqrt{D}$ makes words and positions comparable in length.
#
# ## What GPT and Llama do differently
#
# - **Pieces.** They cut words into frequent fragments (byte-pair encoding, [Sennrich et al.
#   2016](https://arxiv.org/abs/1508.07909)), down to single bytes if necessary, so no text is ever unknown. Some 30,000
#   to 200,000 pieces serve many languages, whereas we need a row for every word.
# - **Word vectors** start at random and are learned along with everything else: these models read enough text to need
#   no head start.
# - **Positions.** GPT-2 learns a vector for each position, which is possible because its context has a fixed length.
#   Llama rotates queries and keys by an angle that grows with the position (rotary embeddings, [Su et al.
#   2021](https://arxiv.org/abs/2104.09864)), which builds the rotation of notebook 02 into attention.
#
# Next: [02 · Attention](02_attention.ipynb) lets the words read each other.
#
# ## Can you?
#
# 1. A model gives the word that follows a probability of 1/4. What are the loss and the perplexity?
#    <details><summary>Answer:</summary> ln 4 ≈ 1.39 nats, and 4.</details>
# 2. *The Mayor's dog* goes through the tokenizer and back. What may be lost?
#    <details><summary>Answer:</summary> The capital of <em>Mayor</em>, unless it is known as a name; and any word that is not in the
#    vocabulary, which comes back as an unknown one.</details>
# 3. Why is looking up a row the same as a matrix product, and why does that matter?
#    <details><summary>Answer:</summary> A one-hot vector times the table picks out one row. A product has a gradient, so the table can be
#    trained.</details>
# 4. Which two words would have nearly the same vector and opposite meanings?
#    <details><summary>Answer:</summary> Words that fill the same places in sentences, such as <em>hot</em> and <em>cold</em>.</details>
# 5. Without positions, which sentences could a weighted mean not tell apart?
#    <details><summary>Answer:</summary> Any two that consist of the same words in a different order and end with the
#    same word (the one that reads).</details>
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
# - [Mikolov et al. 2013](https://arxiv.org/abs/1310.4546), *Distributed Representations of Words and Phrases and their Compositionality*,
#   section 2.2
# - [Sennrich et al. 2016](https://arxiv.org/abs/1508.07909), *Neural Machine Translation of Rare Words with Subword Units*
# - [Su et al. 2021](https://arxiv.org/abs/2104.09864), *RoFormer: Enhanced Transformer with Rotary Position Embedding*
# - [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), *Attention Is All You Need*
