"""Trained models and saved runs on disk: one file each, whole, checked, and without code in it.

A *checkpoint* is a trained model with its tokenizer. A *saved run* is what training resumes from.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from helpers.model import Decoder, ModelConfig
from helpers.support.checks import require
from helpers.support.files import kind_of_file, make_folder, user_path, write_whole
from helpers.support.hub import download_model
from helpers.tokenizer import WordTokenizer

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
HUB_FILE = "model.safetensors"  # the checkpoint, in a folder of the Hub
RUN_FILE = "resume.safetensors"
FORMAT = "3"  # of both; it is raised when an older reader would misread a file
COLUMNS = ("step", "tokens", "learning_rate", "train_loss", "validation_loss", "seconds")


def checkpoint_path(path: str | Path) -> Path:
    """The file of a checkpoint: the path itself, or with .safetensors after it."""
    path = user_path(path)
    return path if path.suffix == ".safetensors" else Path(f"{path}.safetensors")


def save_checkpoint(
    path: str | Path,
    model: Decoder,
    tokenizer: WordTokenizer,
    metadata: dict | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a trained model into one file: weights, sizes, tokenizer and metadata.

    Args:
        path: the file; .safetensors is added if it is missing. An existing file is replaced.
        model, tokenizer: what to save.
        metadata: whatever JSON holds; `load_checkpoint` returns it.
        dtype: of the weights.

    Returns:
        The file.

    Raises:
        OSError: if it cannot be written.
        ValueError: if the tokenizer is another model's, or has more tokens than the model.
        TypeError: if JSON cannot hold the metadata.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile: the model that it wraps
    model.check_tokenizer(tokenizer)
    path = checkpoint_path(path)
    make_folder(path.parent)
    _write_tensors(
        path,
        model.state_dict(),
        {"model": asdict(model.config), "metadata": metadata or {}}
        | {"tokenizer": tokenizer.state()},
        dtype,
    )
    return path


def load_checkpoint(path: str | Path) -> tuple[Decoder, WordTokenizer, dict]:
    """Read what `save_checkpoint` wrote.

    path: the file, with or without .safetensors; a folder as it is published on the Hugging Face
    Hub; or "owner/name", a model on the Hub, if there is no such file or folder.

    Returns:
        The model (float32, in eval mode), the tokenizer and the metadata.

    Raises:
        FileNotFoundError: if there is none.
        ConnectionError: if the Hub does not give the model.
        ValueError: if the file is damaged or holds something else.
    """
    file, folder = checkpoint_path(path), user_path(path)
    if not file.is_file():
        on_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path))
        if on_hub and isinstance(path, str) and file != folder and not folder.exists():
            folder = download_model(path)
        file = folder if folder.is_file() else folder / HUB_FILE if folder.is_dir() else file
    require(
        file.is_file(),
        f"{file} is missing: there is no checkpoint"
        + " but a saved run, to resume from" * (folder / RUN_FILE).is_file()
        + "; save or copy it again",
        FileNotFoundError,
    )
    weights, parts = _read_tensors(file, "save or copy it again")
    try:
        for name, text in copies(parts).items() if file.parent == folder else ():
            require(
                (folder / name).read_text(encoding="utf-8") == text,
                f"{name} is not the one that was published with it",
            )
        sizes = ModelConfig(**parts["model"])
        tokenizer, metadata = WordTokenizer.from_state(parts["tokenizer"]), parts["metadata"]
        require(sizes.num_layers <= len(weights), "it promises more blocks than it holds")
        with torch.device("meta"):  # shapes alone: a stranger's sizes might fill any memory
            Decoder(sizes).load_state_dict(weights, assign=True)
        model = Decoder(sizes)
        model.check_tokenizer(tokenizer)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{file} cannot be read as a checkpoint ({error}): save or copy it again"
        ) from error
    model.load_state_dict(weights)
    model.tokenizer_digest = tokenizer.digest
    return model.eval(), tokenizer, metadata


def copies(parts: dict) -> dict[str, str]:
    """The files that stand beside the checkpoint in a folder of the Hub: what it holds, as JSON."""
    files = {
        "config.json": {name: parts[name] for name in ("model", "metadata")},
        "tokenizer.json": parts["tokenizer"],
    }
    return {name: json.dumps(part, indent=1, sort_keys=True) for name, part in files.items()}


@dataclass
class History:
    """Where a run is, and what it has recorded: one row per validation.

    A row holds the COLUMNS. Losses are mean nats per token; train_loss is the mean since the row
    before; tokens and seconds count from the start.
    """

    rows: list[dict] = field(default_factory=list)
    step: int = 0  # optimizer steps done
    tokens: int = 0  # targets read so far
    loss_sum: float = 0.0  # of the training losses since the last row, in nats
    loss_tokens: int = 0  # and how many they are
    seconds: float = 0.0  # when the run was saved
    precision: str = ""  # "bf16" or "fp32": a resumed run keeps what was picked

    def column(self, name: str) -> list:
        return [row[name] for row in self.rows]

    def add(self, loss_sum: float, tokens: int) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.tokens += tokens
        self.loss_sum += loss_sum
        self.loss_tokens += tokens

    def record(self, learning_rate: float, validation_loss: float, seconds: float) -> dict:
        """Add and return a row; the mean of the training losses starts again."""
        losses = self.loss_sum / self.loss_tokens, validation_loss
        numbers = self.step, self.tokens, learning_rate, *losses, seconds
        self.rows.append(dict(zip(COLUMNS, numbers, strict=True)))
        self.loss_sum, self.loss_tokens = 0.0, 0
        return self.rows[-1]

    def save(self, folder: Path) -> None:
        """log.csv, which a resumed run repeats to the bit, and timing.csv, which it cannot."""
        for name, columns in (
            ("log.csv", COLUMNS[:-1]),
            ("timing.csv", ("step", "tokens", "seconds")),
        ):
            rows = [columns, *([row[column] for column in columns] for row in self.rows)]
            write_whole(folder / name, "".join(f"{','.join(map(str, row))}\n" for row in rows))


def save_run(
    folder: Path,
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    history: History,
    identity: dict,
) -> None:
    """Write everything that a run needs to continue into one file of the folder.

    identity: what must agree for a resumed run to be the same run.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in moments.items()}
    _write_tensors(folder / RUN_FILE, tensors, {"history": asdict(history), "identity": identity})


