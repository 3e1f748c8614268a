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
# **Promise.** You will follow one story from text to numbers: words, ids, vectors, positions. At the end you will see that
# word vectors alone cannot tell *the dog looked for the cat* from *the cat looked for the dog*, and what can.
#
# **Prerequisites.** Python and a little PyTorch. This is the first notebook.
#
# **Running time.** About one minute on two cores, most of it training word vectors; a few seconds when they are cached.

# %% tags=["parameters"]
CORPUS = "bundled"  # or "tinystories" (from the Hugging Face Hub), or the path of a file,
# or of a folder with train.* and validation.*

# %% tags=["setup"]
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/lohar-animesh-27112001/ELL881-advance_LLM-assignment"

if "google.colab" in sys.modules:
    if not Path("/content/course").exists():
        subprocess.run(
            ["git", "clone", "--quiet", "--depth=1", REPOSITORY, "/content/course"], check=True
        )
    if not Path("/content/course/notebooks/colab.py").is_file():
        raise RuntimeError(
            f"{REPOSITORY} does not hold this course: put the right address into this cell"
        )
    # Adds what is missing.
    subprocess.run([sys.executable, "/content/course/notebooks/colab.py"], check=True)
here = Path("/content/course") if "google.colab" in sys.modules else Path.cwd().resolve()
ROOT = next((folder for folder in (here, *here.parents) if (folder / "helpers").is_dir()), None)
if ROOT is None:
    raise RuntimeError(
        "open this notebook inside the repository: no folder `helpers` above the working folder"
    )
sys.path.insert(0, str(ROOT))
os.chdir(ROOT / "notebooks")

# %%
import textwrap
from collections import Counter

import numpy as np
import torch
from torch import nn

from helpers import plots
from helpers.model import ModelConfig, sinusoidal_positions
from helpers.notebook import FigureFolder, show_source, table
from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer
from helpers.vectors import neighbours, train_vectors

figures = FigureFolder(CORPUS)
stories = load_stories(CORPUS)
print(
    f"{len(stories.train):,} stories to train on, {len(stories.validation):,} to evaluate on, "
    "none in both"
)

# %% [markdown]
# ## A story becomes words
#
# A language model predicts the next piece of a text from the pieces before it. Our pieces are words. Most models of today
# cut words further, into fragments; we keep them whole, because then each number that we look at has a name.
#
# Here is the beginning of the first training story. (Stories of other corpora are not printed, only counted.)

# %%
EXAMPLE = 'One day, Mia lost her red ball. "Where is the ball?" asked Tom.'
shown = stories.train[0] if CORPUS == "bundled" else EXAMPLE
print(textwrap.fill(shown, 88))

# %% [markdown]
# The tokenizer splits at blanks, makes punctuation a word of its own, and writes everything in lower case. So *Where* and
# *where* share one vector, and the text can be put together again.

# %%
tokenizer = WordTokenizer.train(stories.train, vocab_size=10_000)
print(tokenizer.split(EXAMPLE))

# %% [markdown]
# ## Words become ids
#
# The vocabulary is the list of the most frequent words of the training stories. A word's place in that list is its id.
# The first four ids are kept for special tokens: `<pad>` fills short stories up, `<sos>` and `<eos>` mark a story's start
# and end, `<unk>` stands for a word that is not in the list.

# %%
show_source(WordTokenizer.encode_story)

# %%
ids = tokenizer.encode_story("Mia found a zyzzyva.", length=10)
table(
    [[place, token_id, tokenizer.word(token_id)] for place, token_id in enumerate(ids)],
    ["position", "id", "token"],
)

# %% [markdown]
# A story that is longer than the model's context is cut, and then has no `<eos>`. How many are?

# %%
CONTEXT = 64
cut = np.mean(
    [
        tokenizer.encode_story(text, CONTEXT)[-1] not in (tokenizer.pad_id, tokenizer.eos_id)
        for text in stories.train
    ]
)
print(f"longer than {CONTEXT} tokens, <sos> and <eos> counted: {cut:.1%} of the training stories")

# %% [markdown]
# *Zyzzyva* (a beetle) never occurs in the stories, so the model sees `<unk>`. `decode` goes the other way. It puts spaces,
# quotes and capitals back: sentence starts, *I*, and names, which it learned from the training text.

# %%
print(tokenizer.decode(tokenizer.encode(EXAMPLE)))
assert tokenizer.decode(tokenizer.encode(EXAMPLE)) == EXAMPLE, (
    "what was encoded no longer decodes to itself"
)

