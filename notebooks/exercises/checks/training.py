"""The checks of the exercises for notebook 04."""

import copy
import functools
import math

import torch
from torch import Tensor, nn

from checks import Wrong, agrees, as_tensor, call, compare, exercise, expect
from helpers.grammar import bundled_grammar
from helpers.loss import loss_sum
from helpers.model import Decoder, ModelConfig
from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer
from helpers.training import encode_stories

SIZES = {"embedding_dim": 16, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32}


# 1 ----------------------------------------------------------------------------------------------


@exercise
def batch_loss(student):
    pad, (B, T, V) = 4, (3, 7, 11)
    logits = 2 * torch.randn(B, T, V)
    targets = torch.randint(0, V, (B, T))  # (B, T)
    targets[targets == pad] = 0
    targets[0, 5:] = targets[1, 2:] = pad
    real = targets != pad  # (B, T)

    def nats(logits, dim=-1):
        return -logits.log_softmax(dim).gather(-1, targets[..., None])[..., 0]  # (B, T)

    def right(logits):
        return nats(logits)[real].mean()  # ()

    each, p = nats(logits), logits.softmax(-1).gather(-1, targets[..., None])[..., 0]  # (B, T) each
    hidden = logits.clone()  # (B, T, V)
    hidden[..., pad] = -math.inf
    known = {
        "do you count the fillers as targets, too?": each.mean(),
        "the losses of real targets are added up, but divided by the number of all places.": (
            (each * real).mean()
        ),
        "you take the mean of the stories' means: a word of a short story then counts more than "
        "one of a long story.": ((each * real).sum(1) / real.sum(1)).mean(),
        "this is the sum of the losses. By what is it to be divided?": each[real].sum(),
        "this is the sum over all places, fillers too.": each.sum(),
        "do you divide the sum by the number of stories?": each[real].sum() / B,
        "do you divide the sum by the number of places in a story?": each[real].sum() / T,
        "the sign: a loss is not negative.": -each[real].mean(),
        "do you take 0 for the filler? Its id is pad_id.": each[targets != 0].mean(),
        "you count the fillers, and not the real words.": each[~real].mean(),
        "your softmax runs over another axis. Which axis holds the words of the vocabulary?": (
            torch.stack([nats(logits, dim)[real].mean() for dim in (0, 1)])
        ),
        "this is not in nats: which logarithm gives them?": each[real].mean()
        / torch.tensor([2.0, 10.0]).log(),
        "this is the perplexity, the power of the loss.": each[real].mean().exp(),
        "do you divide the sum by the number of words in the vocabulary?": each[real].sum() / V,
        "you count the fillers' losses, and divide by the number of real words.": each[~real].sum()
        / real.sum(),
        "this is the mean entropy of the predictions. The targets have no part in it.": (
            -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)[real].mean()
        ),
        "only the places that are real in all stories are counted.": each[:, :2].mean(),
        "this is a mean of logits: they are not yet logarithms of probabilities.": (
            -logits.gather(-1, targets[..., None])[..., 0][real].mean()
        ),
        "this is a mean of probabilities, without a logarithm.": torch.stack(
            [-p[real].mean(), p[real].mean(), 1 - p[real].mean()]
        ),
        "this is the logarithm of a mean of probabilities. Which comes first?": (
            -p[real].mean().log()
        ),
        "is a softmax taken of what is a softmax already?": nats(logits.softmax(-1))[real].mean(),
        "is the word <pad> hidden in the softmax? It is one of the V words: only as a target does "
        "it not count.": nats(hidden)[real].mean(),
        "do you shift the targets? They are shifted already.": (
            -logits[:, :-1].log_softmax(-1).gather(-1, targets[:, 1:, None])[..., 0]
        )[real[:, 1:]].mean(),
    }
    pairs = [(value, message) for message, values in known.items() for value in values.view(-1)]
    answer = call(student, logits, targets, pad)
    compare(answer, right(logits), pairs, "the loss")
    full = torch.randint(5, V, (2, 3))  # (B, T), without fillers
    targets, real = full, full != pad
    loss = call(student, logits[:2, :3], full, pad)
    compare(loss, right(logits[:2, :3]), what="the loss of a batch without fillers")
    targets = torch.tensor([[5, 6, 7], [pad, pad, pad]])  # (B, T)
    real = targets != pad
    loss = call(student, logits[:2, :3], targets, pad)
    expect(
        agrees(as_tensor(loss), right(logits[:2, :3])),
        "one story of fillers alone spoils the loss: do you divide for each story by itself?",
    )
    for rest, word in ((0, 1000), (0, -50), (0, -1000), (1000, 900)):
        large = torch.full((2, 3, V), float(rest))  # (B, T, V)
        large.scatter_(-1, targets[..., None], float(word))
        loss = as_tensor(call(student, large, targets, pad))
        case = (
            f"if a target has the logit {word:,} and all other words have {rest:,}, your loss is "
        )
        expect(
            loss.isfinite().all() or max(rest, word) < 1000,
            f"{case}not finite: e to the power of 1,000 is too large for float32. What can be "
            "subtracted from all logits of a row without changing the softmax?",
        )
        expect(
            agrees(loss, right(large)),
            f"{case}{float(loss):.4g} and should be {float(right(large)):.4g}: is a probability "
            "rounded to 0 before its logarithm is taken, or is something capped?",
        )
    leaf = logits[:2, :3].clone().requires_grad_()  # (B, T, V)
    loss = student(leaf, targets, pad)
    expect(
        isinstance(loss, Tensor) and loss.requires_grad,
        "the loss has no gradient: return a tensor, without .item(), float() or .detach().",
    )
    (found,) = torch.autograd.grad(loss.sum(), leaf)
    (wanted,) = torch.autograd.grad(right(leaf), leaf)
    compare(found, wanted, what="the gradient of the loss")
    return f"{as_tensor(answer).item():.4f} nats, the mean of {3 * 7 - 2 - 5} real targets"


