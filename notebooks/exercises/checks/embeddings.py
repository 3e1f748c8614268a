"""The checks of the exercises for notebook 01."""

import math
from functools import cache

import torch
import torch.nn.functional as F

from checks import as_tensor, call, compare, exercise, expect
from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer


@exercise
def cross_entropy(student):
    # The first logits are positive, so that every known mistake has a finite result.
    for logits, target in (
        (3 * torch.rand(7) + 0.1, 4),
        (2 * torch.randn(11), 0),
        (2 * torch.randn(5), 4),
        (torch.tensor([0.7]), 0),
    ):
        right = F.cross_entropy(logits, torch.tensor(target))  # ()
        compare(call(student, logits, target), right, _losses(logits, target), "the loss")
    for other, far in ((0, 1000), (0, -50), (0, -200), (0, -1000), (1000, 900)):
        _far_apart(student, other, far)
    return "the loss, within 1e-5, and it survives logits of 1,000 and -1,000"


def _far_apart(student, other, far):
    """The loss of a word with the logit `far`, when another word has the logit `other`."""
    logits = torch.tensor([other, far, 3.0])  # (V,)
    too_large = (
        "with a logit of 1,000 the exponential is larger than a float can hold. Which change of "
        "all logits leaves the probabilities as they are?"
    )
    too_small = (
        f"with a logit of {far:,.0f} the probability is rounded to 0 before its logarithm is "
        "taken, and the loss is lost. Can you have the logarithm without the probability?"
    )
    right = F.cross_entropy(logits.double(), torch.tensor(1))  # ()
    try:
        loss = as_tensor(call(student, logits, 1), "the loss").double()
    except (OverflowError, ValueError, ZeroDivisionError):  # of Python's math
        expect(False, too_large if far > 0 else too_small)
    expect(loss.isfinite().all(), too_large if far > 0 else too_small)
    expect(
        loss.numel() != 1 or abs(loss.item() - right.item()) <= 0.01 * right.item() + 1e-3,
        f"a word whose loss is {right:.0f} nats costs {loss.flatten()[0]:.3g} in your code: is it "
        "capped, by a small number that is added, by a limit, or by a replacement of inf?",
    )
    compare(loss, right, what="the loss")


def _losses(logits, target):
    """What known mistakes would give for one prediction."""
    logs = F.log_softmax(logits, dim=-1)  # (V,)
    p, loss = logs.exp(), -logs[target]  # (V,), ()
    came = F.one_hot(torch.tensor(target), len(logits))  # (V,)
    each = F.binary_cross_entropy_with_logits(logits, came.float(), reduction="none")  # (V,)
    moved = "what you subtract from the logits changes the loss: is it added back, and once only?"
    return [
        (loss - logits.max(), moved),
        (loss + logits.max(), moved),
        *((part, "each word is judged by itself: one of V words comes.") for part in _totals(each)),
        *((part, "these are squared errors.") for part in _totals((p - came).square())),
        (
            -F.log_softmax(logits / logits.max(), 0)[target],
            "the logits are divided by a number, which changes the probabilities.",
        ),
        (-loss, "the sign is wrong: is the logarithm of a probability positive or negative?"),
        (
            loss - math.log(len(logits)),
            "you take a mean of exponentials: p is a share of their sum.",
        ),
        (loss / math.log(2), "this is the loss in bits: which logarithm gives nats?"),
        (loss / math.log(10), "this is a decimal logarithm, and nats need another one."),
        (p[target], "this is the probability itself, and not what it costs."),
        (1 - p[target], "this is the probability of all other words: where is the logarithm?"),
        (-(1 - p[target]).log(), "this is the loss of all other words together."),
        (loss.exp(), "this is the perplexity: one step too far."),
        (-logits[target], "a logit is not yet a log-probability: what makes the scores sum to 1?"),
        (logits[target], "this is the logit itself: where are the other words?"),
        (logits.logsumexp(0), "your result does not depend on the word that came."),
        (-logs.mean(), "you average over all words, and only one of them came."),
        (-logs.sum(), "you add up all words, and only one of them came."),
        (loss / len(logits), "you divide by the number of words; one prediction has one loss."),
        (-(p * logs).sum(), "this is the entropy: what the model expects, whichever word came."),
        (p[target] * loss, "you weigh the loss by its probability: the word did come."),
        (-logs.max(), "this is the loss of the likeliest word, which did not come."),
        (-logs.min(), "this is the loss of the unlikeliest word, which did not come."),
        (-logs[target - 1], "this is the loss of the word before the target, which did not come."),
        (-logs[0], "this is the loss of word 0, which did not come."),
        (
            -F.log_softmax(p, 0)[target],
            "the softmax is applied twice: does what you call expect it?",
        ),
        (-(logits[target] / logits.sum()).log(), "you divide the scores: where are exponentials?"),
        (-F.logsigmoid(logits[target]), "each score is squashed by itself: do the words compete?"),
        (
            torch.cat([logits[:target], logits[target + 1 :]]).logsumexp(0) - logits[target],
            "the sum lacks the word that came: it runs over all words.",
        ),
    ]