def read_run(folder: Path) -> tuple[dict[str, Tensor], History, dict]:
    """What `save_run` wrote: weights and the optimizer's moments, the history, the identity.

    Raises FileNotFoundError if there is none, ValueError if it is damaged or of another format.
    """
    path = folder if folder.is_file() else folder / RUN_FILE
    require(
        path.is_file(),
        f"{path} is missing: there is no run to resume in {folder}; start a new one",
        FileNotFoundError,
    )
    advice = "delete it and start the run again"
    tensors, parts = _read_tensors(path, advice)
    try:
        return tensors, History(**parts["history"]), parts["identity"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no saved run ({error}): {advice}") from error


def resume_run(
    folder: Path, model: Decoder, optimizer: torch.optim.Optimizer, identity: dict
) -> History:
    """Put a saved run's weights and moments back, and return its history.

    Raises as `read_run` does, and ValueError, before it changes anything, if this is another run's.
    """
    tensors, history, saved = read_run(folder)
    changed = [
        f"{key}: {saved.get(key)} there, {value} here"
        for key, value in identity.items()
        if saved.get(key) != value
    ]
    require(
        not changed,
        f"{folder} holds another run ({'; '.join(changed)}): resume with the config it was started "
        "with",
    )
    state = optimizer.state_dict()
    moments = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
    for name, moment in moments.items():
        _, index, key = name.split(".")
        state["state"].setdefault(int(index), {})[key] = moment
    model.load_state_dict(
        {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    )
    optimizer.load_state_dict(state)
    return history


def _write_tensors(path: Path, tensors: dict[str, Tensor], parts: dict, dtype=None) -> None:
    """One file of tensors and JSON, with the SHA-256 of both."""
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in tensors.items()}
    text = json.dumps(parts)
    write_whole(
        path,
        save(
            tensors,
            {"format": "pt", "version": FORMAT, "parts": text}
            | {"sha256": tensor_digest(tensors, text)},
        ),
    )


def _read_tensors(path: Path, advice: str) -> tuple[dict[str, Tensor], dict]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = metadata.get("version", "unknown")
        newer = ": update the code" * found.isdigit()
        require(found == FORMAT, f"it has format {found}, this code reads {FORMAT}{newer}")
        require(
            tensor_digest(tensors, metadata["parts"]) == metadata["sha256"],
            "its content no longer has the SHA-256 that it names",
        )
        return tensors, json.loads(metadata["parts"])
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}; it is {kind_of_file(path) or 'damaged or foreign'}): "
            f"{advice}"
        ) from error


def tensor_digest(tensors: dict[str, Tensor], text: str) -> str:
    """The SHA-256 of a text, and of the names, types, shapes and bytes of tensors."""
    names = sorted(tensors)
    digest = hashlib.sha256(
        json.dumps(
            [text, [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]]
        ).encode()
    )
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
