"""The checks of the exercises for notebook 06.

Shape comments name the sizes: B stories, T tokens, N rows, D width, P parameters.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from checks import Halfway, Wrong, agrees, as_tensor, bugs, call, compare, exercise, expect
from checks.decoding import compare_or_explain
from helpers.loss import loss_sum
from helpers.memory import checkpoint, measure_peak_memory
from helpers.model import Decoder, ModelConfig

# 1 ------------------------------------------------------------------------------------------------


class _Watched(Decoder):
    """A decoder that records how many stories it reads, and whether a backward pass follows."""

    def __init__(self):
        super().__init__(ModelConfig(23, 5, 6, 1, 2, 7, 11))
        self.read, self.waiting, self.waited = [], 0, 0

    def forward(self, ids: Tensor, *args, **options):
        result = super().forward(ids, *args, **options)
        first = result[0] if isinstance(result, tuple) else result
        if first.requires_grad:
            self.read.append(len(ids))
            self.waiting += 1
            self.waited = max(self.waited, self.waiting)
            first.register_hook(self._done)
        return result

    def _done(self, _):
        self.waiting -= 1


def _stories(lengths: tuple[int, ...]) -> Tensor:
    """Random ids (B, T): <sos>, so many words, and then <pad>."""
    ids = torch.randint(4, 23, (len(lengths), 10))  # (B, T)
    ids[:, 0] = 1
    return ids * (torch.arange(10) <= torch.tensor(lengths)[:, None])  # (B, T)


def _gradient(model: nn.Module) -> Tensor:  # (P,)
    grads = [p.grad for p in model.parameters()]
    missing = sum(grad is None for grad in grads)
    expect(
        missing == 0,
        f"{missing} of {len(grads)} parameters have no gradient: is backward() called, and is "
        ".grad still there at the end?",
    )
    return torch.cat([grad.flatten() for grad in grads]).clone()  # (P,)


@exercise
def accumulate(student):
    model = _Watched().double()
    for lengths, size in (((9, 2, 5, 7, 4), 2), ((3, 8, 6), 1), ((4, 9, 1, 6, 8, 2, 5), 3)):
        batch, before = _stories(lengths), [p.detach().clone() for p in model.parameters()]
        parts = []  # the gradient of each part's sum (P,), its number of targets, and of stories
        for part in batch.split(size):
            model.zero_grad()
            total, number = loss_sum(model, part)  # (), ()
            total.backward()
            parts.append((_gradient(model), int(number), len(part)))
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.25)  # of a step before
        model.read, model.waiting, model.waited = [], 0, 0
        call(student, model, batch, size)
        expect(
            all(map(torch.equal, before, model.parameters())),
            "the parameters have changed: only their gradients are wanted, and no step",
        )
        _expect_gradient(_gradient(model), batch, parts)
        expect(
            max(model.read) <= size,
            f"your gradient is right, and {max(model.read)} stories are read at once: at most "
            f"size = {size} should be",
        )
        expect(
            model.waited <= 1,
            "your gradient is right, but nothing is saved: all parts are read before the first "
            "backward(), so that memory holds what each of them needs",
        )
    return "the gradient of the whole batch, three times, from parts of unequal length"


def _expect_gradient(found: Tensor, batch: Tensor, parts: list[tuple[Tensor, int, int]]) -> None:
    sums, counts, stories = zip(*parts, strict=True)
    tokens, whole = sum(counts), sum(sums)
    means = [part / number for part, number in zip(sums, counts, strict=True)]
    by_stories = sum(mean * n for mean, n in zip(means, stories, strict=True)) / len(batch)
    old = "gradients of an earlier step are still in it: where do they go before you begin?"
    mean_of_means = (
        "each mini-batch counts the same here, however few words it has: is this a mean of means?"
    )
    known = [
        (sum(means) / len(parts), mean_of_means),
        (
            sum(means),
            "you add up the means of the mini-batches: what is the gradient of one mean over all?",
        ),
        (whole, "this is the gradient of the sum of all losses: by what is a mean divided?"),
        (whole / tokens + 0.25, old),
        (sum(means) / len(parts) + 0.25, old),
        (whole / tokens / len(parts), "you divide by the number of words, and once more by parts."),
        (
            whole / len(parts),
            "you divide by the number of mini-batches: how many *words* are there?",
        ),
        (whole / len(batch), "you divide by the number of stories: how many *words* are there?"),
        (whole / batch[:, 1:].numel(), "you divide by all places: does `<pad>` count as a word?"),
        (whole / batch.numel(), "you divide by all places: does `<pad>` count as a word?"),
        (
            whole / int((batch != 0).sum()),
            "you count every word, the first of each story too: is that one ever predicted?",
        ),
        (
            whole / int((batch[:, :-1] != 0).sum()),
            "you count the words that are read, and not those that are predicted.",
        ),
        (by_stories, "you weigh each mini-batch by its stories: they are not equally long."),
    ]
    last = "only one mini-batch is left in the gradient: are the others deleted on the way?"
    for scale in (tokens, 1):
        known += [(part / scale, last) for part in (sums[-1], sums[0])]
    known += [(means[-1], last), (means[-1] / len(parts), last), (means[0], last)]
    if stories[-1] < stories[0]:
        missing = "the last mini-batch, which is smaller, is missing: is len(batch) // size enough?"
        rest = whole - sums[-1]
        known += [(rest / tokens, missing), (rest / (tokens - counts[-1]), missing)]
    explain = partial(_explain_gradient, sums, tokens)
    compare_or_explain(found, whole / tokens, explain, known, "the gradient")


def _explain_gradient(sums: list[Tensor], tokens: int, found: Tensor, right: Tensor) -> None:
    """Reject a gradient (P,) by the weights that it gives to the gradients of the parts' sums."""
    parts = torch.stack(sums, 1)  # (P, parts)
    weights = torch.linalg.lstsq(parts, found[:, None]).solution  # (parts, 1)
    expect(
        agrees(parts @ weights, found[:, None]),
        "your gradient is not made of the mini-batches' gradients: which word predicts which, "
        "does `<pad>` count, and is every story read once?",
    )
    shares = ", ".join(f"{tokens * weight:.2f}" for weight in weights.flatten().tolist())
    raise Wrong(
        f"the sums of the mini-batches are weighed by {shares} times what they should be: by what "
        "do you divide each, and how often is each counted?"
    )