def _totals(values):
    return values.sum(), values.mean()


@exercise
def story_loss(student):
    for T, V in ((6, 13), (2, 5), (17, 23)):
        logits, ids = 2 * torch.randn(T, V), torch.randperm(V)[:T]  # (T, V), (T,)
        right = F.cross_entropy(logits[:-1], ids[1:])  # ()
        compare(call(student, logits, ids), right, _story_losses(logits, ids), "the loss")
    return f"3 stories, and {T - 1} predictions in one of {T} tokens"


def _story_losses(logits, ids):
    """What known mistakes would give for one story."""
    T, V = logits.shape
    right = F.cross_entropy(logits[:-1], ids[1:])  # ()
    each = F.cross_entropy(logits[:-1], ids[1:], reduction="none")  # (T - 1,)
    last = "the last prediction is missing: is the end of the story not to be predicted?"
    known = [
        (
            F.cross_entropy(logits, ids),
            "each row is compared with the token that it has just read.",
        ),
        (
            F.cross_entropy(logits[:-1], ids[:-1]),
            "both lose their last place, so each row is compared with the token that it has just "
            "read.",
        ),
        (
            F.cross_entropy(logits[1:], ids[1:]),
            "both lose their first place, so each row is compared with the token that it has just "
            "read.",
        ),
        (
            F.cross_entropy(logits[1:], ids[:-1]),
            "the shift goes the other way: each row is compared with a token of the past.",
        ),
        (
            F.cross_entropy(logits, ids.roll(-1)),
            "the last row is compared with the first word of the story: what comes after the end?",
        ),
        (
            F.cross_entropy(logits, ids.roll(1)),
            "the shift goes the other way, and around the corner.",
        ),
        (right * (T - 1), "this is a sum, and a mean is wanted."),
        (
            right * (T - 1) / T,
            f"you divide by {T}, the number of tokens: how many predictions are there?",
        ),
        (right / V, "you divide by the number of words too."),
        (
            -F.log_softmax(logits, 0)[torch.arange(T - 1), ids[1:]].mean(),
            "the softmax goes over the places of the story: the words compete at each place.",
        ),
        (
            -logits[torch.arange(T - 1), ids[1:]].mean(),
            "a logit is not yet a log-probability: what makes the scores sum to 1?",
        ),
        (-right, "the sign is wrong: is the logarithm of a probability positive or negative?"),
        (right.exp(), "this is the perplexity: one step too far."),
        (right / math.log(2), "this is the loss in bits: which logarithm gives nats?"),
        ((-each).exp().mean(), "this is a mean of probabilities: where is the logarithm?"),
        (-(-each).exp().mean().log(), "you average before the logarithm, and not after it."),
        (each[-1], "this is the loss of the last prediction alone."),
        (each[0], "this is the loss of the first prediction alone."),
        (each.max(), "this is the largest loss, and not the mean."),
        (each.median(), "this is the median, and not the mean."),
        (
            F.cross_entropy(logits[:-1].softmax(-1), ids[1:]),
            "the softmax is applied twice: does what you call expect logits?",
        ),
    ]
    if T > 2:
        known += [
            (each[:-1].mean(), last),
            (each[1:].mean(), "the first prediction is missing: which row makes it?"),
            (F.cross_entropy(logits[:-2], ids[2:]), "the shift is by two."),
            (each[:-1].sum() / (T - 1), last),
        ]
    return known


