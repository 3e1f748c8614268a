"""What the tests of reliability share: how many cases to try, and a disk that can be filled.

`make test` tries a few cases of everything; `make torture` sets TORTURE=1, and the same tests try
many.
"""

import os
import shutil
import subprocess
from functools import cache

import pytest

# Words that are markup somewhere: in HTML, Markdown, TeX or typst.
MARKUP = [
    *(
        "<script>alert(1)</script>",
        "<b>bold</b>",
        "&copy; &lt;",
        "<eos>",
        "javascript:alert(1)",
        "{{x}}",
    ),
    *(
        "[a](javascript:alert(1))",
        "![a](b.png)",
        "@eve",
        "~~a~~ a~b~c a^b^c",
        "a -- b... 'c' \"d\"",
        "`code`{=html}",
    ),
    *(
        "a | b",
        "*b* _i_ **c**",
        "\\",
        "\\*",
        "[^1]",
        "^[note]",
        ":smile:",
        "https://a.b",
        "$\\frac$ $x$",
        "$",
    ),
    *("= A title", "== x", "- x", "+ x", "/ a: b", "1. x", "-", "~", "// no", "/* no */"),
    *('#read("/etc/passwd")', "#[x]"),
]
MANY = os.environ.get("TORTURE") == "1"


def cases(few: int, many: int) -> int:
    return many if MANY else few


@cache
def _namespaces() -> list[str]:
    """The command before a command that gives it mounts of its own; empty where the system does not
    allow it.
    """
    command = [
        "unshare",
        "--mount",
        *([] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["--map-root-user"]),
    ]
    mount = [*command, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/tmp"]
    works = shutil.which("unshare") and subprocess.run(mount, capture_output=True).returncode == 0
    return command if works else []


def or_refused(load, *words: str):
    """What `load()` gives; None where it raises a ValueError, whose text must hold one of the
    words.
    """
    try:
        return load()
    except ValueError as error:
        refusal = str(error)
    assert any(word in refusal for word in words), refusal
    return None


def on_a_small_disk(kilobytes: int, folder, command: list[str]) -> subprocess.CompletedProcess:
    """Run a command that sees a disk of its own at `folder`. Skips the test where the system does
    not allow mounts.
    """
    if not _namespaces():
        pytest.skip(
            "this system lets nobody mount a small disk (Linux's `unshare --mount` is needed)"
        )
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$0" && exec "$@"'
    start = [*_namespaces(), "sh", "-c", mount, str(folder)]
    return subprocess.run([*start, *command], capture_output=True, text=True, timeout=300)
