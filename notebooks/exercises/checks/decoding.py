"""The checks of the exercises for notebook 05.

Shape comments name the sizes: B rows, V vocabulary, W beams, T new tokens, S keys, D model width,
d head width.
"""

import math
from functools import partial

import torch
from torch import Tensor

from checks import UNNAMED, Wrong, agrees, as_tensor, call, compare, exercise, expect, expect_shape


def compare_or_explain(answer, right: Tensor, explain, known=(), what="the result") -> None:
    """`compare`; if the mistake is of no known kind, explain(answer, right) looks for its kind."""
    try:
        compare(answer, right, known, what)
    except Wrong as wrong:
        if str(wrong).startswith(UNNAMED):
            explain(as_tensor(answer).double(), right.double())
        raise


def _explain_distribution(answer: Tensor, right: Tensor) -> None:
    """Reject probabilities (B, V) by the first thing that is wrong with them as a distribution."""
    kept, wanted = answer.abs() > 1e-6, right > 0  # (B, V) each
    expect((answer > -1e-6).all(), "a probability of yours is negative")
    wrong = (kept.sum(-1) - wanted.sum(-1)).nonzero().flatten().tolist()  # rows
    if wrong:
        row = wrong[0]
        raise Wrong(
            f"the number of words that row {row} keeps is {int(kept[row].sum())}, and should be "
            f"{int(wanted[row].sum())}: print its ranked probabilities, and count"
        )
    expect(
        (kept == wanted).all(),
        "each row keeps the right number of words, and not the right ones: does your selection "
        "know which word a rank belongs to?",
    )
    sums = answer.sum(-1)  # (B,)
    expect(
        agrees(sums, torch.ones_like(sums)),
        f"the right words are kept, and the probabilities of row 0 sum to {sums[0]:.3f}: by what "
        "should each row be divided?",
    )
    raise Wrong(
        "the right words are kept and each row sums to 1, but it is divided wrongly among them: "
        "which ratio should two words have that are kept?"
    )


# 1 ------------------------------------------------------------------------------------------------


def _kept(logits: Tensor, k: int, otherwise: float = -math.inf) -> Tensor:
    """Logits (…, V) with all but the k largest replaced."""
    best = logits.topk(min(k, logits.shape[-1]))  # (…, k) each
    return torch.full_like(logits, otherwise).scatter(-1, best.indices, best.values)  # (…, V)


def _sampled_from(logits: Tensor, temperature: float, k: int) -> Tensor:
    return _kept(logits / temperature, k).softmax(-1)  # (B, V)


def _expect_no_known_nan(answer: Tensor, known: list[tuple[Tensor, str]]) -> None:
    """Name a mistake that leaves nothing in some row or column, and so divides 0 by 0 there."""
    for mistake, message in known:
        if mistake.isnan().any() and mistake.shape == answer.shape:
            expect(not torch.allclose(answer, mistake.to(answer.dtype), equal_nan=True), message)


def _sampling_mistakes(logits: Tensor, temperature: float, k: int) -> list[tuple[Tensor, str]]:
    V, right = logits.shape[-1], _sampled_from(logits, temperature, k)  # (B, V)
    scaled, all_words = logits / temperature, (logits / temperature).softmax(-1)  # (B, V) each
    no_temperature = "the temperature has no effect: does it come before the softmax?"
    whole_batch = (
        "some rows keep more than k words and some fewer: do you look for the k best of the whole "
        "batch, or the threshold of one row for all?"
    )
    twice = "you take the softmax of probabilities: does it not expect logits?"
    cut = scaled.flatten().topk(min(k, scaled.numel())).values[-1]  # ()
    first_cut = scaled[0].topk(min(k, V)).values[-1]  # ()
    return [
        (
            _sampled_from(logits, 1 / temperature, k),
            "a small temperature should sharpen the distribution, and yours flattens it: what do "
            "you do to the logits?",
        ),
        (_sampled_from(logits.softmax(-1), temperature, k), twice),
        (_kept(all_words, k).softmax(-1), twice),
        (_sampled_from(logits, 1.0, k), no_temperature),
        (_sampled_from(logits, 1.0, k) / temperature, no_temperature),
        (
            all_words * (right > 0),
            "your rows no longer sum to 1: the probability of the removed words is lost. Is the "
            "filter applied after the softmax?",
        ),
        (
            _kept(scaled, k, 0.0).softmax(-1),
            "words that are not among the k best still have probability: which score makes the "
            "softmax give exactly 0?",
        ),
        (
            all_words,
            "every word still has probability: the filter has no effect. Is its result used?",
        ),
        (
            torch.where(_kept(-scaled, k) > -math.inf, scaled, -math.inf).softmax(-1),
            "you keep the k least likely words: which end of the ranking is kept?",
        ),
        (
            _sampled_from(logits, temperature, k + 1),
            "you keep k + 1 words: does your comparison count the one that it compares with?",
        ),
        (
            _sampled_from(logits, temperature, max(1, k - 1)),
            "you keep k - 1 words: does the k-th best fall to your own threshold?",
        ),
        (
            _kept(scaled, k).softmax(0),
            "your columns sum to 1, and not your rows: over which axis is the softmax?",
        ),
        (scaled.masked_fill(scaled < cut, -math.inf).softmax(-1), whole_batch),
        (scaled.masked_fill(scaled < first_cut, -math.inf).softmax(-1), whole_batch),
        (
            right.log(),
            "these are logarithms of probabilities: the result should be probabilities.",
        ),
        (
            _kept(scaled, k),
            "these are scores, with -inf for the removed words: which step makes them "
            "probabilities?",
        ),
        (
            scaled.topk(min(k, V)).values.softmax(-1),
            "you return k probabilities a row: how is one to know whose they are? Each word keeps "
            "its own place among V.",
        ),
    ]


