"""A virtual machine that runs while a `with` lasts, and is reached as root by `ssh` over the loopback.

It has no way out: its network leads to this machine's one forwarded port and nowhere else. What it writes goes to a
layer above the image that ends with it; a reboot keeps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.ports import free_port
from tests.vm.image import TREE, Image, tree

EMULATOR: Final = "qemu-system-x86_64"
KVM: Final = Path("/dev/kvm")
PROCESSOR: Final = Path("/proc/cpuinfo")
BOOT_WITHIN_S: Final = 300.0
ASK_AGAIN_S: Final = 0.5
_PR_SET_PDEATHSIG: Final = 1


class CannotRun(Exception):
    """The message says what is missing, or what the machine did last."""


def why_not() -> str:
    """What this machine lacks to run another one; "" where it lacks nothing."""
    tools = {EMULATOR: "qemu-system-x86", "ssh": "openssh-client", "git": "git", "tar": "tar"}
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    return f"a virtual machine needs the Debian packages {', '.join(missing)}" if missing else ""


class Machine:
    """One that runs. Made by `running`."""

    def __init__(self, ssh: Sequence[str], emulator: subprocess.Popen[bytes], console: Path) -> None:
        self.ssh = tuple(ssh)
        self._emulator = emulator
        self._console = console

    def run(self, command: str, *, within_s: float, capture: bool = False) -> subprocess.CompletedProcess[str]:
        """A shell command as root; its output passes through, or is captured. Raises subprocess.TimeoutExpired; the
        command may then still run."""
        return subprocess.run([*self.ssh, command], capture_output=capture, text=True, timeout=within_s)

    def ask(self, command: str, *, within_s: float = 60.0) -> str:
        """What a command prints. Raises CannotRun where it fails."""
        done = self.run(command, within_s=within_s, capture=True)
        if done.returncode:
            raise CannotRun(f"`{command}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def copy_tree(self, *, within_s: float = 120.0) -> None:
        """Bring the project as it lies here."""
        replace = f"rm -rf {TREE} && mkdir {TREE} && tar --extract --directory {TREE}"
        subprocess.run([*self.ssh, replace], input=tree(), check=True, timeout=within_s)

    def bring(self, directory: Path, *, within_s: float = 300.0) -> None:
        """A directory with all that is in it, as `/srv/NAME`."""
        pack = ["tar", "--create", "--directory", str(directory.parent), directory.name]
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as packed:
            take = [*self.ssh, "tar --extract --touch --no-same-owner --directory /srv"]
            subprocess.run(take, stdin=packed.stdout, check=True, timeout=within_s)

    def reboot(self) -> None:
        """Boot again, and wait until it takes commands."""
        before = self.boot()
        self.run("systemctl reboot", within_s=30)
        self.wait(lambda: self.boot() not in ("", before), "it boots again")

    def boot(self) -> str:
        """Which boot this is; "" while it takes no commands."""
        try:
            done = self.run("cat /proc/sys/kernel/random/boot_id", within_s=10, capture=True)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.strip()

    def wait(self, condition: Callable[[], bool], what: str, *, within_s: float = BOOT_WITHIN_S) -> None:
        """Raises CannotRun where it does not come true."""
        deadline = time.monotonic() + within_s
        while not condition():
            if self._emulator.poll() is not None or time.monotonic() > deadline:
                raise CannotRun(f"not within {within_s:.0f} s: {what}; its console's end:\n{self._last_words()}")
            time.sleep(ASK_AGAIN_S)

    def _last_words(self) -> str:
        return self._console.read_bytes()[-2000:].decode(errors="replace")


@contextlib.contextmanager
def running(image: Image, *, cpus: int = 2, memory_mib: int = 4096, counted: bool = False) -> Iterator[Machine]:
    """A machine that takes commands; it ends with the `with`, or with this process. `counted`: it is emulated, and its
    clock counts what it executes, an instruction a nanosecond, so that no other work here makes it slower by its own
    clock. Raises CannotRun."""
    problem = why_not()
    if problem:
        raise CannotRun(problem)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="lowcloud-vm-") as directory:
        console = Path(directory) / "console"
        emulator = subprocess.Popen(
            _command(image, port, console, cpus, memory_mib, counted),
            env={**os.environ, "TMPDIR": directory},
            stdin=subprocess.DEVNULL,
            preexec_fn=_end_with_this_process,
        )
        try:
            machine = Machine(_ssh(image, port, Path(directory)), emulator, console)
            machine.wait(lambda: machine.boot() != "", "it takes commands")
            yield machine
        finally:
            emulator.kill()
            emulator.wait()


def has_kvm() -> bool:
    """Whether the processor itself runs machines for us. Some hosts have the device without that (KVM's PVM,
    whose guests need a kernel with `CONFIG_PVM_GUEST`, which Debian's have not): there every instruction of a kernel
    that was not made for it is interpreted, far slower than the emulator would be."""
    flags = set(PROCESSOR.read_text().split())
    return os.access(KVM, os.R_OK | os.W_OK) and not flags.isdisjoint({"vmx", "svm"})


def _command(image: Image, port: int, console: Path, cpus: int, memory_mib: int, counted: bool) -> list[str]:
    emulated = {"-accel": "tcg,tb-size=1024", "-cpu": "max,la57=off"}
    if counted:
        processor = {**emulated, "-icount": "shift=0"}
    else:
        processor = {"-accel": "kvm", "-cpu": "host"} if has_kvm() else emulated
    options = {
        "-machine": "q35",
        **processor,
        "-smp": str(cpus),
        "-m": str(memory_mib),
        "-kernel": str(image.kernel),
        "-initrd": str(image.first_files),
        "-append": "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off systemd.show_status=0",
        "-drive": f"file={image.disk},format=raw,if=virtio,snapshot=on,discard=unmap",
        "-netdev": f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device": "virtio-net-pci,netdev=net",
        "-object": "rng-random,id=rng,filename=/dev/urandom",
        "-serial": f"file:{console}",
        "-display": "none",
        "-monitor": "none",
    }
    return [
        EMULATOR,
        "-nodefaults",
        *(part for option in options.items() for part in option),
        "-device",
        "virtio-rng-pci,rng=rng",
    ]


def _ssh(image: Image, port: int, directory: Path) -> list[str]:
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "60",
        "ControlMaster": "auto",
        "ControlPath": str(directory / "ssh"),
        "ControlPersist": "300",
        "LogLevel": "ERROR",
        "ServerAliveInterval": "30",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
    }
    said = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    return ["ssh", "-i", str(image.key), "-p", str(port), *said, "root@127.0.0.1"]


def _end_with_this_process() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
