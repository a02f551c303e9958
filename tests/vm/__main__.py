"""Tests on a stock Debian 12, as root: `python -m tests.vm tests/agent -q`. Something else: `--run 'lowcloud demo'`."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.vm.image import ENVIRONMENT, TREE, USER, CannotBuild, image
from tests.vm.machine import CannotRun, Machine, has_kvm, running

EMULATED_TIMEOUT_S: Final = 1200
AS_USER: Final = (
    f"loginctl enable-linger {USER} && chown -R {USER}: {TREE} && "
    f"runuser -u {USER} -- env -u DBUS_SESSION_BUS_ADDRESS XDG_RUNTIME_DIR=/run/user/$(id -u {USER}) "
    "systemd-run --quiet --wait --pipe --collect --user -- "
)
"""In a service of the user's own service manager, which has control groups to give."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("--run", metavar="COMMAND", help="a shell command in place of the tests")
    parser.add_argument(
        "--as-user", action="store_true", help="as an ordinary user, under a service manager of its own"
    )
    parser.add_argument("--within", type=float, default=3600.0, metavar="SECONDS", help="then the machine is ended")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=4096, metavar="MIB")
    parser.add_argument("--bring", type=Path, metavar="DIRECTORY", help="a directory that is put there as /srv/NAME")
    parser.add_argument(
        "--counted", action="store_true", help="emulated, with a clock that counts instructions: 10⁹ are a second"
    )
    args, pytest_arguments = parser.parse_known_args()
    if args.bring and not args.bring.is_dir():
        parser.error(f"--bring: {args.bring} is no directory")
    if not has_kvm():
        print("this processor runs no other machine: it is emulated, some ten times slower", file=sys.stderr)
        pytest_arguments.insert(0, f"--timeout={EMULATED_TIMEOUT_S}")
    command = args.run or f"pytest {shlex.join(pytest_arguments)}"
    try:
        with running(image(), cpus=args.cpus, memory_mib=args.memory, counted=args.counted) as machine:
            if args.bring:
                machine.bring(args.bring.resolve())
            return carry_out(machine, command, as_user=args.as_user, within_s=args.within)
    except (CannotBuild, CannotRun) as error:
        print(error, file=sys.stderr)
    except subprocess.TimeoutExpired as error:
        print(f"it takes longer than {error.timeout:.0f} s; the machine was ended", file=sys.stderr)
    return 3


def carry_out(machine: Machine, command: str, *, as_user: bool, within_s: float) -> int:
    """Bring the tree, run the command in it, and give back its exit code."""
    machine.copy_tree()
    there = f"cd {TREE} && export PATH={ENVIRONMENT}/bin:/usr/sbin:/sbin:$PATH CI=true && {command}"
    started = AS_USER + shlex.join(["bash", "-c", there]) if as_user else there
    return machine.run(started, within_s=within_s).returncode


if __name__ == "__main__":
    sys.exit(main())