@exercise
def sampling_distribution(student):
    for shape, temperature, k in (((3, 7), 0.7, 3), ((2, 5), 1.6, 2), ((4, 6), 0.5, 1)):
        logits = 2 * torch.randn(shape)  # (B, V)
        answer = as_tensor(call(student, logits, temperature, k))
        known = _sampling_mistakes(logits, temperature, k)
        _expect_no_known_nan(answer, known)
        right = _sampled_from(logits, temperature, k)  # (B, V)
        compare_or_explain(answer, right, _explain_distribution, known)
    logits = torch.tensor([[2.0, -math.inf, 1.0, 0.5]])  # (1, V)
    compare_or_explain(
        call(student, logits, 0.7, 2),
        _sampled_from(logits, 0.7, 2),
        _explain_distribution,
        what="for a row in which one word already has the score -inf, the result",
    )
    logits = torch.randn(3, 4)  # (B, V)
    try:
        answer = call(student, logits, 0.7, 9)
    except (RuntimeError, IndexError, ValueError) as error:
        raise Wrong(f"k may be larger than V, and then your code fails: {error}.") from None
    compare_or_explain(
        answer,
        (logits / 0.7).softmax(-1),
        _explain_distribution,
        what="for k = 9 of only 4 words, the result",
    )
    logits = torch.tensor([[30.0, 29.9, 3.0, -2.0]])  # (1, V)
    answer = as_tensor(call(student, logits, 0.05, 3))
    expect(
        answer.isfinite().all(),
        "at temperature 0.05 your result is not finite: the logits become hundreds, and their "
        "exponentials overflow. What can be subtracted from all scores without changing the "
        "softmax?",
    )
    right = _sampled_from(logits, 0.05, 3)  # (1, V)
    compare_or_explain(answer, right, _explain_distribution)
    logits = 0.01 * torch.randn(2, 3000)  # (B, V)
    answer = as_tensor(call(student, logits, 0.05, 4))
    expect(
        answer.isfinite().all(),
        "at temperature 0.05 your result is not finite if 3,000 words are nearly alike: is a small "
        "probability raised to a power, and rounded to 0?",
    )
    compare_or_explain(answer, _sampled_from(logits, 0.05, 4), _explain_distribution)
    return "as expected at four temperatures from 0.05 to 1.6, and for k from 1 to more than V"


# 2 ------------------------------------------------------------------------------------------------


def _restored(ranked: Tensor, words: Tensor) -> Tensor:
    """What is left of ranked probabilities (B, V), summing to 1, in the words' own places."""
    return torch.zeros_like(ranked).scatter(-1, words, ranked / ranked.sum(-1, keepdim=True))


def _nucleus(probabilities: Tensor, p: float, order: Tensor | None = None) -> Tensor:
    """Top-p of (B, V); order: the words as they are added up, (B, V); None: likeliest first."""
    if order is None:
        order = probabilities.argsort(descending=True)  # (B, V)
    ranked = probabilities.double().gather(-1, order)  # (B, V)
    return _restored(ranked * (ranked.cumsum(-1) - ranked < p), order)  # (B, V)