# %% [markdown]
# **How many words are enough?** Count how much of the validation text the first *n* words of the vocabulary cover.

# %%
counts = Counter(i for text in stories.validation for i in tokenizer.encode(text))
# Most frequent in training first.
frequency = np.array([counts[i] for i in range(4, len(tokenizer))])  # (V - 4,)
total = sum(counts.values())
coverage = frequency.cumsum() / total  # (V - 4,)
unknown_rate = counts[tokenizer.unk_id] / total
half = int(np.searchsorted(coverage, 0.5)) + 1
print(f"vocabulary: {len(tokenizer):,} tokens; unknown: {unknown_rate:.2%} of the validation words")
print(f"half of all words are one of only {half}")

# %%
figure = plots.compare_curves(
    {"validation words covered": (np.arange(1, len(coverage) + 1), 100 * coverage)},
    x_label="words in the vocabulary, most frequent first (logarithmic)",
    y_label="covered (%)",
    title=f"Half of the text is made of {half} words",
)
figure.axes[0].set_xscale("log")
figures.save_figure(
    figure,
    "01_coverage",
    alt=(
        "Share of the validation words covered by the n most frequent words, rising almost "
        "straight on a logarithmic axis."
    ),
)

# %% [markdown]
# The axis is logarithmic: each tick to the right costs ten times as many words. The first few dozen words, full stops and
# *the* among them, do half of the work; the long tail holds the names and things that stories are about. The figure
# counts words, not meaning: an unknown word is often the one that matters.

# %% [markdown]
# ## Ids become vectors
#
# An id says nothing about a word: 17 is not nearly 18. So each id gets a vector of 300 numbers, a row of a table, and the
# model works with rows. Looking up row 17 is the same as multiplying the table by a *one-hot* vector, which is 1 at place
# 17 and 0 elsewhere. That is why the table can be trained like any other weight matrix.

# %%
embedding = nn.Embedding(len(tokenizer), 300)  # (V, E)
batch = torch.tensor([tokenizer.encode("the little dog was happy")])  # (B, T) = (1, 5)
one_hot = nn.functional.one_hot(batch, len(tokenizer)).float()  # (B, T, V)

assert torch.equal(embedding(batch), one_hot @ embedding.weight), (
    "a lookup is a product with a one-hot vector"
)
print(
    "lookup",
    tuple(embedding(batch).shape),
    "= one-hot",
    tuple(one_hot.shape),
    "@ table",
    tuple(embedding.weight.shape),
)

# %% [markdown]
# The lookup copies 300 numbers; the product does the same with one multiplication for every word of the vocabulary.

# %% [markdown]
# ## Vectors that know something before training
#
# A fresh table is random. Word vectors that were trained on text start with more: words used in similar places have
# similar vectors. Skip-gram does it by a game (Mikolov et al. 2013 [@mikolov2013efficient]): predict from a word's vector the
# words around it.
#
# fastText adds the inside of the word (Bojanowski et al. 2017, section 3.2 [@bojanowski2017enriching]). A word's vector is
# the mean of its own row and of the rows of its **character n-grams**, with `<` and `>` marking its borders.

# %%
vectors = train_vectors(stories.train, tokenizer)
in_dictionary, _, _ = vectors.coverage(tokenizer)
print(
    f"vectors of {vectors.dim} numbers; with a row of their own: {in_dictionary:,} of "
    f"{len(tokenizer.words):,} words"
)
print("n-grams of 'dogs':", *vectors.subwords("dogs"))

# %% [markdown]
# Is anything learned? Ask for the nearest neighbours: the words whose vectors point the same way (cosine similarity).

# %%
matrix = vectors.matrix(tokenizer)  # (V, 300)
words, rows = tokenizer.words, matrix[4:]  # special tokens left out


def nearest(word, k=5):
    return [other for other, _ in neighbours(rows, words, vectors[word], k + 1) if other != word][
        :k
    ]


queries = ["mia", "she", "red", "ball", "said", "happy"]
answers = {word: nearest(word) for word in queries if word in words}
table([[word, ", ".join(near)] for word, near in answers.items()], ["word", "nearest words"])

# %% [markdown]
# Names gather with names, colours with colours, toys with toys. Nobody told it so: words that can stand in the same place
# end up in the same place. Similar use is not the same meaning, though: *she* lies close to *he*. And a word that is used
# beside everything, as *said* is, has neighbours that say little.
#
# **Predict.** *Doggy* and *zyzzyva* have no row of their own. Can they have a vector? Near what?

