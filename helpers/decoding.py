"""Text from a prompt, one token at a time."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.model import Decoder
from helpers.tokenizer import WordTokenizer


@dataclass(frozen=True)
class Generation:
    """What followed a prompt: its text, its token ids (an `<eos>` included), and their summed log-probability in nats
    under the model itself, whatever temperature or filter chose them."""

    text: str
    ids: list[int]
    logprob: float


@torch.no_grad()
def generate(
    model: Decoder,
    tokenizer: WordTokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    strategy: str = "sample",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> list[Generation]:
    """Continue each prompt until `<eos>`, max_new_tokens, or the end of the model's context.

    strategy "greedy" takes the likeliest token; "sample" draws from softmax(logits / temperature), kept to the top_k
    likeliest tokens and to the smallest set whose probability reaches top_p (Holtzman et al. 2020, "The Curious Case of
    Neural Text Degeneration", section 3.1). The empty prompt starts a story. `<pad>`, `<sos>` and `<unk>` never come out.
    Each prompt has a random stream of its own, from `seed` and its place in the list; None draws a fresh seed.

    Raises ValueError where a setting makes no sense, or a prompt fills the context.
    """
    if strategy not in ("sample", "greedy"):
        raise ValueError(f"strategy={strategy!r}: choose 'sample' or 'greedy'")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0; for the likeliest token use strategy='greedy'")
    if (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(f"top_k={top_k}, top_p={top_p}: top_k must be at least 1, top_p above 0 and at most 1")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must not be negative")
    base = secrets.randbits(62) if seed is None else seed  # the caller's random stream stays as it is
    was_training = model.training
    model.eval()
    results = []
    for index, prompt in enumerate(prompts):
        ids = [tokenizer.sos_id, *tokenizer.encode(prompt)]
        room = model.config.context_length - len(ids)
        if room < 1:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens with <sos> and leaves no room in a context of "
                f"{model.config.context_length}: shorten it"
            )
        generator = torch.Generator().manual_seed((base + 0x9E3779B97F4A7C15 * index) % 2**63)
        new, logprob = [], 0.0
        while len(new) < min(max_new_tokens, room) and (not new or new[-1] != tokenizer.eos_id):
            logits = model(torch.tensor([ids + new], device=model.output.weight.device))[0, -1].float().cpu()  # (V,)
            log_probabilities = logits.log_softmax(dim=-1)  # (V,)
            logits[[tokenizer.pad_id, tokenizer.sos_id, tokenizer.unk_id]] = float("-inf")
            logits[len(tokenizer) :] = float("-inf")  # rows of the table without a word
            if strategy == "greedy":
                token = int(logits.argmax())
            else:
                probabilities = filtered_distribution(logits, temperature, top_k, top_p)  # (V,)
                token = int(torch.multinomial(probabilities, 1, generator=generator))
            new.append(token)
            logprob += log_probabilities[token].item()
        results.append(Generation(tokenizer.decode(new), new, logprob))
    model.train(was_training)
    return results


def filtered_distribution(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
):
    """logits (V,) -> the probabilities (V,) that sampling draws from; what is filtered out has probability 0."""
    scores, order = (logits / temperature).sort(descending=True)  # (V,), (V,)
    if top_k is not None:
        scores[top_k:] = float("-inf")
    probabilities = scores.softmax(dim=-1)  # (V,)
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities  # (V,), probability of the likelier tokens
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
        probabilities /= probabilities.sum()
    return torch.zeros_like(probabilities).scatter(0, order, probabilities)
