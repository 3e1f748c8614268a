"""Run a command that reaches this machine and nothing else: python tests/without_network.py COMMAND
...

A Linux network namespace with loopback only, as root or where users may make namespaces. Elsewhere
the command runs with the network that there is, after a word about it; tests that need the network
cut read WITHOUT_NETWORK.
"""

import os
import shutil
import socket
import struct
import subprocess
import sys


def loopback_up() -> None:
    """What `ip link set lo up` does, which not every machine has."""
    import fcntl  # Linux

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(
            any_socket, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40)
        )  # SIOCSIFFLAGS: IFF_UP, IFF_RUNNING


def main(command: list[str]) -> None:
    if os.environ.get("WITHOUT_NETWORK") == "starting":
        loopback_up()
        os.environ["WITHOUT_NETWORK"] = "1"
        os.execvp(command[0], command)
    start = [
        "unshare",
        "--net",
        *([] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["--map-root-user"]),
    ]
    if (
        shutil.which("unshare")
        and subprocess.run([*start, "true"], capture_output=True).returncode == 0
    ):
        os.environ["WITHOUT_NETWORK"] = "starting"
        os.execvp("unshare", [*start, sys.executable, __file__, *command])
    print(
        "The network stays: it can only be cut on Linux, by root or where users may make "
        "namespaces.",
        file=sys.stderr,
    )
    os.environ.pop("WITHOUT_NETWORK", None)
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
