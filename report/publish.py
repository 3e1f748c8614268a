"""A trained model for the Hugging Face Hub, with a model card made of the run's own numbers.

    python report/publish.py tinystories                   -> build/hub/tinystories, to look at
    python report/publish.py tinystories --to owner/name   the same, and uploaded
    python report/publish.py tinystories --context 256     the one of report/whole.py

Log in before an upload, with `hf auth login`. `helpers.checkpoints.load_checkpoint("owner/name")`
reads the model from there.
"""

import argparse
import math
import shutil
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, get_token

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from helpers.checkpoints import HUB_FILE, copies, load_checkpoint  # noqa: E402
from helpers.model import ModelConfig  # noqa: E402
from helpers.notebook import load_numbers, table  # noqa: E402
from helpers.recipe import trained_path  # noqa: E402
from helpers.stories import corpus_name  # noqa: E402
from helpers.support.files import make_folder, write_whole  # noqa: E402

DATASETS = {"tinystories": ("roneneldan/TinyStories", "TinyStories")}


def model_card(corpus: str, name: str, model, tokenizer, run: dict) -> ModelCard:
    """The card of a checkpoint and of the numbers in figures/<corpus>.

    Raises as `load_numbers` does, and ValueError if they are of another run.
    """
    length = model.config.context_length
    if length == ModelConfig.context_length:
        recorded, told = load_numbers(corpus, "04")["history"][-1], continued(corpus)
    else:
        whole = load_numbers(corpus, "whole")["runs"]["our recipe"]["0"]
        recorded, told = whole["rows"][-1], ended(whole["texts"], length)
    recorded = recorded["validation_loss"]
    # As far as notebook 04 lets another machine's run be off.
    if abs(run["validation_loss"] - recorded) > 0.03:
        raise ValueError(
            f"the trained model of {corpus} has validation loss {run['validation_loss']:.4f}, "
            f"figures/{corpus} says {recorded:.4f}: files of two runs; record the corpus again"
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project["urls"]["Repository"]
    dataset, title = DATASETS.get(corpus, (None, corpus))
    perplexity = round(math.exp(run["validation_loss"]), 2)
    result = EvalResult(
        task_type="text-generation",
        dataset_type=dataset or corpus,
        dataset_name=title,
        dataset_split="validation",
        metric_type="perplexity",
        metric_value=perplexity,
        metric_name="validation perplexity per word or punctuation mark",
    )
    data = ModelCardData(
        model_name=f"Story transformer, {title}",
        language="en",
        license=project["license"].lower(),
        library_name="pytorch",
        pipeline_tag="text-generation",
        tags=["word-level", "from-scratch"],
        datasets=[dataset] if dataset else None,
        eval_results=[result],
    )
    sizes = [[key.replace("_", " "), f"{value:,}"] for key, value in vars(model.config).items()]
    sizes.append(["words in the tokenizer", f"{len(tokenizer):,}"])
    text = f"""# Story transformer, {title}

A decoder-only transformer of {model.num_parameters():,} parameters, written from its basic parts
in PyTorch and trained on short stories. Its tokens are words and punctuation marks; its embedding
started from fastText vectors of the
training stories. The code, the notebooks that derive it and the report are at
[{repository.split("/")[-1]}]({repository}).

## Use

```bash
git clone {repository} course && cd course && pip install -e .
```

```python
from helpers.checkpoints import load_checkpoint
from helpers.decoding import generate

model, tokenizer, _ = load_checkpoint("{name}")
print(generate(model, tokenizer, ["Once upon a time"], max_new_tokens=50, seed=0)[0].text)
```

`transformers` cannot load it: the model, the tokenizer and the key-value cache are the
repository's own.

## Sizes

{table(sizes, ["size", ""]).markdown}

## Training

{run["step"]:,} steps over {run["tokens"]:,} tokens. The training loss fell to
{run["train_loss"]:.3f} nats per token, the validation loss to {run["validation_loss"]:.3f}:
a perplexity of {perplexity}. Weights are stored in bfloat16.

## Evaluation

{told}

## Limits

It knows the words and plots of little stories in English and nothing else. A text is at most
{length} tokens long. Its sentences are mostly grammatical;
cause and effect are not its strength. An
unknown word is read as unknown. What the training stories repeat, it repeats.
"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def continued(corpus: str) -> str:
    """What notebook 05 measured on the model's continuations."""
    rows = sorted(
        load_numbers(corpus, "05")["continuations"].items(), key=lambda row: row[1]["perplexity"]
    )
    cells = [
        [
            rule,
            f"{row['perplexity']:.2f}",
            "" if rule == "the true continuation" else f"{row['bleu']:.1f}",
        ]
        for rule, row in rows
    ]
    return f"""Fifty validation stories, continued from their first five words: perplexity per token
of the continuation under the model,
and BLEU against the true one.

{table(cells, ["continuation", "perplexity", "BLEU"]).markdown}"""


def ended(texts: dict, length: int) -> str:
    """What report/whole.py measured on the model's stories."""
    return f"""Two hundred validation stories, continued from their first five words at temperature
0.7 and top-p 0.9: {texts["ended"]:.0%} come to an end within {length} tokens."""


def prepare(source: str, name: str | None, context_length: int) -> Path:
    """build/hub/<name>: what the Hub gets. Nothing is written if a number is missing."""
    corpus, path = corpus_name(source), trained_path(source, context_length=context_length)
    if not path.exists():
        how = f"make record CORPUS={source}"
        if context_length != ModelConfig.context_length:
            how = f"python report/whole.py {source}"
        raise FileNotFoundError(f"{path} is missing: train it with `{how}`")
    model, tokenizer, run = load_checkpoint(path)
    card = model_card(corpus, name or f"owner/{corpus}", model, tokenizer, run)
    if context_length != ModelConfig.context_length:
        corpus = f"{corpus}-{context_length}"
    folder = ROOT / "build" / "hub" / corpus
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    write_whole(folder / HUB_FILE, path.read_bytes())
    parts = {"model": asdict(model.config), "metadata": run, "tokenizer": tokenizer.state()}
    for file, text in copies(parts).items():
        write_whole(folder / file, text)
    write_whole(folder / "README.md", str(card))
    return folder


def upload(folder: Path, name: str) -> str:
    """Everything in `folder`, in one commit, to the model `name` on the Hub, which is made if it
    is not there.
    """
    if get_token() is None:
        raise SystemExit(
            "not logged in: run `hf auth login` with a token that may write, then try again"
        )
    try:
        place = HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(
            repo_id=name, folder_path=folder, commit_message="The trained model and its card"
        )
    except Exception as error:  # of its HTTP client, which is another one in each version
        raise SystemExit(
            f"the Hub did not take {name} ({type(error).__name__}: {error}). The files are in "
            f"{folder}; try again"
        ) from error
    return str(place)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", help="bundled, tinystories, or the path that was recorded")
    parser.add_argument(
        "--to",
        metavar="OWNER/NAME",
        help="upload it as this model; without it, nothing leaves the machine",
    )
    parser.add_argument(
        "--context",
        type=int,
        default=ModelConfig.context_length,
        metavar="TOKENS",
        help="of the model (%(default)s); 256 for whole stories",
    )
    options = parser.parse_args()
    try:
        folder = prepare(options.corpus, options.to, options.context)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(
        f"{folder.relative_to(ROOT)}: {', '.join(sorted(path.name for path in folder.iterdir()))}"
    )
    if options.to:
        place = upload(folder, options.to)
        print(
            f"published: {place}\nName it in pyproject.toml, under [project.urls]: "
            f'Model = "{place}"; then run 07 again.'
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