# 2 ------------------------------------------------------------------------------------------------


class _Inside(nn.Module):
    """A small network with dropout that counts its calls."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(7, 19), nn.GELU(), nn.Dropout(0.4), nn.Linear(19, 7), nn.Dropout(0.2)
        )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, D)
        self.calls += 1
        return self.layers(x)


def _plainly(function: Callable, x: Tensor) -> Tensor:
    return function(x)


def _pass(way: Callable, insides: list[_Inside], x: Tensor, slope: Tensor) -> dict[str, Tensor]:
    """What a forward and a backward pass give, and the random numbers that come after each."""
    for inside in insides:
        inside.zero_grad()
        inside.calls = 0
    leaf = x.clone().requires_grad_()  # (N, D)
    torch.manual_seed(5)
    y = leaf
    for inside in insides:
        y = way(inside, y)  # (N, D)
    expect(isinstance(y, Tensor), f"you return a {type(y).__name__}: what does function(x) return?")
    after_forward = torch.rand(3)
    expect(
        y.requires_grad,
        "your result has no graph: how is the backward pass to come back to you?",
    )
    try:
        y.backward(slope)
    except RuntimeError as error:
        expect(
            "does not require grad" not in str(error),
            "your backward pass calls the function, but finds no graph of this call: gradients are "
            "off inside a backward pass",
        )
        raise
    grads = [p.grad for inside in insides for p in inside.parameters()]
    expect(
        all(grad is not None for grad in grads),
        _ALONE if len(insides) == 1 else _TWO,
    )
    expect(leaf.grad is not None, "x gets no gradient: what does your backward pass return?")
    return {
        "result": y.detach(),
        "x": leaf.grad,
        "parameters": torch.cat([grad.flatten() for grad in grads]),  # (P,)
        "after_forward": after_forward,
        "after_backward": torch.rand(3),
    }


_TWO = (
    "right for one segment, and wrong for two in a row: is there only one place for what each of "
    "them has to remember?"
)
_ALONE = (
    "the parameters inside the function get no gradient: is x the only one that your backward pass "
    "looks for?"
)


@exercise
def recomputed(student):
    inside, other = _Inside().double(), _Inside().double()
    x, slope = torch.randn(5, 7).double(), torch.randn(5, 7).double()  # (N, D) each
    inside.eval()
    right, found = _pass(_plainly, [inside], x, slope), _pass(student, [inside], x, slope)
    compare(found["result"], right["result"], what="the result without dropout")
    _expect_two_calls(student, inside, x)
    ones = _pass(_plainly, [inside], x, torch.ones_like(slope))
    for name in ("x", "parameters"):
        what = f"the gradient of {name} without dropout"
        known = [
            (
                ones[name],
                "the gradient that your backward pass is given has no effect: is it 1 everywhere?",
            ),
            (
                2 * right[name],
                f"{what} is counted twice: is the x of the second pass a part of the first graph?",
            ),
        ]
        compare_or_explain(found[name], right[name], _explain_recomputed, known, what)
    inside.train()
    right, found = _pass(_plainly, [inside], x, slope), _pass(student, [inside], x, slope)
    expect(
        agrees(found["result"], right["result"]),
        "with dropout your forward pass draws other random numbers than function(x) does: leave "
        "the random state alone before it",
    )
    expect(
        torch.equal(found["after_forward"], right["after_forward"]),
        "after your forward pass the random numbers go on from another place than after "
        "function(x)",
    )
    expect(
        agrees(found["x"], right["x"]) and agrees(found["parameters"], right["parameters"]),
        "right without dropout, and wrong with it: the second pass drops other units than the "
        "first. Which random state does each begin with?",
    )
    expect(
        torch.equal(found["after_backward"], right["after_backward"]),
        "your backward pass sets the random numbers back for everybody: whoever draws after it "
        "draws the same again. How can it leave them as they were?",
    )
    chain = [inside, other.train()]
    right, found = _pass(_plainly, chain, x, slope), _pass(student, chain, x, slope)
    expect(
        agrees(found["x"], right["x"]) and agrees(found["parameters"], right["parameters"]),
        _TWO,
    )
    return f"{len(found['parameters']) + x.numel()} gradients through two segments with dropout"


def _explain_recomputed(found: Tensor, right: Tensor) -> None:
    raise Wrong(
        "the gradients are wrong even without dropout: does the second pass begin from the same x "
        "as the first, and does the gradient that your backward pass is given enter once?"
    )


def _expect_two_calls(student, inside: _Inside, x: Tensor) -> None:
    kept, own = [], {p.data_ptr() for p in inside.parameters()}

    def look(tensor: Tensor) -> Tensor:
        if (
            tensor.is_floating_point() and tensor.data_ptr() not in own
        ):  # a random state is of bytes
            kept.append(tensor.numel())
        return tensor

    inside.calls, leaf = 0, x.clone().requires_grad_()  # (N, D)
    with saved_tensors_hooks(look, lambda tensor: tensor):
        y = student(inside, leaf)  # (N, D)
    expect(inside.calls == 1, f"the forward pass calls the function {inside.calls} times, not once")
    expect(
        sum(kept) <= x.numel(),
        f"{sum(kept)} numbers are kept for the backward pass, and x has {x.numel()}: the inside "
        "of the function is not forgotten",
    )
    y.sum().backward()
    expect(
        inside.calls == 2,
        f"the function is called {inside.calls} times in all: once forward, and once more when "
        "the backward pass comes",
    )


# 3 ------------------------------------------------------------------------------------------------

BLOCKS = 24


class _Block(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, D)
        return x + self.contract(F.gelu(self.expand(x)))


@cache
def peak_floats(segments: int) -> int:
    """The most floats at once in a training pass of 24 small blocks in so many segments."""
    tower, x = [_Block() for _ in range(BLOCKS)], torch.randn(1000, 8)  # (N, D)
    ends = [BLOCKS * i // segments for i in range(segments + 1)]

    def training_pass():
        y = x.clone().requires_grad_()  # (N, D)
        for start, end in pairwise(ends):
            y = checkpoint(nn.Sequential(*tower[start:end]), y)  # (N, D)
        y.square().mean().backward()

    return measure_peak_memory(training_pass, "cpu") // 4


@exercise
def best_segments(student):
    answer = as_tensor(call(student), "your number")
    expect(
        answer.numel() == 1 and answer.dtype != torch.bool and float(answer).is_integer(),
        f"you return {answer.tolist()}, and a whole number of segments is wanted",
    )
    answer = int(answer)
    expect(
        answer <= BLOCKS,
        f"there are only {BLOCKS} blocks: is this the peak itself, and not where it is lowest?",
    )
    expect(answer >= 1, "there is at least one segment: does your count begin at 0?")
    peaks = {segments: peak_floats(segments) for segments in range(1, BLOCKS + 1)}
    best, root = min(peaks, key=peaks.get), round(math.sqrt(BLOCKS))
    here = f"with {answer} of them {peaks[answer]:,} floats are held at once, and this can be fewer"
    reasons = {
        root: "is it √24? That is best only if the inside of a block is as large as its input",
        BLOCKS: "a segment for each block keeps every input: what is large now?",
        1: "one segment is computed again as a whole: what is saved?",
        best - 1: "how many segments does the first place of your list stand for?",
    }
    expect(
        peaks[answer] == peaks[best], f"{here}: {reasons.get(answer, 'have you tried them all?')}"
    )
    return (
        f"{answer} segments: {peaks[best]:,} floats at once, {peaks[best] / peaks[root]:.0%} of "
        f"what {root}, about √{BLOCKS}, need"
    )


# Find the bug -------------------------------------------------------------------------------------


def _explain_changed(found: Tensor, right: Tensor) -> None:
    raise Wrong("the bug is gone, but something else has changed: one line alone had a bug")


def _find_the_bug(program: str):
    """From a check of a mended program: the check of the reader's choice, and of the program."""

    def around(judge: Callable):
        @exercise
        def check(given):
            chosen, found = given
            if chosen is None:
                raise NotImplementedError
            names = ", ".join(bugs.DIAGNOSTICS)
            expect(
                isinstance(chosen, str) and chosen in bugs.DIAGNOSTICS,
                f"there is no diagnostic called {chosen!r}. Choose one of: {names}",
            )
            reason = bugs.BLIND[program].get(chosen)
            expect(reason is None, f"“{chosen}” cannot see this bug: {reason}")
            finding = bugs.DIAGNOSTICS[chosen](bugs.Parts(**{bugs.PROGRAMS[program]: found}))
            if finding.caught:
                raise Halfway(
                    f"“{chosen}” is a good choice, and this is what it sees in your program now: "
                    f"{finding.shown}. What causes it?"
                )
            judge(found)
            return f"mended: {finding.shown}"

        return lambda chosen, found: check((chosen, found))

    return around