# 2 ----------------------------------------------------------------------------------------------


def tiny_model() -> Decoder:
    model = Decoder(ModelConfig(vocab_size=19, context_length=8, **SIZES))
    nn.init.normal_(model.output.weight, std=0.5)  # a gradient of some length
    return model


def sgd(model: nn.Module) -> torch.optim.SGD:
    """Two groups with rates of their own, and a memory of the step before."""
    first, *others = model.parameters()
    groups = [{"params": [first], "lr": 3.0}, {"params": others, "lr": 7.0}]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.5)


def reference_step(model, optimizer, batch, rate, clip_norm, fault=None):
    """A training step, right or with one fault."""
    total, count = loss_sum(model, batch)  # (), ()
    if fault != "no zero_grad":
        optimizer.zero_grad()
    places = {"places": batch[:, 1:].numel(), "all ids": batch.numel()}
    divisor = ({"sum": 1, "stories": len(batch)} | places).get(fault, count)
    if fault == "fillers":
        logits = model(batch[:, :-1]).flatten(0, 1)  # (B · (T-1), V)
        nn.functional.cross_entropy(logits, batch[:, 1:].flatten()).backward()
    else:
        (total / divisor).backward()
    parameters = list(model.parameters())
    if fault == "value":
        nn.utils.clip_grad_value_(parameters, clip_norm)
    elif fault in ("each", "by group", "first group"):
        groups = [group["params"] for group in optimizer.param_groups]
        groups = {"by group": groups, "first group": groups[:1]}.get(
            fault, [[p] for p in parameters]
        )
        for group in groups:
            nn.utils.clip_grad_norm_(group, clip_norm)
    elif fault == "always":
        length = nn.utils.get_total_norm([p.grad for p in parameters])  # ()
        for parameter in parameters:
            parameter.grad *= clip_norm / length
    elif fault != "no clipping":
        nn.utils.clip_grad_norm_(parameters, 1.0 if fault == "fixed" else clip_norm)
    if fault == "other":
        optimizer = torch.optim.SGD(parameters, lr=rate)
    if fault == "late rate":
        optimizer.step()
    for group in optimizer.param_groups[: 1 if fault == "first" else None]:
        old = group["lr"]
        group["lr"] = {"no rate": old, "times": old * rate, "uphill": -rate}.get(fault, rate)
    if fault != "late rate":
        optimizer.step()
    if fault == "twice":
        optimizer.step()
    return (total / count).item()