# %%
unseen = ["doggy", "zyzzyva"]
assert all(word in vectors for word in unseen)
table(
    [[word, "yes" if word in words else "no", ", ".join(nearest(word, 4))] for word in unseen],
    ["word", "in the vocabulary", "nearest words"],
)

# %% [markdown]
# Both have one, built from n-grams alone. *Doggy* lands beside words that end as it does, not beside the dog.
# *Zyzzyva* shares none of its n-grams with a word of the stories; its rows were never trained, or only by words that
# fell into the same bucket, and its neighbours are chance. The vector of an unseen word is a guess from spelling.
#
# A map of some words shows the groups at a glance. Three hundred dimensions are pressed flat by keeping the two in which
# these words differ most (principal components).

# %%
groups = {
    "name": "mia tom ben lucy lily",
    "colour": "red green pink",
    "feeling": "happy sad proud tired",
    "who": "he she his him they",
    "thing": "ball hat drum kite",
}
chosen = [
    (word, group) for group, members in groups.items() for word in members.split() if word in words
]
points = np.stack([vectors[word] / np.linalg.norm(vectors[word]) for word, _ in chosen]).astype(
    np.float64
)  # (N, 300)
points -= points.mean(axis=0)
left, _, directions = np.linalg.svd(points, full_matrices=False)
directions *= np.sign(directions[:, [0]])  # a direction and its opposite are equally good: pick one
figures.save_figure(
    plots.scatter_words(
        points @ directions[:2].T, *zip(*chosen, strict=True), title="Words used alike lie together"
    ),
    "01_words",
    alt="A map of some twenty words: names, colours, feelings, pronouns and things form groups.",
)

# %% [markdown]
# Words of one colour and shape belong to one group; we chose the groups, the vectors did not know them. Distances on the
# map are only a shadow: two words that touch here may be far apart in one of the other 298 directions.

# %% [markdown]
# ## Where is the order?
#
# Take two sentences with the same words.
#
# **Predict.** Average the word vectors of each sentence. How far apart are the two averages?

# %%
SENTENCES = ["The dog looked for the cat.", "The cat looked for the dog."]
first, second = (
    torch.from_numpy(matrix[tokenizer.encode(text)]).double() for text in SENTENCES
)  # (T, 300) each
print(f"distance of the averages: {(first.mean(0) - second.mean(0)).norm():.6f}")
assert torch.allclose(first.mean(0), second.mean(0)), (
    "the same words have the same mean, in any order"
)

# %% [markdown]
# Nothing is left of the difference. A mean does not know order. Attention, which the next notebook builds, is a weighted mean:
# it can tell which words came earlier, for it may not look ahead, but not which of them stood where. So the position must be
# written *into* the vectors.
#
# The idea of Vaswani et al. 2017, section 3.5 [@vaswani2017attention]: give each position a vector of its own, made of waves of
# different lengths, like the hands of many clocks. Fast hands tell neighbours apart, slow hands tell the start of a
# story from its end. Dimension pair $i$ of position $t$ is
#
# $$p_{t,2i} = \sin\left(\frac{t}{10000^{2i/d}}\right) \qquad p_{t,2i+1} = \cos\left(\frac{t}{10000^{2i/d}}\right)$$

# %%
show_source(sinusoidal_positions)

# %%
config = ModelConfig()
positions = sinusoidal_positions(config.context_length, config.d_model)  # (T, D) = (64, 296)
figures.save_figure(
    plots.position_heatmap(positions, title="Every position has a pattern of its own"),
    "01_positions",
    alt=(
        "Heat-map of 64 positions by 296 dimensions: fast waves at the top, ever slower ones "
        "towards the bottom."
    ),
)

# %% [markdown]
# Read a column: that is what is added to the word at this position. The top rows change with every word; in the lower
# half hardly anything changes within 64 words (the stripes are sines near 0 and cosines near 1). Our context is short, and the
# wavelengths were chosen for longer ones.
#
# What is it good for? Compare positions by their dot product.

# %%
similarity = positions @ positions.T  # (T, T)
centre = 32
figure = plots.compare_curves(
    {f"position {centre} with …": (range(config.context_length), similarity[centre].tolist())},
    x_label="position",
    y_label="dot product",
    title="The nearer, the more alike",
)
assert torch.allclose(similarity[10, :54], similarity[20, 10:], atol=1e-4), (
    "only the distance counts, not the place"
)
assert torch.allclose(similarity.diagonal(), torch.full((64,), config.d_model / 2)), (
    "sin² + cos² = 1 in each of the D/2 pairs"
)
figures.save_figure(
    figure,
    "01_similarity",
    alt=(
        "Dot product of position 32 with every position: a peak at 32 that falls off on both sides."
    ),
)

