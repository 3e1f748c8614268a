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
# # Exercises for 04 · Training
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/exercises/04_training.ipynb)
#
# Five exercises, about an hour: the loss, the step and the learning rate of a training run; an experiment that finds a good rate; and a judge
# who says what each word of a story would cost a perfect model. Write your code in the cells that say `raise NotImplementedError`, and run the
# cell after each: it tells you what is right, or what the mistake looks like. Your functions must not change the tensors and lists that they are
# given. The exercises go with [notebook 04](../04_training.ipynb); the letters for sizes are those of [notebook 01](../01_embeddings.ipynb).

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

import torch
from torch import nn

from checks import training as check
from helpers.grammar import bundled_grammar
from helpers.loss import loss_sum
from helpers.notebook import show_source

# %% [markdown]
# ## 1 · The loss without padding
#
# ●○○ · 10 minutes
#
# The stories of a batch differ in length, and short ones are filled up with `<pad>`, the id `pad_id`. The model need not predict
# these fillers. Write the loss of a batch by hand: the sum of $-\ln p$ of the real targets, divided by *their* number, over the whole batch.
# Start from the logits: the check compares numbers, so it would accept PyTorch's own cross-entropy, but you would learn nothing. Your loss must
# also work if logits are as large as 1,000, whose $e^z$ no float32 can hold, or as low as -1,000.


# %% tags=["exercise"]
def batch_loss(logits, targets, pad_id):
    """The mean cross-entropy of the real targets, in nats.

    Args:
        logits: (B, T, V), a score of every word at every place.
        targets: (B, T), the ids that do come next; pad_id where a story has ended.
        pad_id: the id of the filler.

    Returns:
        A scalar tensor, from which a gradient can flow.
    """
    raise NotImplementedError


# %% tags=["solution"]
def batch_loss(logits, targets, pad_id):
    log_p = logits.log_softmax(dim=-1)  # (B, T, V)
    nats = -log_p.gather(-1, targets[..., None])[..., 0]  # (B, T)
    real = targets != pad_id  # (B, T)
    return nats[real].sum() / real.sum()  # ()


# %% tags=["second"]
def batch_loss(logits, targets, pad_id):
    total, count = 0.0, 0
    for story, words in zip(logits, targets.tolist(), strict=True):  # (T, V)
        for scores, word in zip(story, words, strict=True):  # (V,)
            if word != pad_id:
                total = total + torch.logsumexp(scores, 0) - scores[word]  # ()
                count += 1
    return total / count


# %% tags=["mistake"] says="fillers"
def batch_loss(logits, targets, pad_id):
    log_p = logits.log_softmax(-1)
    return -log_p.gather(-1, targets[..., None]).mean()


# %% tags=["mistake"] says="rounded to 0"
def batch_loss(logits, targets, pad_id):
    p = logits.softmax(-1).gather(-1, targets[..., None])[..., 0]
    return -p.log()[targets != pad_id].mean()


# %% tags=["mistake"] says="capped"
def batch_loss(logits, targets, pad_id):
    p = logits.softmax(-1).gather(-1, targets[..., None])[..., 0]
    return -(p + 1e-9).log()[targets != pad_id].mean()


# %% tags=["mistake"] says="number of all places"
def batch_loss(logits, targets, pad_id):
    nats = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return (nats * (targets != pad_id)).mean()


# %% tags=["mistake"] says="mean of the stories' means"
def batch_loss(logits, targets, pad_id):
    nats = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    real = targets != pad_id
    return ((nats * real).sum(1) / real.sum(1)).mean()


# %% tags=["mistake"] says="sum"
def batch_loss(logits, targets, pad_id):
    nats = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return nats[targets != pad_id].sum()


# %% tags=["mistake"] says="sign"
def batch_loss(logits, targets, pad_id):
    log_p = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return log_p[targets != pad_id].mean()


# %% tags=["mistake"] says="pad_id"
def batch_loss(logits, targets, pad_id):
    nats = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return nats[targets != 0].mean()


# %% tags=["mistake"] says="axis"
def batch_loss(logits, targets, pad_id):
    nats = -logits.log_softmax(1).gather(-1, targets[..., None])[..., 0]
    return nats[targets != pad_id].mean()


# %% tags=["mistake"] says="too large for float32"
def batch_loss(logits, targets, pad_id):
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    nats = -p.gather(-1, targets[..., None])[..., 0].log()
    return nats[targets != pad_id].mean()


# %% tags=["mistake"] says="gradient"
def batch_loss(logits, targets, pad_id):
    nats = -logits.detach().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return nats[targets != pad_id].mean()


# %% tags=["mistake"] says="not in nats"
def batch_loss(logits, targets, pad_id):
    nats = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return nats[targets != pad_id].mean() / math.log(2)