@_find_the_bug("tied words")
def tied_words(TiedWords):
    words = TiedWords(13, 6)
    with torch.no_grad():
        vectors = words.read(torch.arange(13))  # (V, D)
        scores = (words.score(torch.eye(6)) - words.score(torch.zeros(1, 6))).mT  # (V, D)
    expect(
        vectors.std(0).min() > 0,
        "all words start with the same vector now, and nothing tells them apart",
    )
    ratio = (vectors * scores).sum() / vectors.square().sum()  # (), of the two uses
    expect(
        agrees(scores, ratio * vectors, 1e-4)
        and [p.shape for p in words.parameters() if p.dim() > 1] == [(13, 6)],
        "the loss starts well, but the words are no longer tied: reading and scoring should use "
        "one matrix",
    )
    loss = bugs.after_training(bugs.Parts(TiedWords=TiedWords))
    expect(
        loss < math.log(len(bugs.tokenizer())) / 2,
        f"the loss starts well, but the model hardly learns: it ends at {loss:.2f} nats",
    )


@_find_the_bug("optimizer")
def optimizer(make_optimizer):
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    groups = make_optimizer(model, 0.125).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    parameters = list(model.parameters())
    expect(
        all(id(p) in decay for p in parameters),
        "it learns now, but some parameters are still in no group",
    )
    expect(
        all(decay[id(p)] == 0 for p in parameters if p.dim() == 1),
        "every parameter learns now, but gains and biases are decayed too",
    )
    expect(
        all(decay[id(p)] > 0 for p in parameters if p.dim() == 2),
        "every parameter learns now, but no decay is left on the matrices",
    )
    expect(
        all(group["lr"] == 0.125 for group in groups),
        "the learning rate is no longer the one given",
    )


