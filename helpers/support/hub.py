"""The Hugging Face Hub: models and stories; a server that stays silent is given up."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from helpers.support.files import raise_if_full_or_locked

ANSWER = 20.0  # seconds that a first answer may take; without a network, the clients wait longer


def download_model(name: str) -> Path:
    """The folder of the model "owner/name", downloaded now or earlier.

    Raises ConnectionError if the Hub does not give it, OSError if its cache cannot be written.
    """
    from huggingface_hub import HfApi, snapshot_download  # heavy, and needed by few
    from huggingface_hub.constants import HF_HUB_CACHE

    unreachable = None
    wanted = {
        "repo_id": name,
        "allow_patterns": ["config.json", "model.safetensors", "tokenizer.json"],
    }
    try:
        HfApi().repo_info(name, timeout=ANSWER)
    except Exception as error:  # of its HTTP client, which is another one in each version
        unreachable = error
    try:
        try:
            return Path(snapshot_download(**wanted, local_files_only=bool(unreachable)))
        except Exception as error:
            if unreachable or "Timeout" in type(error).__name__:
                raise
            # Once more and from the beginning: what the first try left may be in the way.
            return Path(snapshot_download(**wanted, force_download=True))
    except Exception as error:
        raise_if_full_or_locked(error, HF_HUB_CACHE)
        cause = unreachable or error
        raise ConnectionError(
            f"there is nothing called {name} here, and the model {name} did not come from the "
            f"Hugging Face Hub ({type(cause).__name__}: {cause}). Check the name, connect to the "
            "network, and try again"
        ) from cause


def first_texts(load: Callable, name: str, split: str, count: int) -> Iterator[dict]:
    """The first `count` texts of a dataset's split that hold more than white space, as rows.

    load: `datasets.load_dataset`.
    """
    from huggingface_hub import HfApi

    HfApi().repo_info(name, repo_type="dataset", timeout=ANSWER)
    yield from (
        {"text": row["text"]}
        for row in islice(
            (row for row in load(name, split=split, streaming=True) if row["text"].strip()), count
        )
    )
