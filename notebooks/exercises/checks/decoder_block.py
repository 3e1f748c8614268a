"""The checks of the exercises for notebook 03. Sizes differ, so that a swapped axis shows."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from checks import agrees, as_tensor, call, compare, exercise, expect, expect_shape
from helpers import model as course
from helpers.model import ModelConfig

TINY = {"vocab_size": 23, "embedding_dim": 11, "d_model": 14, "num_layers": 3, "num_heads": 2}
TINY |= {"d_ff": 17, "context_length": 9}
TOLERANCE = 1e-4  # relative, or absolute near 0


def expect_close(answer, right: Tensor, mistakes: dict, otherwise: str) -> None:
    """`compare` with {message: what the mistake gives, or several such}.

    otherwise: what to say if the result is of no known mistake.
    """
    known = [
        (result, message)
        for message, results in mistakes.items()
        for result in (results if isinstance(results, tuple) else (results,))
    ]
    compare(answer, right, known, where=lambda index: otherwise, tolerance=TOLERANCE)


def expect_gradient(student, inputs: list[Tensor], right) -> None:
    """The gradient with respect to each input is that of `right`."""
    found = []
    for function in (student, right):
        leaves = [t.clone().requires_grad_() for t in inputs]
        answer = function(*leaves)
        expect(
            answer.requires_grad,
            "no gradient comes back from your result: .detach(), .data or torch.no_grad()?",
        )
        weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1))
        grads = torch.autograd.grad((answer * weights).sum(), leaves, materialize_grads=True)
        found.append(torch.cat([grad.flatten() for grad in grads]))
    expect(
        agrees(*found, TOLERANCE),
        "the values are right, and their gradient is not: does something leave the graph, by "
        ".detach(), .data, .item() or torch.no_grad()?",
    )


# 1 ----------------------------------------------------------------------------------------------


def normed(x, gain, bias, eps=1e-5, dim=-1, spread=None):
    """LayerNorm over `dim`; spread: from differences, x and dim to what is divided by."""
    dim = tuple(range(x.dim())) if dim is None else dim
    centred = x - x.mean(dim, keepdim=True)  # (…, D)
    if spread is None:
        spread = (centred.square().mean(dim, keepdim=True) + eps).sqrt()  # (…, 1)
    return gain * centred / spread + bias  # (…, D)


@exercise
def layer_norm(student):
    torch.manual_seed(0)
    x = 5 * torch.randn(3, 5, 7) + 2  # (B, T, D)
    one, zero = torch.ones(7), torch.zeros(7)  # (D,) each
    answer = expect_shape(call(student, x, one, zero), x.shape)  # (B, T, D)
    variance, square = x.var(-1, unbiased=False, keepdim=True), x.square().mean(-1, keepdim=True)
    whole = "do you take mean and variance of the whole tensor? A token must not see the others."
    tokens = "do you take mean and variance over the tokens? Which axis holds one token's numbers?"
    expect_close(
        answer,
        normed(x, one, zero),
        {
            "your variance is a little too large: does it divide by D - 1, and not by D?": normed(
                x, one, zero, spread=x.std(-1, keepdim=True)
            ),
            whole: normed(x, one, zero, dim=None),
            tokens: tuple(normed(x, one, zero, dim=dim) for dim in (0, 1, (0, 1))),
            "do you take mean and variance of a whole story? A token must not see the "
            "others.": normed(x, one, zero, dim=(1, 2)),
            "a token's mean is not 0 in your result: is the mean subtracted?": x / square.sqrt(),
            "a token's mean is not 0 in your result: is the mean subtracted from x itself, too?": (
                x / variance.sqrt()
            ),
            "the variance is the mean of (x - μ)². Is yours the mean of x²?": normed(
                x, one, zero, spread=square.sqrt()
            ),
            "you divide by something too large: is there a square root missing?": normed(
                x, one, zero, spread=variance
            ),
            "the mean is subtracted, but nothing is divided.": normed(x, one, zero, spread=1),
            "do you divide by the length of the vector, and not by its standard deviation? √D "
            "lies between them.": normed(x, one, zero, spread=(variance * 7).sqrt()),
        },
        f"with gain 1 and bias 0 a token's numbers should have mean 0 and variance 1. Yours have "
        f"mean {answer[0, 0].mean():.2f} and variance {answer[0, 0].var(unbiased=False):.2f}.",
    )
    gain, bias = torch.randn(7), torch.randn(7)  # (D,) each
    plain = normed(x, one, zero)  # (B, T, D)
    expect_close(
        call(student, x, gain, bias),
        normed(x, gain, bias),
        {
            "neither gain nor bias has an effect.": plain,
            "the gain has no effect.": plain + bias,
            "the bias has no effect.": gain * plain,
            "the bias is multiplied by the gain: which of the two comes first?": gain
            * (plain + bias),
            "are gain and bias swapped?": bias * plain + gain,
            "is the gain added to 1? It is 1 itself at the start.": (1 + gain) * plain + bias,
            "is the gain applied before the norm, which forgets it again?": normed(
                gain * x, one, bias
            ),
            "are gain and bias applied before the norm? It forgets them again.": normed(
                gain * x + bias, one, zero
            ),
            "is the bias subtracted?": gain * plain - bias,
        },
        "without gain and bias your norm is right, with them it is not.",
    )
    small, eps = x / 100, 3e-3
    spread = small.var(-1, unbiased=False, keepdim=True).sqrt()  # (B, T, 1)
    expect_close(
        call(student, small, gain, bias, eps),
        normed(small, gain, bias, eps),
        {
            "your `eps` is added after the square root. It belongs to the variance.": normed(
                small, gain, bias, spread=spread + eps
            ),
            "your `eps` has no effect: where would a division by 0 be possible?": normed(
                small, gain, bias, spread=spread
            ),
            "is `eps` a number in your code? It is an argument, with a default.": normed(
                small, gain, bias, 1e-5
            ),
            "your `eps` is squared. It belongs to the variance as it is.": normed(
                small, gain, bias, eps**2
            ),
            "your `eps` only sets a smallest variance. It is added to each.": normed(
                small, gain, bias, spread=(spread**2).clamp(min=eps).sqrt()
            ),
        },
        "with small numbers, for which `eps` matters, your result differs: where does it stand?",
    )
    level = call(student, torch.full((7,), 3.0), gain, bias)  # (D,)
    level = expect_shape(level, (7,), "the norm of one token")
    expect(agrees(level, bias), "a token of equal numbers should become the bias. Yours does not.")
    wide = torch.randn(2, 3, 4, 6)  # (…, D)
    one, zero = torch.ones(6), torch.zeros(6)  # (D,) each
    answer = expect_shape(call(student, wide, one, zero), wide.shape)  # (…, D)
    expect(
        agrees(answer, normed(wide, one, zero), TOLERANCE),
        "for x of shape (2, 3, 4, 6) your result is wrong: it must work whatever comes before the "
        "last axis.",
    )
    expect_gradient(student, [x, gain, bias], normed)
    gap = (call(student, x, gain, bias) - normed(x, gain, bias)).abs().max()
    return f"{x.numel()} numbers as PyTorch's norm, within ≈{max(gap.item(), 1e-7):.0e}"


# 2 ----------------------------------------------------------------------------------------------


@exercise
def number_of_parameters(student):
    def answers(**changes):
        config = ModelConfig(**TINY | changes)
        found = as_tensor(call(student, config), "the number")
        expect(
            found.numel() == 1 and found == int(found),
            f"your function returned {found.tolist()}, and not a whole number.",
        )
        return int(found), course.Decoder(config).num_parameters()

    def slope(**changes):
        """By how much answer and truth rise if one size grows."""
        (low, true_low), (high, true_high) = answers(), answers(**changes)
        return high - low, true_high - true_low

    yours, truth = answers()
    more, _ = slope(num_heads=7)
    expect(
        more == 0,
        "your number changes with the number of heads. However many they are, they share the "
        "width D.",
    )
    more, _ = slope(context_length=10)
    expect(
        more == 0,
        "your number changes with context_length. Positions are computed, and the mask is no "
        "parameter.",
    )
    E, D, F = TINY["embedding_dim"], TINY["d_model"], TINY["d_ff"]
    more, right = slope(num_layers=4)
    expect(more != 0, "your number does not change with the number of blocks, num_layers.")
    block = {
        "are the biases of linear layers in a block counted? There are six of them or more, by "
        "the output of each layer.": -(4 * D + F + D),
        "are the biases of the attention's layers counted?": -4 * D,
        "are the biases of the feed-forward layers counted?": -(F + D),
        "two norms of a block: is one of them missing, or its gains, or its biases?": -2 * D,
        "the two norms of a block are not counted.": -4 * D,
        "a block is too small by D²: is each layer of attention counted?": -D * D,
        "a block is too small by D² + D: is each layer of attention counted?": -(D * D + D),
        "queries, keys and values are three matrices. Is only one counted?": -2 * D * D,
        "queries, keys and values are three layers. Is only one counted?": -2 * (D * D + D),
        "feed-forward has two matrices, D × F and F × D. Is only one counted?": -D * F,
        "feed-forward has two layers. Is only the first counted?": -(F * D + D),
        "feed-forward has two layers. Is only the second counted?": -(D * F + F),
    }
    for message, gap in block.items():
        expect(more - right != gap, message)
    expect(
        abs(more - right) != F - D,
        "the biases of the two feed-forward layers have different sizes: F, and D.",
    )
    rise, true_rise = slope(d_ff=18)
    expect(
        rise == true_rise,
        f"if F grows by 1, all feed-forward layers together grow by {true_rise} numbers, yours by "
        f"{rise}. Do you use d_ff?",
    )
    expect(
        more == right,
        f"a block more adds {right:,} numbers, in your formula {more:,}. Which part of a block?",
    )
    rise, true_rise = slope(vocab_size=24)
    ends = {
        "a word has a row in the embedding, E wide, and a row and a bias in the output layer. Is "
        "only one table counted?": (-(D + 1), -D, -(E + 1), -E, -(E + D)),
        "a word more: is the bias of the output layer counted?": (-1,),
        "a word more: how wide is a row of each table? One is E wide, and one D.": (E - D, D - E),
    }
    for message, gaps in ends.items():
        expect(rise - true_rise not in gaps, message)
    expect(
        rise == true_rise,
        f"a word more in the vocabulary adds {true_rise} numbers, in your formula {rise}.",
    )
    rest = {
        "the projection from E to D is not counted.": (-(E * D + D),),
        "the bias of the projection is not counted, or its size is wrong.": (-D, E - D),
        "the matrix of the projection is not counted.": (-E * D,),
        "the final norm is not counted.": (-2 * D,),
        "neither the projection nor the final norm is counted.": (-(E * D + 3 * D),),
    }
    rise, true_rise = slope(embedding_dim=12)
    if rise == true_rise:
        rest["is the final norm counted with gain and bias, and the projection with its bias?"] = (
            yours - truth,
        )
    for message, gaps in rest.items():
        expect(yours == truth or yours - truth not in gaps, message)
    expect(rise != true_rise + 1, "has the embedding a bias in your formula? It is a table alone.")
    expect(
        rise == true_rise,
        f"if a word vector gets one number more, the model grows by {true_rise} numbers, in your "
        f"formula by {rise}. What is E wide?",
    )
    for changes in ({"d_model": 18}, {"d_ff": 5, "num_layers": 1}, {"embedding_dim": 14}):
        yours, truth = answers(**changes)
        expect(
            yours == truth,
            f"with {', '.join(f'{name}={size}' for name, size in changes.items())} and the rest "
            f"as before, your formula gives {yours:,} instead of {truth:,}: is a size fixed?",
        )
    full = call(student, ModelConfig())
    expect(full == 8_940_768, f"for the full model your formula gives {full:,}.")
    return f"the assignment's model has {int(full):,} parameters"


# 3 ----------------------------------------------------------------------------------------------


def random_parameters(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gains of 1 and biases of 0 could hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return module.eval()


def causal(T: int) -> Tensor:
    return torch.full((T, T), float("-inf")).triu(1)  # (T, T)


@exercise
def decoder_block(student):
    block = random_parameters(course.DecoderBlock(ModelConfig(**TINY)))
    n1, n2, feed = block.attention_norm, block.feed_forward_norm, block.feed_forward
    x = torch.randn(3, 5, 14, generator=torch.Generator().manual_seed(1))  # (B, T, D)

    class Pair(tuple):
        """What attention returns: whoever adds it to a tensor is told."""

        def __radd__(self, other):
            expect(False, "attention returns two things, the mixed tokens first. You add both.")

        __add__ = __radd__

    def attend(x, mask=None):
        expect(not isinstance(x, tuple), "attention got a tuple: whose two things are these?")
        expect(mask is not None, "attention got no mask, so each token would see the future.")
        return Pair(block.attention(x, mask))

    with torch.no_grad():
        answer = call(student, x, causal(5), n1, attend, n2, feed)
        expect(
            not isinstance(answer, tuple),
            "return the stream alone: the block does not need attention's weights.",
        )
        answer = expect_shape(answer, x.shape)  # (B, T, D)

        def attention(x, mask=None):
            return block.attention(x, causal(5) if mask is None else mask)[0]

        right = x + attention(n1(x))  # (B, T, D), so far
        right = right + feed(n2(right))  # (B, T, D)
        seen = x + attention(n1(x), torch.zeros(5, 5))  # (B, T, D): every token sees all
        post = n1(x + attention(x))  # (B, T, D)
        mixed = attention(n1(x))  # (B, T, D)
        again = n1(x) + mixed  # (B, T, D): the normed copy goes on
        upside = x + attention(n1(x), causal(5).T)  # (B, T, D)
        naked = x + attention(x)  # (B, T, D)
        whole = x + feed(n2(x))  # (B, T, D)
        swapped = x + attention(n2(x))  # (B, T, D)
        stream = (
            "the norms stand in the stream: its next value is a normed one. A part reads only a "
        )
        stream += "copy that is normed."
        alone = "a part overwrites the stream, and should add to it: "
        unnormed = " reads the stream as it is. Which copy should it read?"
        expect_close(
            answer,
            right,
            {
                "you norm after the sum, as the transformer of 2017 did. A pre-norm block adds to "
                "a stream that is never normed.": n2(post + feed(post)),
                alone + "attention.": mixed + feed(n2(mixed)),
                alone + "feed-forward.": feed(n2(x + mixed)),
                alone + "both.": feed(n2(mixed)),
                "the sum lacks what attention wrote: your second addition starts from the first "
                "x.": x + feed(n2(x + mixed)),
                "the sum lacks the x with which the block began.": mixed + feed(n2(x + mixed)),
                stream: (
                    n2(again) + feed(n2(again)),
                    n2(x + mixed) + feed(n2(x + mixed)),
                    again + feed(n2(again)),
                ),
                "you run attention and feed-forward side by side. Feed-forward should read what "
                "attention has just added.": x + mixed + feed(n2(x)),
                "feed-forward reads only what attention wrote, and should read the whole stream.": x
                + mixed
                + feed(n2(mixed)),
                "is one norm used for both parts, or are the two swapped? Each part has its own "
                "norm.": (
                    x + mixed + feed(n1(x + mixed)),
                    swapped + feed(n1(swapped)),
                    swapped + feed(n2(swapped)),
                ),
                "feed-forward comes first in your block, and should come second.": whole
                + attention(n1(whole)),
                "attention" + unnormed: naked + feed(n2(naked)),
                "feed-forward" + unnormed: x + mixed + feed(x + mixed),
                "attention and feed-forward" + unnormed: naked + feed(naked),
                "only attention is there; feed-forward adds nothing.": x + mixed,
                "only feed-forward is there; attention adds nothing.": whole,
                "every token sees the future: does attention get the mask?": seen + feed(n2(seen)),
                "the first x is added once too often.": x + right,
                "you norm what a part writes. What it reads is to be normed.": (
                    x + n1(attention(x)) + n2(feed(x + n1(attention(x)))),
                    x + n1(attention(x)) + feed(n2(x + n1(attention(x)))),
                ),
                "does attention get another mask than the one that you were given?": (
                    upside + feed(n2(upside))
                ),
                "only the second norm stands after its sum. Both stand before their parts.": (
                    n2(x + mixed + feed(x + mixed))
                ),
                "your sum is normed at the end. The stream of a pre-norm block is not.": (
                    n1(right),
                    n2(right),
                ),
            },
            "compare your code with the drawing of a block in notebook 03, arrow by arrow.",
        )
        one = x[:1, :1]  # (1, 1, D)
        single = expect_shape(call(student, one, causal(1), n1, attend, n2, feed), (1, 1, 14))
        expect(
            agrees(single, block(one, causal(1))[0], TOLERANCE),
            "for a single token your block is wrong: is a size fixed?",
        )
    expect_gradient(
        lambda x: student(x, causal(5), n1, attend, n2, feed), [x], lambda x: block(x, causal(5))[0]
    )
    gap = (answer - right).abs().max().item()
    return f"{x.shape[0] * x.shape[1]} tokens as the course's block, within ≈{max(gap, 1e-7):.0e}"


# 4 ----------------------------------------------------------------------------------------------


@torch.no_grad()
def give_weights(theirs: nn.Module, ours: course.Decoder) -> None:
    """Copy the weights of the course's decoder into a student's, whose names may be any."""
    config = ours.config
    D = config.d_model
    blocks = [m for m in theirs.modules() if isinstance(m, course.DecoderBlock)]
    held = [b for value in vars(theirs).values() for b in blocks_outside(value)]
    expect(
        not held,
        "your blocks are in a plain list, where PyTorch does not see their parameters: what is "
        "nn.ModuleList for?",
    )
    alike = " Are all of them the same block?" if len(blocks) == 1 else ""
    expect(
        len(blocks) == len(ours.blocks),
        f"your model holds {len(blocks)} different DecoderBlocks, and config.num_layers is "
        f"{len(ours.blocks)}.{alike}",
    )
    for mine, yours in zip(ours.blocks, blocks, strict=True):
        yours.load_state_dict(mine.state_dict())
    inside = {id(p) for block in blocks for p in block.parameters()}
    free = [
        (owner, f"{path}.{name}".strip("."), p)
        for path, owner in theirs.named_modules()
        for name, p in owner.named_parameters(recurse=False)
        if id(p) not in inside
    ]

    def give(source: Tensor, what: str, beside=None, ones=False):
        """To the first free parameter of this shape that fits best. Returns the module it is in."""
        shapes = {source.shape, source.shape[::-1]}
        fits = [entry for entry in free if entry[2].shape in shapes]
        if isinstance(beside, nn.Linear):
            fits = [entry for entry in fits if entry[0] is beside]
        expect(
            fits,
            f"your model has no parameters for {what}, of shape {tuple(source.shape)}. It has "
            f"{describe({name: tuple(p.shape) for _, name, p in free}) or 'none'} left.",
        )
        # At first the gain of a norm is 1, and no bias is.
        best = max(fits, key=lambda e: (e[0] is beside, bool((e[2] == 1).all()) is ones))
        free.remove(best)
        best[2].copy_(source if best[2].shape == source.shape else source.mT)
        return best[0]

    give(ours.embedding.weight, "the embedding, V × E")
    layer = give(ours.projection.weight, "the projection from E to D")
    give(ours.projection.bias, "the bias of the projection", layer)
    layer = give(ours.output.weight, "the output layer from D to V")
    give(ours.output.bias, "the bias of the output layer", layer)
    layer = give(ours.norm.gain, "the gain of the final norm", ones=True)
    give(ours.norm.bias, "the bias of the final norm", layer)
    spare = {name: tuple(p.shape) for _, name, p in free if p.requires_grad}
    expect(
        (config.context_length, D) not in spare.values(),
        "your positions are learned, as parameters. The sinusoids are constants.",
    )
    expect(not spare, f"your model has parameters that a decoder does not need: {describe(spare)}.")


def describe(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def blocks_outside(value) -> list:
    values = value.values() if isinstance(value, dict) else value
    if not isinstance(values, list | tuple) or isinstance(value, nn.Module):
        return []
    return [item for item in values if isinstance(item, course.DecoderBlock)]


def scored(
    model, ids, *, scale=None, positions=1.0, mask=None, norm=True, both=1.0, after=None, bias=True
):
    """The logits of the course's decoder, with one thing changed.

    after: what is done with the stream after each block, of it and the stream before.
    bias: whether the projection's bias is multiplied by √D too.
    """
    T, D = ids.shape[1], model.config.d_model
    scale = D**0.5 if scale is None else scale
    x = model.projection(model.embedding(ids)) * scale + positions * model.positions[:T]
    x = x * both - (0.0 if bias else model.projection.bias * (scale - 1))  # (B, T, D)
    for block in model.blocks:
        before = x  # (B, T, D)
        x, _ = block(x, model.mask[:T, :T] if mask is None else mask)  # (B, T, D)
        x = x if after is None else after(x, before)  # (B, T, D)
    return model.output(model.norm(x) if norm else x)  # (B, T, V)


@exercise
def decoder(student):
    config = ModelConfig(**TINY)
    expect(isinstance(student, type) and issubclass(student, nn.Module), "Decoder must be a class.")
    ours = random_parameters(course.Decoder(config))
    theirs = call(student, config).eval()
    ids = torch.randint(1, 23, (3, 9), generator=torch.Generator().manual_seed(2))  # (B, T)
    short = ids[:2, :5]  # (B, T)
    with torch.no_grad():
        theirs(ids)  # what is not written yet shows before what is missing
        give_weights(theirs, ours)
        right, answer = ours(ids), theirs(ids)  # (B, T, V) each
        expect(
            not isinstance(answer, tuple), "return the logits alone, one tensor of shape (B, T, V)."
        )
        answer = expect_shape(answer, right.shape, "your logits")  # (B, T, V)
        D = config.d_model
        chance = "your model returns probabilities (or their logarithms). Logits are the scores "
        chance += "before the softmax."
        expect_close(
            answer,
            right,
            {
                chance: (right.softmax(-1), right.log_softmax(-1)),
                "your word vectors are not multiplied by √D.": scored(ours, ids, scale=1.0),
                "your word vectors are multiplied by D, and not by √D.": scored(ours, ids, scale=D),
                "your word vectors are divided by √D, and should be multiplied.": scored(
                    ours, ids, scale=D**-0.5
                ),
                "do you multiply by the root of E? The vectors are projected to the width D "
                "first.": tuple(
                    scored(ours, ids, scale=config.embedding_dim**0.5, bias=bias)
                    for bias in (True, False)
                ),
                "you multiply the positions too: √D is for the words.": scored(
                    ours, ids, scale=1.0, both=D**0.5
                ),
                "you multiply the positions, and not the words, by √D.": scored(
                    ours, ids, scale=1.0, positions=D**0.5
                ),
                "your model works without positions: it cannot tell in which order the words "
                "stood.": scored(ours, ids, positions=0.0),
                "the positions are there twice.": scored(ours, ids, positions=2.0),
                "the final norm is there, but nothing goes through it.": scored(
                    ours, ids, norm=False
                ),
                "in your model a later token changes an earlier output: does each block get the "
                "mask?": scored(ours, ids, mask=torch.zeros(9, 9)),
                "your mask hides the past, and shows the future: on which side of the diagonal is "
                "-inf?": scored(ours, ids, mask=causal(9).T),
                "in your model a token sees the next one: on which diagonal does the mask begin?": (
                    scored(ours, ids, mask=torch.full((9, 9), -torch.inf).triu(2))
                ),
                "is your mask made of zeros and ones? It is added to the scores, so what may not "
                "be seen needs -inf.": (
                    scored(ours, ids, mask=torch.ones(9, 9).tril()),
                    scored(ours, ids, mask=torch.ones(9, 9).triu(1)),
                ),
                "do the blocks run from the last to the first?": scored(
                    swapped(ours, [2, 1, 0]), ids
                ),
                "not all blocks run.": tuple(
                    scored(swapped(ours, kept), ids) for kept in ([], [0], [0, 1], [1, 2])
                ),
                "does each block get what the one before it left?": scored(swapped(ours, [2]), ids),
                "the stream goes through the norm after each block. Only the last norm is left to "
                "you.": (
                    scored(ours, ids, after=lambda x, _: ours.norm(x)),
                    scored(ours, ids, after=lambda x, _: ours.norm(x), norm=False),
                ),
                "you add the stream to what a block returns. It is in it already.": scored(
                    ours, ids, after=torch.add
                ),
                "you multiply by √D before the projection. Afterwards is asked for: the projection "
                "has a bias.": scored(ours, ids, bias=False),
            },
            leak(theirs, ids),
        )
        try:
            answer = theirs(short)
        except NotImplementedError:
            raise
        except Exception:
            expect(
                False,
                "your model fails on a text shorter than context_length: how many rows of the "
                "positions, and which part of the mask, do T tokens need?",
            )
        answer = expect_shape(answer, (2, 5, 23), "your logits of 5 tokens")  # (B, T, V)
        expect(
            agrees(answer, ours(short), TOLERANCE),
            "on a text shorter than context_length your logits differ: which rows of the "
            "positions, and which part of the mask, do T tokens need?",
        )
        expect(
            agrees(theirs(ids[:1, :1]), ours(ids[:1, :1]), TOLERANCE),
            "for one word your logits differ.",
        )
    sizes = TINY | {"num_layers": 1, "vocab_size": 19, "d_model": 18}
    other = random_parameters(course.Decoder(ModelConfig(**sizes)))
    again = student(other.config).eval()
    give_weights(again, other)
    expect(
        agrees(again(short % 19), other(short % 19), TOLERANCE),
        "for other sizes your logits differ.",
    )
    logits = again(short % 19)  # (B, T, V)
    if logits.requires_grad:
        logits.square().mean().backward()
    blind = [n for n, p in again.named_parameters() if p.requires_grad and p.grad is None]
    expect(
        not blind,
        f"no gradient reaches {', '.join(blind[:3])}: does something leave the graph?",
    )
    gap = (theirs(ids) - right).abs().max().item()
    return f"{right.numel()} logits as the course's decoder, within ≈{max(gap, 1e-7):.0e}"


def swapped(model: course.Decoder, order: list[int]) -> SimpleNamespace:
    """The same model with its blocks in another order."""
    parts = {name: getattr(model, name) for name in ("embedding", "projection", "norm", "output")}
    parts |= {"config": model.config, "positions": model.positions, "mask": model.mask}
    return SimpleNamespace(**parts, blocks=[model.blocks[i] for i in order])


def leak(model: nn.Module, ids: Tensor) -> str:
    """What is wrong with logits that no known mistake makes."""
    changed = ids.clone()  # (B, T)
    changed[:, -1] = changed[:, -1] % 22 + 1
    if not agrees(model(changed)[:, :-1], model(ids)[:, :-1]):
        return "in your model a later token changes an earlier output: look at the mask."
    rows = [model(row[None])[0] for row in ids]  # (T, V) each
    if not agrees(torch.stack(rows), model(ids)):
        return "in your model one story changes the logits of another: which axes do you mix?"
    return (
        "with the same weights your logits differ from the course's. Go through forward step by "
        "step: words, √D, positions, blocks, norm, output."
    )


# 5 ----------------------------------------------------------------------------------------------


@exercise
def logit_lens(student):
    model = random_parameters(course.Decoder(ModelConfig(**TINY)))
    ids = torch.randint(1, 23, (2, 5), generator=torch.Generator().manual_seed(3))  # (B, T)
    before = {name: p.clone() for name, p in model.named_parameters()}
    parts = list(model.blocks)

    def streams(start=None, mask=None, normed=False, first=True):
        T, D = ids.shape[1], model.config.d_model
        words = model.projection(model.embedding(ids))  # (B, T, D)
        x = words * D**0.5 + model.positions[:T] if start is None else start(words)
        found = [model.norm(x) if normed and first else x]
        for block in model.blocks:
            x, _ = block(found[-1], model.mask[:T, :T] if mask is None else mask)  # (B, T, D)
            found.append(model.norm(x) if normed else x)
        return torch.stack(found)  # (L + 1, B, T, D)

    def lens(found):
        return model.output(model.norm(found))  # (L + 1, B, T, V)

    with torch.no_grad():
        answer = as_tensor(call(student, model, ids))
        expect(
            list(model.blocks) == parts
            and all(torch.equal(p, before[n]) for n, p in model.named_parameters()),
            "your function changed the model: whoever uses it next gets another.",
        )
        right = lens(streams())  # (L + 1, B, T, V)
        expect(
            answer.shape != right[1:].shape,
            "you return L readings, and L + 1 are wanted: the first stream is the one that the "
            "first block reads.",
        )
        answer = expect_shape(answer, right.shape)  # (L + 1, B, T, V)
        own, steps = streams(), streams().diff(dim=0)  # (L + 1, B, T, D), (L, B, T, D)
        apart = torch.cat([own[:1], steps])  # (L + 1, B, T, D)
        start = own[0]  # (B, T, D)
        alike = [start, *(block(start, model.mask[:5, :5])[0] for block in model.blocks)]
        chance = "you return probabilities (or their logarithms). Logits are the scores before the "
        chance += "softmax."
        last = model.norm(own[-1]) * torch.ones(4, 1, 1, 1)  # (L + 1, B, T, D)
        once = torch.cat([own[:-1], model.norm(own[-1:])])  # (L + 1, B, T, D)
        expect_close(
            answer,
            right,
            {
                "the final norm is missing: the output layer never sees a stream that is not "
                "normed.": model.output(own),
                "only the last stream goes through the final norm. What would the output layer see "
                "if the model ended early?": model.output(once),
                "your stream goes on from the normed copy. The norm is for reading only.": (
                    model.output(streams(normed=True)),
                    lens(streams(normed=True)),
                    torch.cat([right[:1], model.output(streams(normed=True, first=False))[1:]]),
                ),
                "you read what each block adds, by itself. The lens reads the whole stream so "
                "far.": lens(apart),
                "you add up the streams. Each of them holds all that was written before it.": lens(
                    own.cumsum(0)
                ),
                "you read what each block adds, by itself, and without the norm. The lens reads "
                "the whole stream so far.": model.output(apart),
                "√D: are the words, and they alone, multiplied by it before the positions are "
                "added?": (
                    lens(streams(lambda words: words + model.positions[:5])),
                    lens(streams(lambda words: (words + model.positions[:5]) * 14**0.5)),
                ),
                "reading 0 lacks the positions: what does the first block read?": lens(
                    torch.cat([streams(lambda words: words * 14**0.5)[:1], own[1:]])
                ),
                "your readings come one block too late, and the last is there twice: what comes "
                "before the first block?": lens(torch.cat([own[1:], own[-1:]])),
                "your words have no positions.": lens(streams(lambda words: words * 14**0.5)),
                "a later token changes an earlier output: does each block get the mask?": lens(
                    streams(mask=torch.zeros(5, 5))
                ),
                chance: (right.softmax(-1), right.log_softmax(-1)),
                "every block reads the same stream in your code. Each should read what the one "
                "before left.": lens(torch.stack(alike)),
                "your readings are in the opposite order: the first stream comes first.": (
                    right.flip(0)
                ),
                "all your readings are those of the last stream: do you keep one tensor, and "
                "change it?": model.output(last),
            },
            rows_that_differ(answer, right),
        )
    words = right.argmax(-1)  # (L + 1, B, T)
    changes = (words[1:] != words[:-1]).any(0).float().mean()  # ()
    return f"{len(right)} readings; in {changes:.0%} of the places the likeliest word changes"


def rows_that_differ(answer: Tensor, right: Tensor) -> str:
    wrong = [str(i) for i in range(len(right)) if not agrees(answer[i], right[i])]
    return (
        f"of readings 0 to {len(right) - 1}, these are wrong: {', '.join(wrong)}. Reading 0 is the "
        "stream that the first block reads, the last gives the model's own logits."
    )