def _nucleus_mistakes(probabilities: Tensor, p: float) -> list[tuple[Tensor, str]]:
    probabilities = probabilities.double()  # (B, V)
    ranked, words = probabilities.sort(descending=True)  # (B, V) each
    upto, right = ranked.cumsum(-1), _nucleus(probabilities, p)  # (B, V) each
    places = torch.arange(ranked.shape[-1])  # (V,)
    number = (right > 0).sum(-1, keepdim=True)  # (B, 1), of words that are kept
    fewer = (
        "what you keep sums to less than p: the word with which the sum reaches p is missing. Is "
        "the sum compared before or after a word's own probability is added?"
    )
    surely = ranked * (ranked >= p)  # (B, V)
    alone = "you compare each probability alone with p: it is their sum that should reach p."
    return [
        (_restored(ranked * (upto < p), words), fewer),
        (torch.zeros_like(ranked).scatter(-1, words, ranked * (upto < p)), fewer),
        (_restored(ranked * ((upto < p) | (places == 0)), words), fewer),
        (
            _restored(ranked * (places <= number), words),
            "you keep one word more than is needed: has the sum not reached p before it?",
        ),
        (
            probabilities * (right > 0),
            "you keep the right words, and your rows no longer sum to 1: what is to be done with "
            "what is left?",
        ),
        (
            right.gather(-1, words),
            "your numbers are right, and stand in the order of the ranking: how does each find "
            "the way back to its word's own place?",
        ),
        (_restored(surely, words), alone),
        (_restored(torch.where(surely.any(-1, keepdim=True), surely, ranked), words), alone),
        (
            _nucleus(probabilities, p, probabilities.argsort()),
            "you keep unlikely words and drop likely ones: from which end do you add up?",
        ),
        (
            _nucleus(probabilities, p, places.expand_as(words)),
            "you add up in the order of the vocabulary: which words should come first?",
        ),
        (
            _restored(ranked * (places < number[0]), words),
            "each row keeps as many words as the first: how many are needed differs from row to "
            "row.",
        ),
        (
            _restored(ranked * (ranked >= 1 - p), words),
            "you compare each probability alone with 1 - p: it is their sum that should reach p.",
        ),
        (
            torch.where(right > 0, probabilities, -math.inf).softmax(-1),
            "you take the softmax of probabilities, which are positive already: what else makes "
            "positive numbers sum to 1?",
        ),
        ((right > 0).double(), "you return which words are kept: what is the probability of each?"),
        (probabilities, "every word still has probability: the filter has no effect."),
    ]


@exercise
def nucleus(student):
    even = torch.tensor([[0.125, 0.5, 0.125, 0.25], [0.25, 0.125, 0.125, 0.5]])  # (B, V), exact
    for shape, p in (((5, 6), 0.6), ((3, 7), 0.8), ((2, 9), 0.95), ((4, 7), 0.3)):
        probabilities = (1.5 * torch.randn(shape)).softmax(-1)  # (B, V)
        answer, right = call(student, probabilities, p), _nucleus(probabilities, p)  # (B, V) each
        known = _nucleus_mistakes(probabilities, p)
        _expect_no_known_nan(as_tensor(answer), known)
        compare_or_explain(answer, right, _explain_distribution, known)
    compare_or_explain(
        call(student, even, 0.75),
        _nucleus(even, 0.75),
        _explain_distribution,
        [
            (
                _nucleus(even, 0.8),
                "with probabilities of 0.5, 0.25, 0.125 and 0.125, two words sum to exactly 0.75, "
                "and you keep three for p = 0.75: is p reached, or must it be passed?",
            ),
            (
                _nucleus(even, 0.7).new_tensor([[0, 1, 0, 0], [0, 0, 0, 1]]),
                "with probabilities of 0.5, 0.25, 0.125 and 0.125, you keep one word for p = 0.75: "
                "its sum is less than p.",
            ),
        ],
        what="for p = 0.75, which two of the words reach exactly, the result",
    )
    for p in (0.5, 1.0):
        compare_or_explain(call(student, even, p), _nucleus(even, p), _explain_distribution)
    answer = as_tensor(call(student, torch.tensor([[0.4, 0.3, 0.3]]), 0.6))
    expect(
        (answer > 0).sum() == 2,
        "of 0.4, 0.3 and 0.3 two words reach p = 0.6, and you keep another number of words: do you "
        "select by value, or by rank?",
    )
    return "the fewest words that reach p, in 20 rows and at seven values of p"


