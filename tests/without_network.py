"""Run a command that reaches this machine and nothing else.

python tests/without_network.py COMMAND ...

It gets a Linux network namespace with loopback only, which needs root, or users who may make
namespaces. Elsewhere the command runs with the network that there is, and the user is told; tests
that need the network cut read WITHOUT_NETWORK.
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

    set_flags, up_and_running = 0x8914, 0x1 | 0x40  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh", b"lo", up_and_running))


def main(command: list[str]) -> None:
    if os.environ.get("WITHOUT_NETWORK") == "starting":
        loopback_up()
        os.environ["WITHOUT_NETWORK"] = "1"
        os.execvp(command[0], command)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    start = ["unshare", "--net", *([] if root else ["--map-root-user"])]
    there = shutil.which("unshare")
    if there and subprocess.run([*start, "true"], capture_output=True).returncode == 0:
        os.environ["WITHOUT_NETWORK"] = "starting"
        os.execvp("unshare", [*start, sys.executable, __file__, *command])
    cause = "it can only be cut on Linux, by root or if users may make namespaces."
    print(f"The network stays: {cause}", file=sys.stderr)
    os.environ.pop("WITHOUT_NETWORK", None)
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
