"""What is compared: our training step and our decoding, and those of others in the same sizes.

The peers: the model of an earlier deliverable of the same assignment, written anew from its
description; a GPT-2 in `transformers`; our own model with PyTorch's attention; PyTorch's
checkpointing; and a plain decoding loop over our own model. Shape comments as in helpers/model.py.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as pytorchs_checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.decoding import generate
from helpers.kv_cache import KVCache
from helpers.loss import output_loss
from helpers.model import Decoder, ModelConfig, MultiHeadAttention, sinusoidal_positions
from helpers.tokenizer import WordTokenizer
from helpers.training import TrainingConfig, make_optimizer, optimizer_step
from timing import in_turns, rate, ratio

SIZE = ModelConfig()
BATCH = 32  # stories of a training step
PROMPT, NEW = 4, 59  # words of a prompt; <sos>, these and 59 new tokens fill the context
WHO = ("ours", "plain loop", "Hugging Face")  # who decodes
GPT2, EARLIER = "GPT-2 in transformers", "the earlier deliverable's"


# Models -------------------------------------------------------------------------------------------


class EarlierNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))  # (D,)
        self.bias = nn.Parameter(torch.zeros(width))  # (D,)

    def forward(self, x: Tensor) -> Tensor:  # (…, D) -> (…, D)
        mean = x.mean(-1, keepdim=True)  # (…, 1)
        variance = x.var(-1, keepdim=True, unbiased=False)  # (…, 1)
        return self.gain * (x - mean) / torch.sqrt(variance + 1e-5) + self.bias  # (…, D)


class EarlierBlock(nn.Module):
    """Queries, keys and values apart, a mask of -1e9, dropout after each part."""

    def __init__(self, size: ModelConfig, dropout: float):
        super().__init__()
        self.heads, width = size.num_heads, size.d_model
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.expand, self.contract = nn.Linear(width, size.d_ff), nn.Linear(size.d_ff, width)
        self.norms = nn.ModuleList([EarlierNorm(width), EarlierNorm(width)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # (B, T, D), (T, T) -> (B, T, D)
        B, T, D = x.shape
        y = self.norms[0](x)  # (B, T, D)
        q, k, v = (
            layer(y).view(B, T, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # (B, H, T, K) each
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
        scores = scores.masked_fill(mask == 0, -1e9)  # (B, H, T, T)
        mixed = self.dropout(scores.softmax(-1)) @ v  # (B, H, T, K)
        joined = mixed.transpose(1, 2).contiguous().view(B, T, D)  # (B, T, D)
        x = x + self.dropout(self.output(joined))  # (B, T, D)
        wide = self.dropout(F.gelu(self.expand(self.norms[1](x))))  # (B, T, F)
        return x + self.dropout(self.contract(wide))  # (B, T, D)


class EarlierModel(nn.Module):
    def __init__(self, size: ModelConfig, dropout: float = 0.1):
        super().__init__()
        self.embedding = nn.Embedding(size.vocab_size, size.embedding_dim, padding_idx=0)
        self.projection = nn.Linear(size.embedding_dim, size.d_model)
        self.blocks = nn.ModuleList(EarlierBlock(size, dropout) for _ in range(size.num_layers))
        self.norm = EarlierNorm(size.d_model)
        self.output = nn.Linear(size.d_model, size.vocab_size)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("positions", sinusoidal_positions(size.context_length, size.d_model))

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        T = ids.shape[1]
        x = self.projection(self.embedding(ids)) + self.positions[:T]  # (B, T, D)
        x = self.dropout(x)  # (B, T, D)
        mask = torch.tril(torch.ones(T, T, device=ids.device))  # (T, T)
        for block in self.blocks:
            x = block(x, mask)  # (B, T, D)
        return self.output(self.norm(x))  # (B, T, V)


def gpt2(size: ModelConfig) -> GPT2LMHeadModel:
    """A GPT-2 of these sizes with PyTorch's attention, without dropout, its output layer not tied
    to the embedding, as ours is not.
    """
    config = GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=size.context_length,
        n_embd=size.d_model,
        n_layer=size.num_layers,
        n_head=size.num_heads,
        n_inner=size.d_ff,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # which it takes anyway, with a warning
    return model


class FusedAttention(MultiHeadAttention):
    """The same layer with PyTorch's attention, which returns no weights."""

    def forward(self, x: Tensor, mask: Tensor, remember=None) -> tuple[Tensor, None]:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads)  # (B, T, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, K)
        return self.output(mixed.transpose(1, 2).reshape(B, T, D)), None  # (B, T, D)