# 3 ------------------------------------------------------------------------------------------------


def _ranked(candidates: Tensor, width: int, largest=True) -> tuple[Tensor, Tensor, Tensor]:
    """The best of candidates (W, V), best first: totals, beams and words, (width,) each."""
    best = candidates.flatten().topk(width, largest=largest)  # (width,) each
    return best.values, best.indices // candidates.shape[1], best.indices % candidates.shape[1]


def _beam_mistakes(
    totals: Tensor, scores: Tensor, width: int
) -> list[tuple[tuple[Tensor, Tensor, Tensor], str]]:
    candidates = totals[:, None] + scores  # (W, V)
    W, V = scores.shape
    right, beams, words = _ranked(candidates, width)  # (width,) each
    flat = candidates.flatten().topk(width).indices  # (width,)
    split = (
        "your totals are right, but not where they come from: in the row of all candidates, how "
        "many belong to one beam?"
    )
    own_best = scores.max(-1)  # (W,) each
    own = totals + own_best.values  # (W,)
    each = own.argsort(descending=True)[:width]  # (width,) at most
    return [
        (
            _ranked(scores, width),
            "you rank the new words alone: what did the beginning of each cost?",
        ),
        (
            _ranked(totals[:, None] * scores, width),
            "you multiply, and these are logarithms: what does a product become?",
        ),
        (
            _ranked(totals[:, None] + scores.exp(), width),
            "you add a probability to a logarithm: in which of the two is the sum of a text?",
        ),
        (
            _ranked((totals[:, None] + scores).exp(), width),
            "your totals are probabilities: after some words they are 0 in float32. Why does one "
            "keep logarithms?",
        ),
        (
            _ranked(candidates, width, largest=False),
            "you keep the worst: of two log-probabilities, which belongs to the likelier text?",
        ),
        (
            (own[each], each, own_best.indices[each]),
            "you take the best word of each beam: may not two of the best come from one beam?",
        ),
        ((right, words, beams), "your totals are right: are beam and word exchanged?"),
        ((right, flat % W, flat // W), split),
        ((right, flat // W, flat % W), split),
        ((right, flat // W, flat % V), split),
        ((right, flat // width, flat % width), split),
        ((right, flat % V, flat // V), "your totals are right: are beam and word exchanged?"),
        ((right, beams, flat), "your words are larger than the vocabulary: is this a flat index?"),
        ((right, flat, words), "your beams are more than there are: is this a flat index?"),
        (
            _ranked(candidates / 2, width),
            "you divide the totals: in this step nothing is divided by a length.",
        ),
    ]


@exercise
def beam_step(student):
    for W, V, width in ((3, 7, 4), (1, 6, 3), (4, 5, 2), (2, 3, 6)):
        totals = -3 * torch.rand(W)  # (W,)
        scores = (1.5 * torch.randn(W, V)).log_softmax(-1)  # (W, V)
        _expect_beams(call(student, totals, scores, width), totals, scores, width)
    # Far apart, and unlikely as a whole story is: all of the best continue one beam.
    totals, scores = torch.tensor([-209.0, -201.0, -208.0]), torch.randn(3, 5).log_softmax(-1)
    answer = call(student, totals, scores, 2)
    _expect_beams(answer, totals, scores, 2, " if all of the best continue one beam")
    return "the best of up to 21 candidates, five times, with the beam that each continues"


def _expect_beams(answer, totals: Tensor, scores: Tensor, width: int, when: str = "") -> None:
    names = "totals", "beams", "words"
    expect(
        isinstance(answer, list | tuple) and len(answer) == 3,
        f"you return a {type(answer).__name__}, and should return three things: totals, beams and "
        "words",
    )
    found = [as_tensor(part, name) for part, name in zip(answer, names, strict=True)]
    wanted = _ranked(totals[:, None] + scores, width)  # (width,) each
    for mistake, message in _beam_mistakes(totals, scores, width):
        same = [agrees(a, b) for a, b in zip(found, mistake, strict=True)]
        expect(not all(same) or all(map(agrees, mistake, wanted)), message)
    for part, name in zip(found, names, strict=True):
        expect(
            part.dim() != 1 or len(part) == width,
            f"you return {part.numel()} {name}, and should return {width}: is `width` used?",
        )
        expect_shape(part, (width,), name)
    new, beams, words = found  # (width,) each
    expect(
        agrees(beams, beams.long()) and agrees(words, words.long()),
        "a beam or a word is a number with a fraction: is / meant to be //?",
    )
    expect(
        ((beams >= 0) & (beams < len(totals)) & (words >= 0) & (words < scores.shape[1])).all(),
        f"you name a beam that is not among the {len(totals)}, or a word not among the "
        f"{scores.shape[1]}",
    )
    expect(
        new.isfinite().all(),
        "a total of -200 becomes infinite: does a probability come in between, which is then "
        "rounded to 0?",
    )
    belong = (totals[:, None] + scores)[beams.long(), words.long()]  # (width,)
    if not agrees(new, wanted[0]):
        expect(
            not agrees(new, totals[beams.long()]),
            "your totals are those of the beginnings: what does the new word cost?",
        )
        expect(
            not agrees(new, scores[beams.long(), words.long()]),
            "your totals are those of the new words alone: what did the beginning of each cost?",
        )
        expect(
            agrees(new, belong),
            f"a total of yours is {new[0]:.2f}, and its beam and word have {belong[0]:.2f} "
            "together: how are two log-probabilities combined?",
        )
        expect(
            not agrees(new.sort(descending=True).values, wanted[0]),
            "these are the right ones, but not in the right order: the best should come first.",
        )
        raise Wrong(
            f"each total belongs to its beam and word, but the {width} best are others{when}: are "
            "all candidates of all beams compared with each other?"
        )
    expect(
        agrees(new, belong),
        "your totals are right, and beams and words are not those that have them: how do you find "
        "out where a total comes from?",
    )


# 4 ------------------------------------------------------------------------------------------------


class _Attention:
    """One cached head, right unless told otherwise. Each flag is a known mistake."""

    def __init__(self, **flags):
        self.flags, self.keys, self.values, self.x = flags, None, None, None
        self.calls = 0

    def __call__(self, x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:  # (B, T, d)
        has = self.flags.get
        self.calls += 1
        if has("exchanged"):
            w_q, w_k = w_k, w_q
        q, keys, values = x @ w_q, x @ w_k, x @ w_v  # (B, T, d) each
        if has("keys_as_values"):
            values = keys
        if self.keys is not None and not has("forgets"):
            keys = self._joined(self.keys, keys)  # (B, S, d)
            if has("again"):
                self.x = torch.cat([self.x, x], 1)  # (B, S, D)
                keys, values = self.x @ w_k, self.x @ w_v  # (B, S, d) each
            else:
                values = self._joined(self.values, values)  # (B, S, d)
        if self.keys is None or not has("keeps_first"):
            self.keys, self.values = (x @ w_k, x @ w_v) if has("keeps_last") else (keys, values)
        if has("twice"):
            self.keys = self._joined(self.keys, x @ w_k)  # (B, S + T, d)
            self.values = self._joined(self.values, x @ w_v)  # (B, S + T, d)
        if self.x is None:
            self.x = x
        T, S = x.shape[1], keys.shape[1]
        scores = q @ keys.mT / has("divisor", q.shape[-1] ** 0.5)  # (B, T, S)
        first = has("diagonal", S - T + 1) + has("shift", 0)
        future = torch.ones(T, S, dtype=torch.bool).triu(first)  # (T, S)
        if self.calls < has("unmasked_from", math.inf):
            scores = scores.masked_fill(future, has("fill", -math.inf))  # (B, T, S)
        return scores.softmax(has("axis", -1)) @ values  # (B, T, d)

    def _joined(self, old: Tensor, new: Tensor) -> Tensor:  # (B, S, d)
        return torch.cat([new, old] if self.flags.get("new_first") else [old, new], dim=1)


_ATTENTION_MISTAKES = [
    (
        {"unmasked_from": 2},
        "the prompt is right, but when several tokens are read after it, each sees those that "
        "follow: is there no mask if the cache holds something?",
    ),
    ({"unmasked_from": 1}, "a token of a prompt sees the tokens after it: where is the mask?"),
    (
        {"diagonal": 1},
        "after the first call new tokens do not see all of the cache: row 0 of the mask is no "
        "longer the first token of the text. How many keys come before it?",
    ),
    ({"shift": 1}, "each token sees the next one: on which diagonal does the mask begin?"),
    ({"fill": 0.0}, "a score of 0 is not a weight of 0: what does the softmax make of it?"),
    ({"exchanged": True}, "are queries and keys exchanged? A row of the scores is a query."),
    ({"twice": True}, "the cache holds some tokens twice: how often do you append them?"),
    ({"divisor": 1.0}, "your scores are too large: what are they divided by?"),
    ({"axis": -2}, "is your softmax over the queries? Each query shares its weight among keys."),
    (
        {"new_first": True},
        "are the new keys put before the old ones? Then the mask hides the wrong ones.",
    ),
    (
        {"forgets": True},
        "the second call does not see the first one's tokens: is anything kept, and is it used?",
    ),
    (
        {"keeps_first": True},
        "from the third call on some tokens are missing: is what the second call adds kept too?",
    ),
    (
        {"keeps_last": True},
        "from the third call on the oldest tokens are missing: does the cache keep all tokens, or "
        "only those of the last call?",
    ),
    ({"keys_as_values": True}, "are your values keys? Each has a matrix of its own."),
]


def _explain_attention(x, matrices, number: int, answer: Tensor, right: Tensor) -> None:
    """Reject the result (B, T, d) of a call by the first of its tokens that is wrong."""
    wrong = (answer - right).abs().amax((0, 2)) > 1e-5  # (T,)
    place = int(wrong.nonzero()[0])
    own = (x @ matrices[2]).double()  # (B, T, d), each token's value
    if number == 1 and place == 0:
        raise Wrong(
            "the first token can see nobody but itself, so its result is its own value, and yours "
            "is another: what are the weights of its row, and do they sum to 1?"
        )
    if number == 1:
        raise Wrong(
            f"the first call is right up to token {place - 1}, and wrong from token {place} on: do "
            "the weights of its row sum to 1, and is every token before it seen?"
        )
    expect(
        not agrees(answer, own),
        f"in call {number} each token sees only itself: where are those of the calls before?",
    )
    raise Wrong(
        f"the first call is right, and call {number}, with {x.shape[1]} new tokens, is not: print "
        "the shapes of the keys and of the mask, and which keys the mask lets through"
    )


@exercise
def attend_with_cache(student):
    B, D, d, lengths = 2, 7, 5, (4, 1, 1, 3)
    matrices = [torch.randn(D, d) / 2 for _ in range(3)]  # (D, d) each
    text, other = torch.randn(2, B, sum(lengths), D)  # (B, S, D) each
    mistakes = [(_Attention(**flags), message) for flags, message in _ATTENTION_MISTAKES]
    mistakes += [
        (_Attention(divisor=float(divisor)), "your scores are divided by another number than √d.")
        for divisor in (d, D, D**0.5)
    ]
    caches, right, shared = ({}, {}), (_Attention(), _Attention()), _Attention()
    for number, (x, y) in enumerate(
        zip(text.split(lengths, 1), other.split(lengths, 1), strict=True), 1
    ):
        before = x.clone()  # (B, T, D)
        answer = student(x, *matrices, caches[0])
        expect(torch.equal(x, before), "you change x in place, and the next layer still needs it")
        known = [(wrong(x, *matrices), message) for wrong, message in mistakes]
        what = f"the result of call {number}, which reads {x.shape[1]} new tokens,"
        explain = partial(_explain_attention, x, matrices, number)
        compare_or_explain(answer, right[0](x, *matrices), explain, known, what)
        answer = student(y, *matrices, caches[1])
        apart = "two texts with a cache each are mixed up: is something kept outside the cache?"
        shared(x, *matrices)
        known = [(shared(y, *matrices), apart)]
        what = "the result for a second text, which has a cache of its own,"
        compare(answer, right[1](y, *matrices), known, what)
    x, others = torch.randn(B, 2, D), [matrix + 0.5 for matrix in matrices]  # (B, T, D)
    again = _Attention(again=True)
    again(text, *matrices)
    compare(
        student(x, *others, caches[0]),
        right[0](x, *others),
        [
            (
                again(x, *others),
                "your results are right, and the old tokens' keys or values are computed again at "
                "each call: what should the cache keep instead?",
            )
        ],
        what="the result with other matrices, of which old keys and values know nothing,",
    )
    answer = student(text[:1, :1], *matrices, {})
    compare(answer, text[:1, :1] @ matrices[2], what="for a single token and an empty cache, it")
    return "four calls on nine tokens are equal to one pass, for two texts in turns"