@_find_the_bug("attention")
def attention(attend):
    q, k, v = torch.randn(3, 2, 3, 5, 4)  # (B, H, T, d) each
    right = bugs.attend(q, k, v)  # (B, T, D)
    mixed = right.unflatten(-1, (3, 4))  # (B, T, H, d)
    known = [
        (
            mixed.mT.flatten(2),
            "nothing comes from later words now, but the heads are interleaved: the numbers of one "
            "head should stand together",
        ),
        (mixed.flip(2).flatten(2), "the heads stand in another order than before"),
        (bugs.attend(2 * q, k, v), "the scores are no longer divided by √d"),
    ]
    compare_or_explain(call(attend, q, k, v), right, _explain_changed, known)
    q = q[:, :, 3:]  # (B, H, T, d), after three in the cache
    first = bugs.attend(q, k[:, :, :2], v[:, :, :2])  # (B, T, D)
    known = [(first, "new tokens no longer see the whole cache: which keys does the mask hide?")]
    compare_or_explain(call(attend, q, k, v), right[:, 3:], _explain_changed, known)


@_find_the_bug("reading")
def reading(read):
    model, nowhere = (bugs.new_model(dtype=torch.float64) for _ in range(2))
    nowhere.positions.zero_()
    ids = bugs.stories()  # (N, T)
    with torch.no_grad():
        right, lost = model(ids), nowhere(ids)  # (N, T, V) each
        for ends in ((0, 1, 3, 17), (0, 10, 11, 13, 17)):
            held = bugs.Cache()
            for start, end in pairwise(ends):
                logits = read(model, ids[:, start:end], held)  # (N, end - start, V)
                known = [(lost[:, start:end], "no position is added to the words any more")]
                compare_or_explain(logits, right[:, start:end], _explain_changed, known)


