"""The checks of the exercises for notebook 02."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from checks import agrees, as_tensor, call, compare, exercise, expect, expect_shape


@exercise
def attention(student):
    for before, T, S, d, e in (((), 4, 6, 5, 3), ((), 1, 1, 3, 2), ((2, 3), 4, 5, 7, 6)):
        q, k = torch.randn(*before, T, d), torch.randn(*before, S, d)  # (…, T, d), (…, S, d)
        v = torch.randn(*before, S, e)  # (…, S, e)
        try:
            result = call(student, q, k, v)
        except (RuntimeError, IndexError):
            expect(
                not before,
                "it works for one story and fails for a batch with several heads: does each step "
                "touch the last two axes only?",
            )
            raise
        expect(
            isinstance(result, tuple | list) and len(result) == 2,
            "two things are wanted, the mixed values and the weights.",
        )
        mixed, weights = (as_tensor(part) for part in result)
        wanted = (q @ k.mT * d**-0.5).softmax(-1)  # (…, T, S)
        expect(
            not agrees(mixed, wanted) or agrees(weights, wanted),
            "the order is wanted the other way: the mixed values first, and then the weights.",
        )
        compare(weights, wanted, _weights(q, k, e), "the weights", _row)
        known = [
            (
                weights.sum(-1, keepdim=True) * v.sum(-2, keepdim=True),
                "the values are only summed.",
            ),
            (
                v.mean(-2, keepdim=True).expand(*before, T, e),
                "the values are mixed without weights.",
            ),
        ]
        compare(mixed, wanted @ v, known, "the mixture", tolerance=1e-4)
        if T > 1:
            _expect_gradient(lambda q=q, k=k, v=v: student(q, k, v)[0], q, k, v)
    return "one story and a batch with 3 heads; all rows of weights sum to 1"


def _weights(q, k, e):
    """What known mistakes would give for the weights."""
    (T, d), S = q.shape[-2:], k.shape[-2]
    dots = q @ k.mT  # (…, T, S)
    scores = dots / d**0.5  # (…, T, S)
    whole = (torch.ones(T, S).triu(1) * -1e30 + scores).softmax(-1)  # (…, T, S)
    cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT  # (…, T, S)
    columns = "your columns sum to 1, and not the rows: over which axis does the softmax go?"
    return [
        (dots.softmax(-1), "the scores are used as they are, without the root of d."),
        ((dots / d).softmax(-1), "the scores are divided by d, and not by its root."),
        ((dots * d**0.5).softmax(-1), "the scores are multiplied by the root, and not divided."),
        ((dots / S**0.5).softmax(-1), "the scores are divided by the root of the number of keys."),
        (
            (dots / T**0.5).softmax(-1),
            "the scores are divided by the root of the number of queries, and d counts entries.",
        ),
        *(
            ((dots / size**0.5).softmax(-1), "the scores are divided by the root of another size.")
            for size in (*q.shape[:-2], e)
        ),
        ((-scores).softmax(-1), "the sign of the scores is wrong: who fits best gets least."),
        (cosines.softmax(-1), "the scores are cosines: queries and keys keep their lengths."),
        ((cosines / d**0.5).softmax(-1), "the scores are cosines: vectors keep their lengths."),
        (scores.softmax(-2), columns),
        (dots.softmax(-2), columns),
        ((scores.softmax(-1)).mT, "rows and columns of the weights are exchanged."),
        (
            dots.softmax(-1) / d**0.5,
            "your rows do not sum to 1: is the division done after the softmax?",
        ),
        (scores, "these are the scores themselves: where do they become weights?"),
        (dots, "these are the dot products themselves: where do they become weights?"),
        (scores.exp(), "these are exponentials: what makes a row sum to 1?"),
        (scores / scores.sum(-1, keepdim=True), "the scores are divided without exponentials."),
        (scores.sigmoid(), "each score is squashed by itself: do the keys compete?"),
        (scores.flatten(-2).softmax(-1).view_as(scores), "one softmax runs over the whole matrix."),
        (scores.log_softmax(-1), "these are logarithms of weights."),
        (whole, "a mask hides keys, and here nothing is masked yet."),
        *(
            (scores.softmax(axis), "the softmax runs over stories or heads, and not over keys.")
            for axis in range(scores.dim() - 2)
        ),
    ]


def _row(index):
    return f"look at query {index[-2]} and key {index[-1]}"


def _expect_gradient(run, *inputs: Tensor):
    """Reject a result through which no gradient flows to an input."""
    for x in inputs:
        x.requires_grad_()
    result = run()
    flows = isinstance(result, Tensor) and result.requires_grad
    if flows:
        grads = torch.autograd.grad(result.square().sum(), inputs, allow_unused=True)
        flows = all(grad is not None for grad in grads)
    expect(
        flows,
        "the numbers are right, but no gradient flows to what they are made of, so nothing can be "
        "learned: is a tensor detached, or taken out of PyTorch?",
    )
    for x in inputs:
        x.requires_grad_(False)


@exercise
def causal_weights(student):
    for before, T in (((), 5), ((2, 3), 7), ((), 1)):
        scores = torch.randn(*before, T, T)  # (…, T, T)
        weights = as_tensor(call(student, scores), "the result")
        wanted = _causal(scores)  # (…, T, T)
        if weights.shape == wanted.shape:
            _diagnose(weights, wanted, scores)
        compare(weights, wanted, _causal_mistakes(scores), "the weights", _causal_place)
    scores = 2 * torch.randn(6, 6)  # (T, T)
    for past, later in ((0, 30), (0, 300), (-2000, -2000), (-2000, 0)):
        loud = scores + past + (later - past) * torch.ones(6, 6).triu(1)  # (T, T)
        weights = expect_shape(call(student, loud), (6, 6))
        case = f"if the scores of the past are about {past} and those of the future about {later}, "
        expect(
            not weights.isnan().any(),
            f"{case}your rows become nan: are weights divided by their sum when all are rounded to "
            "0?",
        )
        expect(
            (weights.triu(1) == 0).all(),
            f"{case}the future has weight: is the score that you give it low enough, whatever the "
            "others are?",
        )
        expect(
            agrees(weights, _causal(scores), 1e-3),
            f"{case}the weights of the past are wrong: are they divided by their sum, after the "
            "future took its share?",
        )
    scores[:, 2] = 0
    expect(
        agrees(as_tensor(call(student, scores)), _causal(scores)),
        "a score of the past that is exactly 0 is masked too: how do you tell which places are the "
        "future?",
    )
    _expect_gradient(lambda: student(scores), scores)
    return "no token reads a later one, however high or low the scores are"


def _causal(scores):
    T = scores.shape[-1]
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)


def _causal_mistakes(scores):
    """What known mistakes would give for the causal weights."""
    T = scores.shape[-1]
    future = torch.ones(T, T).triu(1).bool()  # (T, T)
    plain = scores.softmax(-1)  # (…, T, T)
    zeros = (
        "your rows sum to 1, but the future has weight, as much as a score of 0 gives: what is the "
        "exponential of 0?"
    )
    columns = "your columns sum to 1, and not the rows: over which axis does the softmax go?"
    past = scores.masked_fill(future.mT, -torch.inf)  # (…, T, T)
    return [
        (plain, "your rows sum to 1, but the future has weight: is anything masked at all?"),
        (
            plain.masked_fill(future, 0.0),
            "the future has no weight, but your rows sum to less than 1: is the mask applied after "
            "the softmax?",
        ),
        (
            plain.masked_fill(future, -torch.inf),
            "the future has the weight -inf: is the mask added after the softmax?",
        ),
        (scores.masked_fill(future, 0.0).softmax(-1), zeros),
        (
            (scores - future.float()).softmax(-1),
            "1 is taken from the scores of the future, which is not low enough.",
        ),
        (
            (scores + future.float()).softmax(-1),
            "1 is added to the scores of the future: what makes an exponential vanish?",
        ),
        (past.softmax(-1), "the past is masked, and the future is read: which half of the matrix?"),
        (
            past.masked_fill(torch.eye(T).bool(), -torch.inf).softmax(-1),
            "the past is masked, and the token itself: which half of the matrix?",
        ),
        (scores.masked_fill(future, -torch.inf).softmax(-2), columns),
        (scores.softmax(-2).masked_fill(future, 0.0), columns),
        (scores.softmax(-2), columns),
        (
            scores.masked_fill(future, -torch.inf),
            "these are masked scores: where do they become weights?",
        ),
        ((~future).float().expand_as(scores), "this is the mask itself: where are the scores?"),
        (
            (~future).float().expand_as(scores) / (torch.arange(T) + 1.0)[:, None],
            "every token of the past has the same weight: where are the scores?",
        ),
        (
            _causal(scores.mT),
            "rows and columns of the scores are exchanged: row t belongs to the token that reads.",
        ),
        *(
            (twice, "the softmax is applied twice: what does the second one make of weights?")
            for twice in (_causal(plain), _causal(scores).softmax(-1))
        ),
        (_causal(scores / T**0.5), "the scores are divided by a root, which was done before."),
    ]


def _diagnose(weights, wanted, scores):
    """Reject weights that see one place too many or too few."""
    T = scores.shape[-1]
    places = torch.arange(T)
    away = places[None] - places[:, None]  # (T, T): how far ahead the column is
    diagonal = weights.diagonal(dim1=-2, dim2=-1)  # (…, T)
    if T == 1 or agrees(weights, wanted) or weights.isnan().all():
        return
    expect(
        not ((diagonal[..., 1:] == 0) | diagonal[..., 1:].isnan()).all()
        or weights[..., 0, 1:].nan_to_num().any()
        or (weights * (away > 0)).nan_to_num().any(),
        "a token has no weight on itself: should it not read itself?",
    )
    ahead = weights.masked_fill(away != 1, 0.0), weights.masked_fill(away <= 1, 0.0)
    expect(
        weights.isnan().any() or not (ahead[0].sum() > 0.01 and ahead[1].abs().sum() == 0),
        "each token reads the next token too: at which diagonal does the future begin?",
    )
    rows = (weights.sum(-1) - 1).abs().max()
    share = float((weights * (away > 0)).nan_to_num().max())
    known = any(agrees(weights, mistake) for mistake, _ in _causal_mistakes(scores))
    expect(
        known or weights.isnan().any() or not (rows < 1e-4 and share > 0),
        f"your rows sum to 1, but the future has weight, up to {share:.2g}: does every later token "
        "have a score of which the exponential vanishes?",
    )


def _causal_place(index):
    if index[-1] > index[-2]:
        return f"token {index[-2]} should give token {index[-1]}, which comes later, a weight of 0"
    return f"look at how token {index[-2]} reads token {index[-1]}"


@exercise
def split_into_heads(student):
    between = (
        "the shape is right and the content is not: the cut goes between tokens, so that a head "
        "does not have its share of every token."
    )
    for B, T, H, d in ((2, 5, 3, 7), (3, 4, 2, 5), (1, 1, 6, 1), (1, 7, 1, 4), (2, 8, 3, 8)):
        x = torch.randn(B, T, H * d)  # (B, T, D)
        try:
            result = as_tensor(call(student, x, H))
        except (RuntimeError, TypeError) as error:
            expect(
                "must be tuple of ints" not in str(error) and "float" not in str(error),
                "PyTorch wants whole numbers as sizes: does / give one?",
            )
            expect(
                "shape" not in str(error) or "invalid for input" not in str(error),
                f"the sizes do not multiply to those of x, {tuple(x.shape)}, for {H} heads: are "
                "they all computed from x and num_heads, or is there one like 8 heads?",
            )
            raise
        wanted = torch.stack([x[..., h * d : (h + 1) * d] for h in range(H)], dim=1)
        every = x.view(B, T, d, H)  # (B, T, d, H)
        known = [
            (x.view(B, H, T, d), between),
            (
                every.permute(0, 3, 1, 2),
                "the shape is right and the content is not: a head has every H-th number, and "
                "should have d of them that stand side by side.",
            ),
            (every.permute(0, 3, 2, 1), "the axes of tokens and of their numbers are exchanged."),
            (x.mT.reshape(B, H, T, d), between),
            (x.view(B, H, d, T).mT, between),
            (wanted.transpose(1, 2), "the axes of heads and tokens are exchanged."),
            (wanted.mT, "the axes of tokens and of their numbers are exchanged."),
            (wanted.flip(1), "the heads are in the opposite order."),
            (
                torch.stack([x[..., i * H : (i + 1) * H] for i in range(d)], dim=1),
                "there are d heads of num_heads numbers each: should it be the other way round?",
            ),
            (wanted.transpose(0, 1), "the heads come before the stories."),
            (wanted[:, 0], "this is the first head alone."),
            (x.view(B, T, H, d).reshape(B, H, T, d), "a second reshape does not exchange axes."),
        ]
        compare(result, wanted, known, "the result", "look at head {0[1]} and token {0[2]}".format)
    _expect_gradient(lambda: student(x, H), x)
    return f"5 tensors; each head has its own {d} columns of all {T} tokens in the last"


@exercise
def join_heads(student):
    for B, T, H, d in ((2, 5, 3, 7), (3, 4, 2, 5), (1, 1, 6, 2), (1, 7, 1, 4), (2, 3, 8, 3)):
        x = torch.randn(B, H, T, d)  # (B, H, T, d)
        try:
            result = as_tensor(call(student, x))
        except RuntimeError as error:
            expect(
                "view size" not in str(error),
                "`view` only walks through numbers that lie in order, and after the axes are "
                "exchanged they do not. PyTorch's message says what copies them.",
            )
            expect(
                "invalid for input" not in str(error),
                f"the sizes do not multiply to those of x, {tuple(x.shape)}: are they all computed "
                "from it?",
            )
            raise
        wanted = torch.cat(list(x.unbind(1)), dim=-1)  # (B, T, D)
        heads = x.transpose(1, 2)  # (B, T, H, d)
        known = [
            (
                x.reshape(B, T, H * d),
                "the shape is right and the content is not: two axes are joined before the axes "
                "are exchanged, and a row holds numbers of several tokens.",
            ),
            (
                x.permute(2, 0, 1, 3).reshape(B, T, H * d),
                "the shape is right and the content is not: when axes are joined, tokens come "
                "before stories.",
            ),
            (
                heads.mT.reshape(B, T, H * d),
                "the heads take turns, number by number, and should stand side by side.",
            ),
            (x.sum(1), "the heads are added up, and should stand side by side."),
            (x.mean(1), "the heads are averaged, and should stand side by side."),
            (x.amax(1), "only the largest number of all heads is left."),
            (x[:, 0], "this is the first head alone."),
            (x.flatten(1, 2), "the heads stand below each other, and should stand side by side."),
            (heads.flatten(1, 2), "the tokens of all heads are mixed in one axis."),
            (heads, "the heads still have an axis of their own."),
            (wanted.mT, "the axes of tokens and of their numbers are exchanged."),
            (heads.flip(2).flatten(2), "the heads are in the opposite order."),
        ]
        compare(result, wanted, known, "the result", "look at token {0[1]}".format)
    _expect_gradient(lambda: student(x), x)
    return f"5 tensors; in the last, {H} heads of {d} numbers make {H * d} for each token"


OFFSETS = {
    -4: "it reads four words back: is the turn in the queries, in the keys, or in both?",
    -3: "it reads three words back: by how much does a hand turn in two words?",
    -1: "it reads one word back: by how much does a hand turn in two words?",
    0: "each word reads itself: is nothing turned, or are queries and keys turned alike?",
    1: "without the mask it would read the next word, one ahead: which way does the hand turn?",
    2: "without the mask it would read two words ahead: which way does the hand turn? (A row that "
    "is multiplied by the transpose of a matrix is not one that is multiplied by the matrix.)",
    4: "without the mask it would read four words ahead.",
}
FIXED = (
    "it works for the hands of the course, and not for other hands: are all angles and all sizes "
    "taken from omega?"
)


@exercise
def two_words_back(student):
    # The hands of the course, and others.
    for base, n, length in ((10_000 ** (36 / 296), 18, 64), (300.0, 23, 48), (20.0, 25, 33)):
        omega = base ** (-torch.arange(n) / n)  # (n,)
        angle = torch.outer(torch.arange(length).double(), omega.double())  # (T, n)
        P = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (T, 2n)
        try:
            matrices = call(student, omega)
        except (RuntimeError, IndexError):
            expect(n == 18, FIXED)
            raise
        expect(
            isinstance(matrices, tuple | list) and len(matrices) == 2,
            "two matrices are wanted, W_Q and W_K.",
        )
        if n != 18:
            expect(all(len(as_tensor(matrix)) == 2 * n for matrix in matrices), FIXED)
        W_Q, W_K = (
            expect_shape(matrix, (2 * n, 2 * n), name).double()
            for name, matrix in zip(("W_Q", "W_K"), matrices, strict=True)
        )
        scores = (P @ W_Q.mT) @ (P @ W_K.mT).mT / math.sqrt(2 * n)  # (T, T)
        weights = _causal(scores)  # (T, T)
        expect(not weights.isnan().any(), "the weights are nan: are the matrices finite?")
        least = float(weights.diagonal(-2).min())
        if n == 18:
            said = f"at least {least:.3f} of the weight is two words back, and most for other hands"
        if least < 0.9 if n == 18 else not _reads_two_back(weights):
            _expect_place(scores, least, omega, W_Q.mT @ W_K)
    return said


def _reads_two_back(weights):
    return torch.equal(weights.argmax(-1)[2:], torch.arange(len(weights) - 2))


def _expect_place(scores, least, omega, product):
    """Say where a head looks that does not look two words back; product: W_Qᵀ W_K, (2n, 2n)."""
    T, n = len(scores), len(omega)
    inner = slice(6, T - 6)
    ahead = scores.argmax(-1) - torch.arange(T)  # (T,): where it would look without the mask
    usual = int(ahead[inner].mode().values)
    share = float((ahead[inner] == usual).float().mean())
    if share > 0.9 and usual == -2:
        expect(
            False,
            f"it looks at the right word, but with a weight of {least:.2f} at the least: it is not "
            "sharp enough. What makes the scores differ more?",
        )
    expect(n == 18, FIXED)
    (a, b), (c, d) = product.view(n, 2, n, 2).diagonal(dim1=0, dim2=2)  # (n,) each
    length, angle = torch.hypot(a + d, b - c), torch.atan2(b - c, a + d)  # (n,) each
    if torch.stack([a, b, c, d]).norm() > 0.9 * product.norm():  # each hand by itself
        mirrored = torch.hypot(a - d, b + c)  # (n,), 0 for a turn
        expect(
            mirrored.norm() < 0.1 * length.norm(),
            "the two numbers of a hand are mirrored or stretched, and not only turned: is each "
            "sine there, with its sign?",
        )
        alike = (length * (angle + usual * omega).cos()).sum() / length.sum()  # ()
        back = (angle / omega).tolist()  # in words, n of them
        expect(
            alike > 0.99,
            f"the hands turn by different numbers of words: hand 0 turns back by {back[0]:.2f}, "
            f"and hand {n - 1} by {back[-1]:.2f}. Which angle is two words for each?",
        )
    expect(share <= 0.9 or usual not in OFFSETS, OFFSETS.get(usual, ""))
    expect(
        False,
        f"it looks at no fixed distance; the word two back has a weight of {least:.2f} at the "
        "least. Sine and cosine of one hand take turns in P: does each turn mix the two numbers of "
        "one hand?",
    )