FAULTS = {
    "no zero_grad": "the gradient of the step before is still in yours: backward adds to what is "
    "there.",
    "no clipping": "the step is taken with a gradient that is too long: is it clipped, and not too "
    "late?",
    "value": "you clip each number of the gradient. Its length is to be clipped, so that the "
    "direction stays.",
    "each": "you clip the gradient of each parameter by itself. All together are one long vector.",
    "always": "you bring the gradient to the length clip_norm even if it is shorter.",
    "sum": "this is the gradient of the sum of losses, and not of their mean.",
    "stories": "you divide the loss by the number of stories, and not of real targets.",
    "places": "you divide the loss by the number of all places. `<pad>` is no target.",
    "all ids": "you divide the loss by the number of all ids. Neither the first id of a story nor "
    "`<pad>` is a target.",
    "first group": "you clip the gradient of the first group only.",
    "times": "you multiply the optimizer's rate by learning_rate, which is the new rate itself.",
    "no rate": "learning_rate has no effect: where does the optimizer keep its rate?",
    "late rate": "learning_rate comes too late: it has an effect on the next step only.",
    "fixed": "is the largest length a number in your code? It is an argument, clip_norm.",
    "by group": "you clip the gradient of each group by itself. All together are one long vector.",
    "other": "is the step taken by another optimizer than the one you were given? Its memory of "
    "earlier steps is lost.",
    "fillers": "your loss counts the fillers. `<pad>` is no target.",
    "first": "learning_rate reaches only the first group of the optimizer.",
    "uphill": "the model moves along the gradient, and not against it: the loss rises.",
    "twice": "the optimizer takes two steps.",
}


@exercise
def training_step(student):
    model = tiny_model()
    batches = torch.randint(1, 19, (2, 3, 8))  # (2, B, T)
    batches[:, 0, 5:] = batches[:, 2, 3:] = 0  # <pad>
    batches[1, 0, 5:] = 7

    def run(step, clips, rates=(0.5, 0.05)):
        one = copy.deepcopy(model)
        optimizer = sgd(one)
        losses = [step(one, optimizer, *given) for given in zip(batches, rates, clips, strict=True)]
        return one, losses

    def flat(one):
        return torch.cat([p.detach().flatten() for p in one.parameters()])  # (all parameters,)

    first = copy.deepcopy(model)
    optimizer = sgd(first)
    reported = call(student, first, optimizer, batches[0], 0.5, 0.02)
    (mean, _) = run(reference_step, (0.02, 0.3))[1]
    expect(
        not agrees(flat(first), flat(model)),
        "nothing has changed: is there no step of the optimizer, or no gradient when it comes?",
    )
    expect(
        reported is not None,
        "the step returns nothing. The mean loss of the batch is wanted, as a number.",
    )
    expect(
        not (isinstance(reported, Tensor) and reported.requires_grad),
        "you return a tensor that holds the graph of the whole step in memory: return a number.",
    )
    after, count = loss_sum(first, batches[0])  # (), ()
    compare(
        reported,
        mean,
        [
            (after / count, "you return the loss after the step; that of before it is wanted."),
            (mean * count, "you return the sum of the losses. Their mean is wanted."),
            (mean * count / 3, "you return the loss by story. The mean over targets is wanted."),
            (
                mean * count / batches[0, :, 1:].numel(),
                "the loss that you return is divided by the number of all places. `<pad>` is no "
                "target.",
            ),
        ],
        "the loss that you return",
    )
    cases = [(0.02, 0.3), (1e6, 1e6), (0.02, 1e6)]
    for clips in cases:
        yours, losses = run(student, clips)
        wanted, right = run(reference_step, clips)
        pairs = (
            (flat(run(functools.partial(reference_step, fault=fault), clips)[0]), message)
            for fault, message in FAULTS.items()
        )
        compare(flat(yours), flat(wanted), pairs, "the model after two steps", tolerance=3e-5)
        compare(torch.tensor([float(x) for x in losses]), torch.tensor(right), what="the losses")
    return f"two steps move all {flat(model).numel():,} numbers of the model as they should"


# 3 ----------------------------------------------------------------------------------------------