def fused(size: ModelConfig) -> Decoder:
    """Our model with PyTorch's attention."""
    model = Decoder(size)
    for block in model.blocks:
        block.attention.__class__ = FusedAttention
    return model


# Training steps -----------------------------------------------------------------------------------


def some_ids(size: ModelConfig, batch: int, device: str = "cpu") -> Tensor:  # (batch, T)
    """Random stories that fill the context."""
    return torch.randint(4, size.vocab_size, (batch, size.context_length), device=device)  # (B, T)


def our_step(
    size: ModelConfig,
    precision: str,
    batch: int = BATCH,
    device: str = "cpu",
    model: nn.Module | None = None,
    muon: float | None = None,
) -> Callable[[], object]:
    """One optimizer step of helpers.training, with the recipe of notebook 04.

    model: one that trains as a Decoder does; None: a new Decoder. muon: as TrainingConfig has it;
    None: AdamW moves everything, as in the peers.
    """
    torch.manual_seed(0)
    model = (model or Decoder(size)).to(device).train()
    config = TrainingConfig(batch_size=batch, muon=muon)
    ids = some_ids(size, batch, device)  # (B, T)
    optimizer = make_optimizer(model, config)
    return lambda: optimizer_step(model, optimizer, ids, 1e-4, config, precision)


def earlier_step(size: ModelConfig, batch: int = BATCH) -> Callable[[], object]:
    torch.manual_seed(0)
    model = EarlierModel(size).train()
    ids = some_ids(size, batch)  # (B, T)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def step():
        logits = model(ids[:, :-1])  # (B, T-1, V)
        loss = F.cross_entropy(
            logits.reshape(-1, size.vocab_size), ids[:, 1:].reshape(-1), ignore_index=0
        )  # ()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def gpt2_step(
    size: ModelConfig, precision: str, batch: int = BATCH, device: str = "cpu"
) -> Callable[[], object]:
    model = gpt2(size).to(device).train()
    ids = some_ids(size, batch, device)  # (B, T)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # (B, T-1) each
    config = TrainingConfig()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=config.betas, weight_decay=0.0, fused=True
    )

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss  # ()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        return loss.item()

    return step


def checkpointing_pass(
    model: Decoder, ids: Tensor, segments: tuple[int, ...], pytorchs: bool = False
) -> None:
    """Forward and backward with our checkpointing in these segments, or with PyTorch's, in which
    each block is one.
    """
    model.zero_grad(set_to_none=True)
    inputs, targets = ids[:, :-1], ids[:, 1:]  # (B, T-1) each
    if not pytorchs:
        model.set_recomputation(*segments)
        model(inputs, targets=targets)[0].backward()
        return
    T = inputs.shape[1]
    x = model.projection(model.embedding(inputs)) * model.config.d_model**0.5  # (B, T, D)
    x = model.dropout(x + model.positions[:T])  # (B, T, D)
    for block in model.blocks:
        x, _ = pytorchs_checkpoint(block, x, model.mask[:T, :T], use_reentrant=False)  # (B, T, D)
    output_loss(model.norm(x), model.output.weight, model.output.bias, targets).backward()