# %% tags=["check"]
check.batch_loss(batch_loss)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `log_softmax` subtracts the largest logit before it exponentiates. `gather` with targets of shape (B, T, 1) picks one number of each row. A
# table of true and false, as `targets != pad_id` gives, can choose entries of another table, and its sum counts them.
# </details>

# %% [markdown]
# ## 2 · A training step
#
# ●●○ · 10 minutes
#
# A step forgets the old gradient, computes the loss of the batch and its gradient, shortens the gradient if it is longer than `clip_norm`, and
# lets the optimizer change the parameters, at this step's learning rate. The loss whose gradient counts is the *mean* over real targets;
# `loss_sum(model, batch)` returns the sum and the number of them. All gradients together make one long vector, and its length (the root
# of the sum of its squares) is what is clipped.


# %% tags=["exercise"]
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    """Change the model by one step.

    Args:
        model: a Decoder.
        optimizer: of its parameters, perhaps in several groups; all move at `learning_rate`.
        batch: ids, (B, T).
        learning_rate: of this step.
        clip_norm: the gradient's largest allowed length.

    Returns:
        The mean loss of the batch before the step, as a number.
    """
    raise NotImplementedError


# %% tags=["solution"]
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)  # (), ()
    loss = total / count  # ()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return loss.item()


# %% tags=["second"]
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    for group in optimizer.param_groups:
        group.update(lr=learning_rate)
    parameters = list(model.parameters())
    logits, targets = model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
    loss = nn.functional.cross_entropy(logits, targets, ignore_index=0)  # ()
    gradients = torch.autograd.grad(loss, parameters)
    length = math.sqrt(sum(g.square().sum().item() for g in gradients))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient * min(1.0, clip_norm / length)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


# %% tags=["mistake"] says="step before"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    (total / count).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return (total / count).item()


# %% tags=["mistake"] says="too late"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    optimizer.zero_grad()
    (total / count).backward()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    return (total / count).item()


# %% tags=["mistake"] says="each number"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    optimizer.zero_grad()
    (total / count).backward()
    nn.utils.clip_grad_value_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return (total / count).item()


# %% tags=["mistake"] says="by itself"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    optimizer.zero_grad()
    (total / count).backward()
    for parameter in model.parameters():
        nn.utils.clip_grad_norm_([parameter], clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return (total / count).item()


# %% tags=["mistake"] says="number of all places"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    loss = loss_sum(model, batch)[0] / batch[:, 1:].numel()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return loss.item()


# %% tags=["mistake"] says="the new rate itself"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    optimizer.zero_grad()
    (total / count).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] *= learning_rate
    optimizer.step()
    return (total / count).item()


# %% tags=["mistake"] says="of the sum"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    optimizer.zero_grad()
    total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return (total / count).item()


# %% tags=["mistake"] says="learning_rate"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    optimizer.zero_grad()
    (total / count).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return (total / count).item()


# %% tags=["mistake"] says="first group"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    optimizer.zero_grad()
    (total / count).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.param_groups[0]["lr"] = learning_rate
    optimizer.step()
    return (total / count).item()


# %% tags=["mistake"] says="nothing has changed"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    (total / count).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad()
    optimizer.step()
    return (total / count).item()


# %% tags=["mistake"] says="holds the graph"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    optimizer.zero_grad()
    (total / count).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return total / count


# %% tags=["mistake"] says="after the step"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    optimizer.zero_grad()
    (total / count).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    total, count = loss_sum(model, batch)
    return (total / count).item()


# %% tags=["mistake"] says="another optimizer"
def training_step(model, optimizer, batch, learning_rate, clip_norm):
    total, count = loss_sum(model, batch)
    model.zero_grad()
    (total / count).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= learning_rate * parameter.grad
    return (total / count).item()


# %% tags=["check"]
check.training_step(training_step)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `backward` *adds* to the gradients that are there. `nn.utils.clip_grad_norm_` changes gradients, so it must come after they exist, and before
# they are used. An optimizer keeps its settings in `optimizer.param_groups`, a list of dictionaries with the key `"lr"`.
# </details>

# %% [markdown]
# ## 3 · Warm-up and cosine
#
# ●●○ · 10 minutes
#
# A schedule says how large the learning rate is at each step. This one rises linearly for `warmup_steps` steps: the first step has the peak
# divided by `warmup_steps`, and the last of them the peak itself. Then it falls along half a cosine: from the peak, at step
# `warmup_steps`, to zero at step `total_steps`, which is one after the last. Steps count from 0, and there may be no warm-up at all.