# %% [markdown]
# The peak is the position itself; the curve falls off on both sides and then ripples. It depends on the *distance* of
# two positions only, not on where they are, so a model can learn "the word before" once, for all places.
# Notebook 02 builds exactly that head by hand. Whether a trained model uses it, this figure cannot say.

# %% [markdown]
# ## How loud is a word, how loud is a position?
#
# Words and positions are *added*. If one were a hundred times longer than the other, it would drown it. Compare lengths.

# %%
torch.manual_seed(0)
# This is how our model starts without word vectors.
table_weights = 0.02 * torch.randn(1000, config.embedding_dim)  # (1000, E)
projection = nn.Linear(config.embedding_dim, config.d_model)  # 300 → 296, see notebook 03
nn.init.xavier_uniform_(projection.weight)
nn.init.zeros_(projection.bias)
with torch.no_grad():
    word_length = projection(table_weights).norm(dim=1).mean()
lengths = {
    "position": positions.norm(dim=1).mean().item(),
    "random word": word_length.item(),
    "random word × √d": word_length.item() * config.d_model**0.5,
}
figures.save_figure(
    plots.bars(
        {name: float(f"{value:.2g}") for name, value in lengths.items()},
        x_label="length of the vector",
        title="Without √d, positions drown the words",
    ),
    "01_lengths",
    alt=(
        "Bars: a position vector has length 12, a random word vector 0.35, and 6 after scaling "
        "by the root of d."
    ),
)

# %% [markdown]
# A position has length $\sqrt{d/2}$, whatever we do. A word that starts with numbers around 0.02 (random ones do, and
# notebook 04 scales fastText vectors to the same size) is some thirty times shorter: the sum would be nearly the position alone. Multiplying the words by $\sqrt{d}$ makes the two comparable
# (Vaswani et al. 2017, section 3.4). The bars show the start of training only; what the model makes of it is its own affair.

# %% [markdown]
# ## Order, restored
#
# **Predict.** The same two sentences, now with positions added to their words, then averaged *after* a step that is not
# linear (here: squaring each number, the simplest there is). Are the averages still equal?

# %%
p = sinusoidal_positions(len(first), vectors.dim).double()  # (T, 300)
with_positions = [(words_of + p).square().mean(0) for words_of in (first, second)]  # (300,) each
without = [words_of.square().mean(0) for words_of in (first, second)]
print(f"without positions: {(without[0] - without[1]).norm():.6f}")
print(f"with positions:    {(with_positions[0] - with_positions[1]).norm():.2f}")
assert torch.allclose(*without), "without positions, no function of single words can see the order"
assert not torch.allclose(*with_positions, atol=1e-3), "positions tell the two sentences apart"

# %% [markdown]
# **Only positions tell them apart.** Without them, whatever is done to each word alone and then averaged comes out equal,
# squared or not. With them, *dog at place 2* is another vector than *dog at place 6*, and the averages differ.
#
# (Why the square? The plain mean of word + position is the mean word plus the mean position: still the same for both
# sentences. Order shows only where word and position *interact*, as they do in attention.)

# %%
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
# - A story is a list of words; a word is an id; an id selects a row of a table, which is a product with a one-hot vector.
# - fastText vectors start the table with words of like use close together, and build vectors of unseen words from n-grams.
# - Vectors have no order. Sinusoidal positions, added to the words, bring it back; $\sqrt{d}$ keeps the words audible.
#
# Next: [02 · Attention](02_attention.ipynb) lets the words look at each other.
#
# ## Try it
#
# 1. Train the tokenizer with `vocab_size=500`. Which words of `EXAMPLE` become `<unk>`? How does the unknown rate change?
# 2. Train vectors with `maxn=0` (no n-grams). What does `vectors["doggy"]` say now?
# 3. Replace `10_000` in the position formula by 100. Which rows of the heat-map change, and what does position 32 now
#    resemble?
#
# ## References
#
# - Bojanowski et al. 2017, *Enriching Word Vectors with Subword Information* [@bojanowski2017enriching]
# - Mikolov et al. 2013, *Efficient Estimation of Word Representations in Vector Space* [@mikolov2013efficient]
# - Vaswani et al. 2017, *Attention Is All You Need* [@vaswani2017attention]