@_find_the_bug("gradient")
def gradient(gradient):
    model = bugs.new_model(dtype=torch.float64)
    for clip_norm in (0.5, 1e9):
        bugs.gradient(model, bugs.stories(), 5, bugs.story_loss, clip_norm)
        right = _gradient(model)  # (P,)
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.25)  # of a step before
        gradient(model, bugs.stories(), 5, bugs.story_loss, clip_norm)
        found = _gradient(model)  # (P,)
        factor = float(found @ right / right.square().sum())
        expect(
            agrees(found, right) or not agrees(found, factor * right),
            f"the direction is right now, and the length is {factor:.3g} times what it should be "
            f"with clip_norm={clip_norm:g}: is the sum divided, and the whole clipped once?",
        )
        compare_or_explain(found, right, _explain_changed)


@_find_the_bug("loss")
def loss(story_loss):
    model, ids = bugs.new_model(dtype=torch.float64), bugs.stories()  # (N, T)
    right, wanted = bugs.story_loss(model, ids)  # (), ()
    total, number = story_loss(model, ids)
    padded = F.cross_entropy(model(ids[:, :-1]).mT, ids[:, 1:], reduction="sum")  # ()
    known = [
        (ids[:, 1:].numel(), "the loss is lower than it was, but `<pad>` is still counted"),
        ((ids != 0).sum(), "the first word of each story is counted, and nothing predicts it"),
        (
            (ids[:, :-1] != 0).sum(),
            "you count the words that are read, and not those that are predicted",
        ),
    ]
    compare_or_explain(number, wanted, _explain_number, known)
    known = [
        (right / wanted, "a sum is wanted, and this is a mean"),
        (padded, "the number is right, but the sum still has `<pad>`"),
    ]
    compare_or_explain(total, right, _explain_changed, known)


def _explain_number(found: Tensor, right: Tensor) -> None:
    raise Wrong(
        f"you count {float(found):g} predicted words, and there are {float(right):g}: which ones "
        "should count?"
    )