# %% tags=["exercise"]
def learning_rate(step, total_steps, warmup_steps, peak):
    """The learning rate of a step: a line up to `peak`, then half a cosine down to 0.

    Args:
        step: from 0 to total_steps - 1.
        total_steps: of the run.
        warmup_steps: of the climb, 0 or more; fewer than total_steps.
        peak: the largest learning rate.
    """
    raise NotImplementedError


# %% tags=["solution"]
def learning_rate(step, total_steps, warmup_steps, peak):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)  # from 0 to 1
    return peak * (1 + math.cos(math.pi * progress)) / 2


# %% tags=["second"]
def learning_rate(step, total_steps, warmup_steps, peak):
    climb = torch.arange(1, warmup_steps + 1) / max(1, warmup_steps)  # (warmup,)
    angle = torch.linspace(0, math.pi / 2, total_steps - warmup_steps + 1)[:-1]  # (rest,)
    return peak * torch.cat([climb, angle.cos() ** 2])[step].item()


# %% tags=["mistake"] says="first step"
def learning_rate(step, total_steps, warmup_steps, peak):
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2


# %% tags=["mistake"] says="starts at step 0"
def learning_rate(step, total_steps, warmup_steps, peak):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (1 + math.cos(math.pi * step / total_steps)) / 2


# %% tags=["mistake"] says="no warm-up"
def learning_rate(step, total_steps, warmup_steps, peak):
    climb = (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * (climb if step < warmup_steps else (1 + math.cos(math.pi * progress)) / 2)


# %% tags=["mistake"] says="straight line"
def learning_rate(step, total_steps, warmup_steps, peak):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (total_steps - step) / (total_steps - warmup_steps)


# %% tags=["mistake"] says="below 0"
def learning_rate(step, total_steps, warmup_steps, peak):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))


# %% tags=["mistake"] says="a quarter"
def learning_rate(step, total_steps, warmup_steps, peak):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * math.cos(math.pi / 2 * (step - warmup_steps) / (total_steps - warmup_steps))


# %% tags=["mistake"] says="last step"
def learning_rate(step, total_steps, warmup_steps, peak):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - 1 - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2


# %% tags=["mistake"] says="total_steps counts all steps"
def learning_rate(step, total_steps, warmup_steps, peak):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (1 + math.cos(math.pi * (step - warmup_steps) / total_steps)) / 2


# %% tags=["mistake"] says="half a cosine"
def learning_rate(step, total_steps, warmup_steps, peak):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * (1 + math.cos(2 * math.pi * progress)) / 2