def products(size: ModelConfig, rows: int, projection: bool = True) -> list[tuple[int, int, int]]:
    """The linear layers of one pass over `rows` tokens, as (rows, inputs, outputs).

    projection: whether there is one after the embedding, as in ours and not in GPT-2.
    """
    D, F_ = size.d_model, size.d_ff
    block = [(D, 3 * D), (D, D), (D, F_), (F_, D)]
    first = [(size.embedding_dim, D)] * projection
    return [(rows, i, o) for i, o in [*first, *block * size.num_layers, (D, size.vocab_size)]]


# Decoding -----------------------------------------------------------------------------------------


@torch.inference_mode()
def plain_greedy(model: Decoder, ids: Tensor, new: int) -> Tensor:  # (B, T) -> (B, new)
    """The likeliest token, `new` times: a cache, an argmax, and nothing else.

    All rows are equally long, no token is kept out, and none ends a row.
    """
    cache = KVCache(
        model.config, len(ids), ids.shape[1] + new, ids.device, model.output.weight.dtype
    )
    tokens = []
    for _ in range(new):
        logits = model(ids, cache, last_only=True)  # (B, V)
        ids = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
        tokens.append(ids)
    return torch.cat(tokens, dim=1)  # (B, new)


def decoding_models(
    size: ModelConfig, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Decoder, GPT2LMHeadModel, WordTokenizer]:
    """Ours and GPT-2, and a tokenizer. In ours the tokens that end a text, and those that never
    come out, are never the likeliest.
    """
    tokenizer = WordTokenizer([f"w{i}" for i in range(size.vocab_size - 4)])
    torch.manual_seed(0)
    ours = Decoder(size).eval()
    with torch.no_grad():
        ours.output.bias[[tokenizer.eos_id, *tokenizer.excluded_ids(size.vocab_size)]] = -1e9
    return ours.to(device, dtype), gpt2(size).eval().to(device, dtype), tokenizer


def decoding_runs(models: tuple, prompts: int, beams: int, new: int) -> dict[str, Callable]:
    """`new` tokens for each of so many prompts: by our `generate`, by the plain loop if the search
    is greedy, and by that of `transformers`.
    """
    ours, theirs, tokenizer = models
    texts = [" ".join(f"w{i + j}" for j in range(PROMPT)) for i in range(prompts)]
    rows = [[tokenizer.sos_id, *tokenizer.encode(text)] for text in texts]
    ids = torch.tensor(rows, device=ours.output.weight.device)  # (P, 5)
    how = {"strategy": "beam", "num_beams": beams} if beams > 1 else {"strategy": "greedy"}
    search = {"max_new_tokens": new, "num_beams": beams, "do_sample": False, "pad_token_id": 0}

    def run_ours():
        found = generate(ours, tokenizer, texts, max_new_tokens=new, **how)
        assert all(len(one.ids) == new for one in found)
        return found

    def run_plain():
        return plain_greedy(ours, ids, new)  # (P, new)

    def run_theirs():
        found = theirs.generate(ids, attention_mask=torch.ones_like(ids), **search)  # (P, 5 + new)
        assert found.shape[1] == ids.shape[1] + new
        return found

    plain = {"plain loop": run_plain} if beams == 1 else {}
    return {"ours": run_ours, **plain, "Hugging Face": run_theirs}


def decoding_row(models: tuple, prompts: int, beams: int, new: int, turns: int) -> dict:
    """Tokens of finished texts per second, and ours as a multiple of Hugging Face's (`ratio`) and
    of the plain loop's (`ratio_plain`, if there is one).
    """
    seconds = in_turns(decoding_runs(models, prompts, beams, new), turns)
    kind = f"{beams} beams" if beams > 1 else "greedy"
    row: dict = {"work": f"{prompts} prompt{'s' * (prompts > 1)}, {kind}"}
    row |= {who: rate(prompts * new, found) for who, found in seconds.items()}
    row["ratio"] = ratio(seconds["ours"], seconds["Hugging Face"])
    if "plain loop" in seconds:
        row["ratio_plain"] = ratio(seconds["ours"], seconds["plain loop"])
    return row