@exercise
def learning_rate(student):
    def right(step, total, warmup, peak):
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2

    def schedules(total, *others):
        """The rates of all steps, the reader's and the right ones: (total,) each."""
        found = [
            as_tensor(call(student, step, total, *others), "the rate") for step in range(total)
        ]
        expect(all(rate.numel() == 1 for rate in found), "a rate is one number.")
        found = torch.stack([rate.double().reshape(()) for rate in found])
        return found, torch.tensor([right(step, total, *others) for step in range(total)])

    total, warmup, peak = 23, 5, 0.3
    found, wanted = schedules(total, warmup, peak)  # (total,) each
    climb = {
        "your first step has the rate 0, and changes nothing.": lambda s: s / warmup,
        "your climb ends below the peak.": lambda s: (s + 1) / (warmup + 1),
        "is // in your climb? It cuts off fractions.": lambda s: (s + 1) // warmup,
        "is // in your climb? It cuts off fractions, and all rates are 0.": lambda s: s // warmup,
        "your climb is multiplied by the cosine.": lambda s: (
            (s + 1) / warmup * (1 + math.cos(math.pi * s / total)) / 2
        ),
        "there is no climb: the first steps have the full rate.": lambda s: 1,
        "your climb ignores the peak.": lambda s: (s + 1) / warmup / peak,
        "your climb goes beyond the peak.": lambda s: s + 1,
        "the first step has 1 / warmup of the peak. Yours has 0.": lambda s: s / (warmup - 1),
        "the climb is a line, and yours a part of the cosine.": lambda s: (
            (1 + math.cos(math.pi * s / total)) / 2
        ),
    }
    compare(
        found[:warmup],
        wanted[:warmup],
        [
            (peak * torch.tensor([float(share(step)) for step in range(warmup)]), message)
            for message, share in climb.items()
        ],
        "the climb",
        where=lambda index: f"step {index[0]} should have {wanted[index]:.3f}",
    )
    done, whole = torch.arange(total - warmup), total - warmup  # (whole,), steps since the peak
    share = done / whole  # (whole,)

    def fall(share):
        return (1 + (math.pi * share).cos()) / 2  # (whole,)

    falls = {
        "your cosine starts at step 0, and not after the climb.": (
            fall((done + warmup) / total),
            fall((done + warmup) / whole),
        ),
        "your fall is a straight line.": (1 - share,),
        "your rate falls below 0: a cosine goes from 1 to -1, and the rate from its peak to 0.": (
            (math.pi * share).cos(),
        ),
        "this is a quarter of a cosine, steepest at the end. Half a cosine ends flat.": (
            (math.pi / 2 * share).cos(),
        ),
        "your last step has the rate 0, and changes nothing. Zero comes one step later.": (
            fall(done / (whole - 1)),
        ),
        "your fall is too slow: total_steps counts all steps, those of the climb too.": (
            fall(done / total),
        ),
        "this is a whole cosine, down and up again. Only half a cosine is wanted.": (
            fall(2 * share),
        ),
        "your fall starts at twice the peak: by what is the sum to be divided?": (2 * fall(share),),
        "your fall goes upwards.": (share, 1 - fall(share)),
        "the angle of cos is in radians. Where does it end?": (
            (1 + share.cos()) / 2,
            (1 + (180 * share).cos()) / 2,
            (1 + (math.pi / 180 * share).cos()) / 2,
        ),
        "your rate does not end at 0: is there a smallest rate?": (0.1 + 0.9 * fall(share),),
        "this is a sine, which begins and ends at 0.": ((math.pi * share).sin(),),
        "at step warmup_steps the climb goes on: its last step is the one before.": (
            torch.where(done == 0, (warmup + 1) / warmup, fall(share)),
        ),
        "your rate does not fall.": (torch.ones(whole), fall(done // whole)),
        "your fall is one step late, so the peak comes twice too often.": (
            fall((done - 1) / whole),
        ),
        "your fall is one step ahead: at step warmup_steps the rate is still the peak.": (
            fall((done + 1) / whole),
            fall((done + 1) / (whole + 1)),
        ),
    }
    compare(
        found[warmup:],
        wanted[warmup:],
        [(peak * values, message) for message, shapes in falls.items() for values in shapes],
        "the fall",
        where=lambda index: f"step {warmup + index[0]} should have {wanted[warmup + index[0]]:.3f}",
    )
    try:
        pair = schedules(9, 0, 2.0)
    except ZeroDivisionError:
        raise Wrong("with no warm-up, warmup_steps = 0, you divide by 0.") from None
    compare(*pair, what="the schedule with no warm-up")
    for given in ((40, 1, 0.01), (7, 6, 0.5), (1, 0, 1.0)):
        pair = schedules(*given)
        compare(*pair, what=f"the schedule of {given[0]} steps, {given[1]} of them warm-up,")
    return f"five schedules; the last step of the first has {wanted[-1] / peak:.3f} of the peak"


# 4 ----------------------------------------------------------------------------------------------


@functools.cache
def some_stories() -> tuple[Tensor, int]:
    """Ids of the beginnings of 240 stories (N, T), and the size of their vocabulary."""
    stories = load_stories("bundled", train=240, validation=1)
    tokenizer = WordTokenizer.train(stories.train, vocab_size=300)
    return encode_stories(tokenizer, stories.train, 24).long(), len(tokenizer)


def loss_after(rate: float) -> float:
    """Train a tiny decoder for 30 steps; the mean loss of the last ten, in nats per token."""
    ids, vocab_size = some_stories()  # (N, T)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would only wait for each other: the model is too small
    torch.manual_seed(0)
    model = Decoder(ModelConfig(vocab_size=vocab_size, context_length=24, **SIZES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for batch in ids.split(8):  # (B, T)
        total, count = loss_sum(model, batch)  # (), ()
        optimizer.zero_grad()
        (total / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(total.item() / count.item())
    torch.set_num_threads(threads)
    return sum(losses[-10:]) / 10


@exercise
def best_rate(student):
    rate = as_tensor(call(student), "the rate")
    expect(
        rate.numel() == 1 and rate.dtype != torch.bool,
        "one number is wanted: the learning rate itself.",
    )
    rate = float(rate)
    expect(0 < rate < math.inf, "a learning rate is a finite number above 0.")
    here = loss_after(rate)
    expect(
        rate < 1.5,
        f"with this rate the loss ends at {here:.2f}. Is it a rate, or is it the loss that you "
        "found? Where the loss is lowest is wanted, and not how low it is.",
    )
    low, high = loss_after(rate / 4), loss_after(rate * 4)
    expect(
        here < high,
        f"too small: your loss ends at {here:.2f}, that of four times your rate at {high:.2f}.",
    )
    expect(
        here < low,
        f"too large: your loss ends at {here:.2f}, that of a quarter of your rate at {low:.2f}.",
    )
    return (
        f"with your rate the loss ends at ≈{here:.2f} nats, with a quarter of it at ≈{low:.2f}, "
        f"with four times it at ≈{high:.2f}"
    )


# 5 ----------------------------------------------------------------------------------------------


# Three stories and their probabilities. A word may follow another in one story and not in the next.
TOLD = {
    "mia sat down and mia slept . <eos>": 0.5,
    "mia sat and tom ran . <eos>": 0.2,
    "tom ran and mia sat . <eos>": 0.3,
}


def told_after(words) -> dict[str, float]:
    """`next_words` of the three stories."""
    expect(
        not isinstance(words, str),
        "next_words takes a list of words. You gave it one text.",
    )
    begun, counts = list(words), {}
    for story, p in TOLD.items():
        story = story.split()
        if story[: len(begun)] == begun and len(begun) < len(story):
            word = story[len(begun)]
            counts[word] = counts.get(word, 0.0) + p
    return {word: p / sum(counts.values()) for word, p in counts.items()}


def judged(words, next_words, known=lambda words, index: words[:index], cost=math.log):
    """The judge; known: the words after which the next is judged."""
    costs = []
    for index, word in enumerate(words):
        possible = next_words(known(words, index))
        if word not in possible:
            return costs, index
        costs.append(-cost(possible[word]))
    return costs, None


@exercise
def judge(student):
    def ask(words, next_words=told_after):
        try:
            found = call(student, list(words), next_words)
        except KeyError:
            raise Wrong(
                "KeyError: an impossible word is not in the dictionary. What then?"
            ) from None
        expect(
            isinstance(found, list | tuple) and len(found) == 2,
            "two things are wanted: the costs, and the index of the first impossible word.",
        )
        costs, index = found
        expect(
            index is None or hasattr(index, "__index__") or hasattr(index, "item"),
            f"the second result should be an index or None, and is {index!r}.",
        )
        expect(
            hasattr(costs, "__len__"),
            "the costs are one number, a total. The cost of each word is wanted, in a list.",
        )
        return [float(cost) for cost in costs], index if index is None else int(index)

    def same(found, wanted):
        (costs, index), (right, broken) = found, wanted
        return index == broken and agrees(torch.tensor(costs), torch.tensor(right))

    def expect_same(words, name, next_words=told_after):
        found, right = ask(words, next_words), judged(words, next_words)
        costs, broken = right
        before = "you give next_words the word itself, too: the words before it decide."
        known = {
            before: judged(words, next_words, lambda words, index: words[: index + 1]),
            "you give next_words only the word before: all words before decide.": judged(
                words, next_words, lambda words, index: words[max(0, index - 1) : index]
            ),
            "you give next_words the words one place too early.": judged(
                words, next_words, lambda words, index: words[: max(0, index - 1)]
            ),
            "the costs are in bits: which logarithm gives nats?": judged(
                words, next_words, cost=math.log2
            ),
            "the costs are logarithms to the base 10: which logarithm gives nats?": judged(
                words, next_words, cost=math.log10
            ),
            "your costs are probabilities: a certain word should cost 0.": judged(
                words, next_words, cost=lambda p: -p
            ),
            "your costs are 1 - p. The cost is -ln p.": judged(
                words, next_words, cost=lambda p: p - 1
            ),
            "your costs are 1/p, without a logarithm.": judged(
                words, next_words, cost=lambda p: -1 / p
            ),
            "the sign: a cost is not negative.": judged(
                words, next_words, cost=lambda p: -math.log(p)
            ),
            "your costs grow from word to word: is each the sum up to there?": (
                [sum(costs[: i + 1]) for i in range(len(costs))],
                broken,
            ),
            "the first word has no cost in your list: it comes after no words at all.": (
                costs[1:],
                broken,
            ),
            "the cost of the last word is missing: is <eos> a word, too?": (costs[:-1], broken),
        }
        for message, wrong in known.items():
            expect(same(wrong, right) or not same(found, wrong), message)
        found_costs, index = found
        if broken is None:
            expect(
                index is None,
                f"for {name} every word is possible, so the index should be None. Yours is "
                f"{index}.",
            )
        else:
            expect(
                index is not None,
                f"{name}: word {broken} is impossible, and your index is None.",
            )
            expect(
                index != broken + 1,
                "your index is one too large: words are counted from 0.",
            )
            expect(
                index == broken,
                f"{name}: word {broken} is the first impossible one, and your index is {index}.",
            )
            expect(
                len(found_costs) <= broken,
                "an impossible word has no cost, and what comes after it has none either: your "
                f"list has {len(found_costs)} costs for {broken} possible words.",
            )
        expect(
            len(found_costs) == len(costs),
            f"{name}: your list has {len(found_costs)} costs, and {len(costs)} words are possible.",
        )
        compare(torch.tensor(found_costs), torch.tensor(costs), what=f"{name}: the list of costs")

    for story in TOLD:
        expect_same(story.split(), "a whole story")
    expect_same("mia sat down".split(), "the beginning of a story")
    expect_same("mia sat down and tom ran".split(), "a story that breaks")
    expect_same("mia sat and tom slept . <eos>".split(), "a story that breaks")
    expect_same("pip sat".split(), "a story that breaks at once")
    expect_same("tom ran <eos>".split(), "a story that ends too soon")
    expect_same([], "a text without words")
    always = {"mia": 0.5, "<eos>": 0.5}  # whatever came before
    expect_same("mia tom mia".split(), "a story that goes on", lambda words: always)
    grammar = bundled_grammar()
    text, nats = grammar.story("judge")
    words = WordTokenizer([]).split(text)
    expect_same([*words, "<eos>"], "a story of the grammar", grammar.next_words)
    expect_same([*words[:20], "judge", *words[20:]], "a broken story", grammar.next_words)
    return f"a story of {len(words)} words costs {nats.sum():.1f} nats, {nats.mean():.2f} a word"