# %% tags=["mistake"] says="//"
def learning_rate(step, total_steps, warmup_steps, peak):
    if step < warmup_steps:
        return peak * ((step + 1) // warmup_steps)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2


# %% tags=["mistake"] says="climb goes on"
def learning_rate(step, total_steps, warmup_steps, peak):
    if step <= warmup_steps:
        return peak * (step + 1) / max(1, warmup_steps)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2


# %% tags=["check"]
check.learning_rate(learning_rate)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# First compute how far the fall has come, as a number from 0 to 1. $\cos$ goes from 1 to -1 while its angle goes from 0 to $\pi$. What must you
# add to it, and what divide it by, so that it goes from 1 to 0?
# </details>

# %% [markdown]
# ## 4 · Find a learning rate
#
# ●●○ · 10 minutes
#
# An experiment. `check.loss_after(rate)` trains a tiny decoder for 30 steps, and returns the mean loss of its last ten steps. At which learning rate is this
# loss lowest? Guess first; then try rates that lie far apart, then closer ones. You are done if a rate four times yours and one a fourth of
# yours both end higher.

# %%
show_source(check.loss_after)


# %% tags=["exercise"]
def best_rate():
    """The learning rate that you found, one number."""
    raise NotImplementedError


# %% tags=["solution"]
def best_rate():
    return min([0.001, 0.003, 0.01, 0.03, 0.1], key=check.loss_after)


# %% tags=["second"]
def best_rate():
    return 0.02


# %% tags=["mistake"] says="too small"
def best_rate():
    return 3e-4


# %% tags=["mistake"] says="too large"
def best_rate():
    return 0.3


# %% tags=["mistake"] says="Is it a rate"
def best_rate():
    return check.loss_after(0.03)


# %% tags=["mistake"] says="above 0"
def best_rate():
    return 0


# %% tags=["check"]
check.best_rate(best_rate)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Rates are compared by factors: 0.0001, 0.001, 0.01, … Print `check.loss_after` of each. The loss falls, and then it rises again. Go on between the
# neighbours of the lowest.
# </details>

# %% [markdown]
# ## 5 · The judge
#
# ●●○ · 15 minutes
#
# The grammar of the stories knows the true probability of every next word: `grammar.next_words(words)` gives it after the words of a beginning,
# as a dictionary from word to probability, with `"<eos>"` for the end. What is not in it is impossible. With this function alone, write a judge: the
# cost $-\ln p$ of each word of a text, in nats, up to the first impossible word, and where that word stands.

# %%
grammar = bundled_grammar()
print(grammar.next_words(["once", "upon", "a", "time", ","]))


# %% tags=["exercise"]
def judge(words, next_words):
    """What the words of a text would cost whoever knows the grammar.

    Args:
        words: a list of words; the last may be "<eos>", which says that the text ends there.
        next_words: a function from a list of words to {next word: its probability}.

    Returns:
        The costs of the possible words up to the first impossible one, a list of numbers in nats;
        and the index of the first impossible word, or None if there is none.
    """
    raise NotImplementedError


# %% tags=["solution"]
def judge(words, next_words):
    costs = []
    for index, word in enumerate(words):
        possible = next_words(words[:index])
        if word not in possible:
            return costs, index
        costs.append(-math.log(possible[word]))
    return costs, None


# %% tags=["second"]
def judge(words, next_words):
    p = [next_words(words[:end]).get(word, 0.0) for end, word in enumerate(words)]
    broken = p.index(0.0) if 0.0 in p else None
    return tuple(torch.tensor(p[:broken], dtype=torch.float64).log().neg().tolist()), broken


# %% tags=["mistake"] says="word itself"
def judge(words, next_words):
    costs = []
    for index, word in enumerate(words):
        possible = next_words(words[: index + 1])
        if word not in possible:
            return costs, index
        costs.append(-math.log(possible[word]))
    return costs, None


# %% tags=["mistake"] says="only the word before"
def judge(words, next_words):
    costs = []
    for index, word in enumerate(words):
        possible = next_words(words[max(0, index - 1) : index])
        if word not in possible:
            return costs, index
        costs.append(-math.log(possible[word]))
    return costs, None


# %% tags=["mistake"] says="bits"
def judge(words, next_words):
    costs = []
    for index, word in enumerate(words):
        possible = next_words(words[:index])
        if word not in possible:
            return costs, index
        costs.append(-math.log2(possible[word]))
    return costs, None


# %% tags=["mistake"] says="probabilities"
def judge(words, next_words):
    costs = []
    for index, word in enumerate(words):
        possible = next_words(words[:index])
        if word not in possible:
            return costs, index
        costs.append(possible[word])
    return costs, None


# %% tags=["mistake"] says="sign"
def judge(words, next_words):
    costs = []
    for index, word in enumerate(words):
        possible = next_words(words[:index])
        if word not in possible:
            return costs, index
        costs.append(math.log(possible[word]))
    return costs, None


# %% tags=["mistake"] says="None"
def judge(words, next_words):
    costs = []
    for index, word in enumerate(words):
        possible = next_words(words[:index])
        if word not in possible:
            return costs, index
        costs.append(-math.log(possible[word]))
    return costs, len(words)


# %% tags=["mistake"] says="from 0"
def judge(words, next_words):
    costs = []
    for index, word in enumerate(words):
        possible = next_words(words[:index])
        if word not in possible:
            return costs, index + 1
        costs.append(-math.log(possible[word]))
    return costs, None


# %% tags=["mistake"] says="no cost"
def judge(words, next_words):
    costs = []
    for index, word in enumerate(words):
        p = next_words(words[:index]).get(word, 0)
        costs.append(-math.log(p) if p else math.inf)
        if not p:
            return costs, index
    return costs, None


# %% tags=["mistake"] says="after it has none either"
def judge(words, next_words):
    costs, broken = [], None
    for index, word in enumerate(words):
        p = next_words(words[:index]).get(word, 0)
        if p:
            costs.append(-math.log(p))
        elif broken is None:
            broken = index
    return costs, broken


# %% tags=["mistake"] says="KeyError"
def judge(words, next_words):
    return [-math.log(next_words(words[:i])[word]) for i, word in enumerate(words)], None


# %% tags=["mistake"] says="total"
def judge(words, next_words):
    total = 0.0
    for index, word in enumerate(words):
        possible = next_words(words[:index])
        if word not in possible:
            return total, index
        total -= math.log(possible[word])
    return total, None


# %% tags=["mistake"] says="one text"
def judge(words, next_words):
    costs = []
    for index, word in enumerate(words):
        possible = next_words(" ".join(words[:index]))
        if word not in possible:
            return costs, index
        costs.append(-math.log(possible[word]))
    return costs, None


# %% tags=["check"]
check.judge(judge)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The first word comes after no words at all: `next_words([])`. A word costs little if the grammar leaves hardly any choice there, and nothing
# if it leaves none.
# </details>
