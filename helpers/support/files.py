"""Files that are there whole or not at all, JSON that notices damage, a cache of what was made."""

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_FULL_OR_LOCKED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file that takes its name in one step, when all of it is on the disk.

    A process that is killed, or two that write at once, therefore never leave half a file. What
    a killed process left beside it is removed an hour later by whoever writes the same file.

    Args:
        path: the file; an existing one is replaced.
        content: a str is written as UTF-8.

    Raises:
        OSError: with advice, if it cannot be written. An existing file stays as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    _clear(path.parent, f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.partial", hours=1)
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            # Or a machine that loses power could keep the name and lose the content.
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def make_folder(path: str | Path) -> None:
    """Make a folder and its parents, unless they exist.

    Raises OSError, with advice, if it cannot be made or written to.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: str | Path, error: OSError) -> OSError:
    """The same error, saying which file could not be written and what to do."""
    return OSError(
        error.errno,
        f"cannot write {path} ({error.strerror}): make room, or name a folder that is there and "
        "that you may write to, then try again",
    )


def raise_if_full_or_locked(error: BaseException, folder: str | Path) -> None:
    """If a library failed because it could not write to its `folder`, raise that in our words."""
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and cause.errno in _FULL_OR_LOCKED:
            raise cannot_write(folder, cause) from error


def write_json(path: str | Path, state: dict, format: int) -> None:
    """Write a dictionary as JSON, with the number of its format and the SHA-256 of its content.

    The format is raised when an older reader would misread the file.
    """
    state = state | {"format": format}
    state |= {"sha256": _json_digest(state)}
    write_whole(path, json.dumps(state, ensure_ascii=False, indent=1, sort_keys=True) + "\n")


def read_json(path: str | Path, format: int) -> dict:
    """What `write_json` wrote.

    Raises ValueError if the file holds anything else, FileNotFoundError if there is none.
    """
    try:
        state = json.loads(Path(path).read_bytes().decode("utf-8", "surrogatepass"))
        found, written = state["format"], state.pop("sha256", None)
        if found != format:
            raise ValueError(f"it has format {found}, this code reads format {format}")
        if written != _json_digest(state):
            raise ValueError("it was changed since it was saved")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not what was saved ({type(error).__name__}: {error}): save or copy it "
            "again, or update the code"
        ) from error
    return state


def _json_digest(state: dict) -> str:
    return hashlib.sha256(
        json.dumps(state, ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def cache_directory() -> Path:
    """Where word vectors are kept: $CACHE_DIR, or .cache/vectors here. May be deleted."""
    return Path(os.environ.get("CACHE_DIR") or Path(__file__).parents[2] / ".cache" / "vectors")


def cached(key: bytes, build: Callable[[Path], Path]) -> Path:
    """The file that build(folder) makes, built only if the cache does not have it.

    Its name holds the hashes of the key and of the content. It gets this name in one step, when
    it is whole: neither two processes at once nor one that dies can leave half a file. A file
    whose content no longer has that hash is built again.

    Args:
        key: everything that determines the content.
        build: makes the file inside a folder that is removed afterwards, and returns its path.
    """
    directory, stem = cache_directory(), hashlib.sha256(key).hexdigest()[:16]
    for path in sorted(directory.glob(f"{stem}-*")):
        with suppress(FileNotFoundError):  # another process has found the damage
            if path.name == f"{stem}-{_file_digest(path)}{path.suffix}":
                return path
            print(f"{path} is damaged: its content lost the hash in its name. It is built again.")
            path.unlink()
    make_folder(directory)
    _clear(directory, f".{stem}.*.partial", hours=24)  # no training takes as long
    with tempfile.TemporaryDirectory(
        prefix=f".{stem}.", suffix=".partial", dir=directory, ignore_cleanup_errors=True
    ) as partial:
        built = build(Path(partial))
        path = directory / f"{stem}-{_file_digest(built)}{built.suffix}"
        with open(built, "rb") as file:
            os.fsync(file.fileno())  # all of it is on the disk before it has its name
        built.replace(path)
    return path


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _clear(folder: Path, pattern: str, hours: float) -> None:
    """Remove what killed processes left, if it is old enough."""
    for left in folder.glob(pattern):
        with suppress(OSError):  # another process may do the same
            if time.time() - left.stat().st_mtime > hours * 3600:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
