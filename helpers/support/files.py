"""Files: what they are, writing them whole or not at all, and a cache of what was made."""

import glob
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path

from helpers.support.checks import require

# How files begin, and what they are: the first that fits.
_KINDS = (
    (rb"PK\x03\x04.*(\[Content_Types\]\.xml|mimetype)", "a document of an office program"),
    (rb"PK\x03\x04.*/data\.pkl", "a PyTorch file"),
    (rb"PK\x03\x04.{26}[^/]*\.npy", "a NumPy file"),
    (rb".{257}ustar", "a tar archive"),
    (rb"Rar!\x1a\x07", "a rar archive"),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP", "a picture"),
    (rb".{6}\0\0\{\s*\"", "a safetensors file"),
    (rb"GGUF|\x89HDF\r\n|\x7fELF|ORC\x03", "a binary file"),
    (rb"version https://git-lfs", "a pointer of Git LFS, without the file itself"),
    (rb"\x04\x22\x4d\x18", "compressed with lz4"),
    (rb"\x1f\x8b", "compressed with gzip"),
    (rb"BZh[1-9]1AY&SY", "compressed with bzip2"),
    (rb"\xfd7zXZ\0", "compressed with xz"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (rb"PAR1", "a Parquet file"),
    (rb"ARROW1\0\0|\xff{4}..\0\0", "an Arrow file"),
    (rb"SQLite format 3\0", "an SQLite database"),
    (rb"\x93NUMPY", "a NumPy file"),
    (rb"\x80[\x02-\x05]", "a pickle or a PyTorch file"),
    (rb"%PDF-", "a PDF"),
    (rb"\{\\rtf|\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of a word processor"),
    (rb"(\xef\xbb\xbf)?\s*(<!--.*-->\s*)?(?i:<(!doctype html|html)\b)", "a web page"),
    # With a byte-order mark; without one, the zero bytes of English tell, after a curly quote too.
    (rb"\xff\xfe\0\0|\0\0\xfe\xff|([^\0].\0\0){2}|(\0\0.[^\0]){2}", "text in UTF-32"),
    (rb"\xff\xfe|\xfe\xff|(.\x20)?([^\0]\0){3}|(\x20.)?(\0[^\0]){3}", "text in UTF-16"),
)


def user_path(path: str | Path) -> Path:
    """A path as a user gives it: ~ in it is their home. Raises ValueError for what is no path."""
    require(isinstance(path, str | os.PathLike), f"{path!r} is no path: give one")
    return Path(os.path.expanduser(path))


def kind_of_file(path: str | Path) -> str | None:
    """What a file is by its first bytes, unless it may be plain UTF-8 text.

    Returns:
        words that complete "it is ...", such as "compressed with gzip" or "a PDF"; None for text
        and for what is not known here.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    return next((words for begin, words in _KINDS if re.match(begin, head, re.DOTALL)), None)


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file that takes its name in one step, when all of it is on the disk.

    A process that is killed, or two that write at once, therefore never leave half a file.

    Args:
        path: the file; an existing one is replaced.
        content: a str is written as UTF-8.

    Raises:
        OSError: with advice, if it cannot be written. An existing file stays as it was.
    """
    path = Path(path)
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    try:
        with _draft_folder(path.parent, path.name) as folder:
            draft = Path(folder, path.name)
            draft.write_bytes(data)
            _take_name(draft, path)
    except OSError as error:
        raise cannot_write(path, error) from error


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
        if isinstance(cause, OSError) and cause.errno in (ENOSPC, EDQUOT, EACCES, EPERM, EROFS):
            raise cannot_write(folder, cause) from error


def cache_directory() -> Path:
    """Where word vectors are kept: $CACHE_DIR, or .cache/vectors here. May be deleted."""
    return user_path(
        os.environ.get("CACHE_DIR") or Path(__file__).parents[2] / ".cache" / "vectors"
    )


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
        if path.name == f"{stem}-{_file_digest(path)}{path.suffix}":
            return path
        print(f"{path} is damaged: its content lost the hash in its name. It is built again.")
        path.unlink(missing_ok=True)
    make_folder(directory)
    with _draft_folder(directory, stem) as folder:
        built = build(Path(folder))
        return _take_name(built, directory / f"{stem}-{_file_digest(built)}{built.suffix}")


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _draft_folder(parent: Path, name: str) -> tempfile.TemporaryDirectory:
    """A hidden folder for a file until it is whole.

    What a killed process left of the same file is removed a day later: no training of vectors
    takes as long.
    """
    for left in parent.glob(f".{glob.escape(name)}.????????.partial"):
        with suppress(FileNotFoundError):  # another process has just finished with it
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(".partial", f".{name}.", parent, ignore_cleanup_errors=True)


def _take_name(draft: Path, path: Path) -> Path:
    with open(draft, "rb") as file:
        os.fsync(file.fileno())  # or a machine that loses power keeps the name, not the content
    return draft.replace(path)