def _table(length, d_model, base=10_000, power=2.0, start=0, turn=1.0):
    """Sinusoidal positions, (T, D), or what one changed number makes of them."""
    pair = torch.arange(d_model // 2, dtype=torch.float64)  # (D/2,)
    position = torch.arange(start, start + length, dtype=torch.float64)  # (T,)
    angle = turn * torch.outer(position, base ** (-power * pair / d_model))  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (T, D)


def _own_angles(length, d_model, base, power):
    """A table in which each column has an angle of its own, (T, D)."""
    column = torch.arange(d_model, dtype=torch.float64)  # (D,)
    position = torch.arange(length, dtype=torch.float64)  # (T,)
    angle = torch.outer(position, base ** (-power * column / d_model))  # (T, D)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())  # (T, D)


@exercise
def positions(student):
    for length, d_model, base in ((7, 10, 70), (9, 6, 10_000), (50, 14, 10_000), (1, 2, 70)):
        named = {} if base == 10_000 else {"base": base}
        right = _table(length, d_model, base)  # (T, D)
        own = "each column has an angle of its own: in the formula a sine and a cosine share one."
        sines, cosines = right[:, 0::2], right[:, 1::2]  # (T, D/2) each
        pair = torch.arange(d_model // 2, dtype=torch.float64)  # (D/2,)
        ends = base ** -(pair / max(1, d_model // 2 - 1))  # (D/2,)
        known = [
            (
                torch.cat([sines, cosines], dim=-1),
                "all sines stand side by side, and then all cosines: they should take turns.",
            ),
            (
                torch.stack([cosines, sines], dim=-1).flatten(1),
                "sine and cosine are exchanged: which is in column 0?",
            ),
            (
                torch.cat([cosines, sines], dim=-1),
                "all cosines stand side by side, and then all sines: they should take turns.",
            ),
            (right.T, "rows and columns are exchanged: a position is a row."),
            (
                torch.stack([sines, torch.zeros_like(sines)], -1).flatten(1),
                "the odd columns are 0: where are the cosines?",
            ),
            (
                torch.stack([torch.zeros_like(sines), cosines], -1).flatten(1),
                "the even columns are 0: where are the sines?",
            ),
            (
                _table(length, d_model, math.exp(math.log10(base))),
                "the hands slow down too little: is the logarithm of the base a decimal one?",
            ),
            (
                _table(length, d_model, base, power=2 * d_model / (d_model - 1)),
                "the exponent is divided by D - 1, and should be by D.",
            ),
            (
                _table(length, d_model, base, turn=1 / length),
                "the positions are divided by their number: a position is a whole number.",
            ),
            (
                _table(length, d_model, base, turn=math.pi / 180),
                "your angles are in degrees: sine and cosine take them as they are.",
            ),
            (torch.stack([sines, sines], -1).flatten(1), "there are only sines."),
            (torch.stack([cosines, cosines], -1).flatten(1), "there are only cosines."),
            (
                _table(length, d_model, base, power=1.0),
                "the exponent grows half as fast as it should: is i the number of the pair?",
            ),
            (
                _table(length, d_model, base, power=4.0),
                "the exponent grows twice as fast as it should: do you count columns or pairs, and "
                "divide by what?",
            ),
            *((_own_angles(length, d_model, base, power), own) for power in (1.0, 2.0)),
            (
                _table(length, d_model, base, start=1),
                "your positions start at 1, and should start at 0: what are sine and cosine of 0?",
            ),
            (
                _table(length, d_model, base, turn=2 * math.pi),
                "your angles are 2π times as large: the formula has no 2π.",
            ),
            (
                _table(length, d_model, base, power=-2.0),
                "the hands turn faster and faster from column to column: multiplied or divided?",
            ),
            (_table(length, d_model), "the result does not depend on the base."),
            (
                _table(length, d_model, base, power=0.0),
                "all pairs turn alike: is the exponent a fraction, or cut to a whole number?",
            ),
            *(
                (
                    torch.stack([angle.sin(), angle.cos()], -1).flatten(1),
                    "the last exponent is 1, and in the formula it is a little less: does i/(D/2) "
                    "reach its end?",
                )
                for angle in [torch.outer(torch.arange(length, dtype=torch.float64), ends)]
            ),
        ]
        # Every table of whole-number exponents, however they were cut.
        cut = [
            (
                _whole_exponents(length, d_model, base, rounding),
                "the exponent is cut to a whole number: is there a // where a fraction is meant?",
            )
            for rounding in (math.floor, math.ceil)
        ]
        result = call(student, length, d_model, **named)
        compare(result, right, cut + known, "the table", _place, tolerance=1e-4)
    return "4 tables, two of them with a base of 70"


def _whole_exponents(length, d_model, base, rounding):
    pair = torch.tensor([float(rounding(-i / d_model)) for i in range(0, d_model, 2)]).double()
    angle = torch.outer(torch.arange(length, dtype=torch.float64), base**pair)  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (T, D)


def _place(index):
    row, column = index
    wave = "cosine" if column % 2 else "sine"
    return f"position {row}, the {wave} of pair {column // 2}, is the first to look at"


@cache
def _stories():
    return load_stories("bundled", train=1_000, validation=200)


def _few():
    return _stories().train[:200], _stories().validation[:70]


def _rate(tokenizer, texts):
    ids = [i for text in texts for i in tokenizer.encode(text)]
    return ids.count(tokenizer.unk_id) / len(ids)


@exercise
def unknown_rate(student):
    train, validation = _few()
    for vocab_size in (40, 150, 400):
        right = _rate(WordTokenizer.train(train, vocab_size), validation)
        rate = call(student, train, validation, vocab_size)
        compare(rate, right, _rates(vocab_size), "the rate")
    rate = call(student, _stories().train, _stories().validation, 500)
    return f"of all validation words {float(rate):.1%} are unknown to a vocabulary of 500"


@cache
def _rates(vocab_size):
    """What known mistakes would give."""
    train, validation = _few()
    tokenizer = WordTokenizer.train(train, vocab_size)
    listed = set(tokenizer.words)
    rows = [tokenizer.encode(text) for text in validation]
    unknown, total = sum(row.count(tokenizer.unk_id) for row in rows), sum(map(len, rows))
    right = unknown / total
    different = {word for text in validation for word in tokenizer.split(text)}
    lacking = len(different - listed)
    seen = "the vocabulary holds words of the validation stories, which training must not see."
    specials = "the four special tokens are entries too: how many words does vocab_size leave?"
    sizes = "the rate is the same for every vocab_size: do you use the argument?"
    padded = [tokenizer.encode_story(text, 64) for text in validation]
    capitals = [word for text in validation for word in text.split()]
    by_spaces = [word.lower() for word in capitals]
    marks = (
        "the text is cut at spaces, so a word and its full stop are one: which method splits it?"
    )
    return [
        (100 * right, "this is in percent, and a share from 0 to 1 is wanted."),
        (1 - right, "this is the share of known words."),
        (unknown, "this is a number of words, and a share is wanted."),
        (unknown / len(validation), "this is a number of words for each story: divide by words."),
        (unknown / (total - unknown), "you divide by the known words, and a share is of all."),
        (
            lacking / len(different),
            "you count different words: a word that occurs ten times is ten.",
        ),
        (lacking / total, "you count different words above, and all words below the line."),
        (
            unknown / len(different),
            "you count all words above, and different words below the line.",
        ),
        (
            sum(row.count(tokenizer.unk_id) / len(row) for row in rows) / len(rows),
            "a mean of the stories' rates gives every story the same weight: count all words.",
        ),
        (
            sum(row.count(tokenizer.unk_id) > 0 for row in rows) / len(rows),
            "this is the share of stories with an unknown word, and not of words.",
        ),
        (_rate(tokenizer, train), "this is the rate in the training stories."),
        (_rate(WordTokenizer.train(validation, vocab_size), validation), seen),
        (_rate(WordTokenizer.train(validation, vocab_size), train), "the stories are exchanged."),
        (_rate(WordTokenizer.train([*train, *validation], vocab_size), validation), seen),
        (_rate(WordTokenizer.train(train, vocab_size + 4), validation), specials),
        (_rate(WordTokenizer.train(train, vocab_size - 4), validation), specials),
        *((_rate(WordTokenizer.train(train, n), validation), sizes) for n in (500, 10_000)),
        (
            unknown / (total + 2 * len(rows)),
            "<sos> and <eos> are counted among the words.",
        ),
        (
            sum(row.count(tokenizer.unk_id) for row in padded) / sum(map(len, padded)),
            "<sos>, <eos> and <pad> are counted among the words.",
        ),
        (unknown / len(capitals), marks),
        (sum(word not in listed for word in by_spaces) / len(by_spaces), marks),
        (sum(word not in listed for word in capitals) / len(capitals), marks),
        *((round(right, digits), "the rate is rounded.") for digits in (1, 2, 3, 4)),
        (0.0, "the rate is 0: is a fraction cut to a whole number?"),
        (
            _rate(WordTokenizer.train(train, vocab_size, keep_punctuation=False), validation),
            "the punctuation marks are dropped: they count, too.",
        ),
    ]


@exercise
def enough(answer):
    expect(not isinstance(answer, str), "write a number, without quotation marks.")
    number = as_tensor(answer, "your number").flatten().double()  # (1,)
    expect(
        len(number) == 1 and number.frac() == 0 and number > 4,
        f"{answer!r} is not a number of entries, such as 500.",
    )
    rates = _rates_by_size()
    right = next(size for size, rate in rates.items() if rate <= 0.01)
    answer = int(number)
    expect(answer != right - 4, "are the four special tokens among your entries?")
    expect(answer != right + 4, "are the four special tokens counted twice?")
    in_training = next(size for size, rate in _rates_by_size("train").items() if rate <= 0.01)
    expect(
        answer != in_training,
        "this is enough for the training stories, from which the vocabulary is made.",
    )
    rate = rates.get(answer, 0.0)
    expect(rate <= 0.01, f"with {answer:,} entries {rate:.2%} are unknown, more than 1%.")
    expect(
        answer <= right, f"with {answer:,} entries {rate:.2%} are unknown: will a smaller one do?"
    )
    return f"{right:,} entries leave {rates[right]:.2%} unknown, and one entry less {_over(rates)}"


def _over(rates):
    return f"{next(rate for rate in reversed(rates.values()) if rate > 0.01):.3%}"


@cache
def _rates_by_size(split="validation"):
    """{vocab_size: unknown rate} for every size that the training stories fill."""
    tokenizer = WordTokenizer.train(_stories().train)
    rows = [tokenizer.encode(text) for text in getattr(_stories(), split)]
    counts = torch.bincount(
        torch.tensor([i for row in rows for i in row]), minlength=len(tokenizer)
    )
    known = counts[4:].cumsum(0)  # (V - 4,)
    rates = 1 - known / counts.sum()  # (V - 4,)
    return dict(enumerate(rates.tolist(), start=5))
