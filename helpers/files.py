"""Files that are there whole or not at all, and JSON that notices when it was damaged."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

_AGAIN = "save or copy it again"
_ADVICE = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within your quota",
    errno.ENOENT: "its folder is gone; make it again",
    errno.EEXIST: "a file has the name of its folder; name another",
    errno.ENOTDIR: "a file has the name of its folder; name another",
    errno.EACCES: "name a folder that you may write to",
    errno.EPERM: "name a folder that you may write to",
    errno.EROFS: "name a folder that can be written to",
}
_FULL_OR_LOCKED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file that takes its name in one step, when all of it is on the disk. A str is written
    as UTF-8.

    So neither a process that is killed nor two that write at once leave half a file: the last one's
    is there. What a killed one left beside it is removed by whoever writes the same file more than
    an hour later. Raises OSError, with a word on what to do, where it cannot be written; a file
    that was there stays as it was.
    """
    path = Path(path)
    partial = beside(path, "partial")
    clear_left(path)
    try:
        try:
            with open(partial, "wb") as file:
                file.write(
                    content.encode("utf-8", "surrogatepass")
                    if isinstance(content, str)
                    else content
                )
                file.flush()
                os.fsync(
                    file.fileno()
                )  # or a machine that loses power could keep the name and lose the content
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def make_folder(path: str | Path) -> None:
    """Make a folder, and those that it is in, unless it is there.

    Raises OSError, with a word on what to do, where it cannot be made or written to.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            code = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code))
    except OSError as error:
        raise cannot_write(path, error) from error


def beside(path: Path, kind: str) -> Path:
    """A hidden name beside a file or folder, for what becomes it. kind: "partial", or "new" or
    "old" for a whole one.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def left_beside(path: Path, *kinds: str) -> list[Path]:
    """What has such a name now, of this file or folder and no other."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.({'|'.join(kinds)})")
    with suppress(OSError):
        return sorted(other for other in path.parent.iterdir() if pattern.fullmatch(other.name))
    return []


def clear_left(path: Path, hours: float = 1) -> None:
    """Remove what killed processes left beside a file or folder that they were writing: hidden, and
    older than that.
    """
    for left in left_beside(path, "partial", "new", "old"):
        with suppress(OSError):  # another process may do the same
            if time.time() - left.stat().st_mtime > hours * 3600:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def cannot_write(path: str | Path, error: OSError) -> OSError:
    """The same error, saying which file could not be written and what to do."""
    advice = _ADVICE.get(error.errno, "make it writable")
    return OSError(error.errno, f"cannot write {path} ({error.strerror}): {advice}, then try again")


def raise_if_full_or_locked(error: BaseException, folder: str | Path) -> None:
    """For an error of a library that keeps files in `folder`: where it could not write them, raise
    that, as `cannot_write` says it. Any other error passes.
    """
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and cause.errno in _FULL_OR_LOCKED:
            raise cannot_write(folder, cause) from error


def write_json(path: str | Path, state: dict, format: int) -> None:
    """Write a dictionary as JSON, with the number of its format and the SHA-256 of its content.

    The format is raised when an older reader would misread the file.
    """
    state = state | {"format": format}
    text = json.dumps(
        state | {"sha256": _digest(state)}, ensure_ascii=False, indent=1, sort_keys=True
    )
    write_whole(path, f"{text}\n")


def read_json(path: str | Path, format: int) -> dict:
    """What `write_json` wrote. Raises ValueError where the file holds anything else,
    FileNotFoundError for no such file.
    """
    try:
        state = json.loads(Path(path).read_bytes().decode("utf-8", "surrogatepass"))
        found, written = state["format"], state.pop("sha256", None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not what was saved ({type(error).__name__}: {error}): {_AGAIN}"
        ) from error
    if found != format:
        raise ValueError(
            f"{path} has format {found}, this code reads format {format}: update the code, or "
            f"{_AGAIN}"
        )
    if written != _digest(state):
        raise ValueError(
            f"{path} was changed since it was saved, its content has another SHA-256: {_AGAIN}"
        )
    return state


def _digest(state: dict) -> str:
    content = json.dumps(state, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()
