"""The Hugging Face Hub: models and stories."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from helpers.support.files import raise_if_full_or_locked


def download_model(name: str) -> Path:
    """The folder of the model "owner/name", downloaded now or, if the Hub fails, earlier.

    Raises ConnectionError if the Hub does not give it, OSError if its cache cannot be written.
    """
    from huggingface_hub import HfApi, constants, snapshot_download  # heavy, and needed by few

    files = ["config.json", "model.safetensors", "tokenizer.json"]
    try:
        HfApi().repo_info(name, timeout=20)  # seconds; snapshot_download would wait for ever
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # of its HTTP client, which is another one in each version
        raise_if_full_or_locked(error, constants.HF_HUB_CACHE)
        with suppress(Exception):
            return Path(snapshot_download(name, allow_patterns=files, local_files_only=True))
        raise ConnectionError(
            f"there is nothing called {name} here, and the model {name} did not come from the "
            f"Hugging Face Hub ({type(error).__name__}: {error}). Check the name, connect to the "
            "network, and try again"
        ) from error


def first_texts(load: Callable, name: str, split: str, count: int) -> Iterator[dict]:
    """The first `count` texts of a dataset's split that hold more than white space, as rows.

    load: `datasets.load_dataset`.
    """
    yield from (
        load(name, split=split, streaming=True)
        .select_columns("text")
        .filter(lambda row: row["text"].strip())
        .take(count)
    )
