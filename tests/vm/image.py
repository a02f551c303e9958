"""The root file system that the machine starts from: Debian 12, what `.ci/run` installs, and the tests' dependencies.

Made once for each `pyproject.toml` and list of packages, and kept outside the tree (`LOWCLOUD_VM_CACHE`, by default in
the user's cache). A machine writes to a layer of its own above it, so every run begins with the same bytes. The project
is installed in it as a checkout at `TREE`, which a machine replaces by what lies here now.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
SUITE: Final = "bookworm"
PYTHON: Final = (3, 11)
"""Debian 12's: the wheels are collected by the Python that runs this."""
ENVIRONMENT: Final = "/opt/dev"
USER: Final = "someone"
"""Without any rights of its own."""
SIZE: Final = "16G"
"""Sparse, so it costs what is in it."""
BUILD_WITHIN_S: Final = 1800
MACHINE_PACKAGES: Final = (
    "linux-image-amd64",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "dbus-user-session",
    "openssh-server",
    "crun",
    "runc",
)
"""What makes a machine of it; the container runtimes are for `benchmarks.start`."""
EDITABLE: Final = "editables"
"""What hatchling needs to install a checkout where nothing can be fetched."""
TREE: Final = "/srv/lowcloud"
"""Where the project is in the machine; others than root may read it."""
NEEDED: Final = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "ssh-keygen": "openssh-client"}
_INSTALLS: Final = "install_packages "
_NETWORK: Final = "[Match]\nDriver=virtio_net\n[Network]\nDHCP=ipv4\n"
_SETUP: Final = r"""set -eu
echo lowcloud-vm > "$1/etc/hostname"
echo "127.0.1.1 lowcloud-vm" >> "$1/etc/hosts"
echo "/dev/vda / ext4 errors=remount-ro 0 1" > "$1/etc/fstab"
chroot "$1" systemctl enable systemd-networkd
chroot "$1" useradd --create-home --shell /bin/bash %(user)s
chroot "$1" python3 -m venv %(environment)s
chroot "$1" %(environment)s/bin/pip install --quiet --disable-pip-version-check --no-index --find-links /wheels \
    --requirement /wheels/requirements.txt
rm -r "$1/wheels"
chroot "$1" %(environment)s/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --editable %(tree)s
"""
_BUILT: Final = ("delta/kernel/*.wasm", "tools/guests/*.wasm")
"""Ignored by git; copied, so that nothing is built in a machine."""


class CannotBuild(Exception):
    """The message says what is missing or what failed."""


class Image(NamedTuple):
    """What a machine starts from."""

    disk: Path
    kernel: Path
    first_files: Path
    """The initial RAM disk."""
    key: Path
    """Whoever has it is root in the machine."""


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("LOWCLOUD_VM_CACHE") or Path(base) / "lowcloud-vm")


def packages() -> list[str]:
    """Debian's, by what `.ci/run` says."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    said = next(line for line in lines if line.startswith(_INSTALLS))
    return [*MACHINE_PACKAGES, *said.removeprefix(_INSTALLS).split()]


def requirements() -> list[str]:
    """Python's, by what `pyproject.toml` says."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = said["project"]
    dev = project["optional-dependencies"]["dev"]
    return sorted({*said["build-system"]["requires"], *project["dependencies"], *dev, EDITABLE})


def image() -> Image:
    """The image of this tree, made where it is not there yet. Raises CannotBuild."""
    told = "\n".join([_SETUP, _NETWORK, SIZE, *packages(), *requirements(), (ROOT / "pyproject.toml").read_text()])
    directory = cache_directory() / f"debian-12-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    made = Image(directory / "disk", directory / "kernel", directory / "initrd", directory / "key")
    with _alone(directory.with_suffix(".lock")):
        if not directory.exists():
            _check_tools()
            with tempfile.TemporaryDirectory(prefix="building-", dir=cache_directory()) as work:
                _build(Path(work))
                (Path(work) / "made").rename(directory)
    return made


def tree() -> bytes:
    """The project as it lies here, without what git ignores, as a tar file."""
    listed = _run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"])
    built = [os.fsencode(path.relative_to(ROOT)) for pattern in _BUILT for path in ROOT.glob(pattern)]
    names = [name for name in (*listed.split(b"\0"), *built) if name and (ROOT / os.fsdecode(name)).exists()]
    pack = ["tar", "--create", "--null", "--files-from=-", "--owner=0", "--group=0"]
    return _run(pack, b"\0".join(names))


def _check_tools() -> None:
    if os.geteuid() != 0:
        raise CannotBuild("making the image needs root: it is a file system with other users' files")
    if sys.version_info[:2] != PYTHON:
        raise CannotBuild("making the image needs Python 3.11, which Debian 12 has: wheels are collected for it")
    missing = [package for tool, package in NEEDED.items() if shutil.which(tool) is None]
    if missing:
        raise CannotBuild(f"making the image needs the Debian packages {', '.join(missing)}")


def _build(work: Path) -> None:
    root, made, wheels = work / "root", work / "made", work / "wheels"
    for directory in (made, wheels):
        directory.mkdir()
    _say("collecting the wheels")
    (wheels / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()))
    pip = [sys.executable, "-P", "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--wheel-dir", str(wheels), "--requirement", str(wheels / "requirements.txt")])
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lowcloud-vm", "-f", str(made / "key")])
    network = work / "10-lowcloud.network"
    network.write_text(_NETWORK)
    (work / "tree.tar").write_bytes(tree())
    _say("installing Debian")
    hooks = [
        'mkdir -p "$1/root/.ssh"',
        f"upload {made / 'key.pub'} /root/.ssh/authorized_keys",
        f"upload {network} /etc/systemd/network/{network.name}",
        f"copy-in {wheels} /",
        f'mkdir -p "$1{TREE}"',
        f"tar-in {work / 'tree.tar'} {TREE}",
        _SETUP % {"environment": ENVIRONMENT, "tree": TREE, "user": USER},
    ]
    _run(
        [
            *("mmdebstrap", "--quiet", "--variant=important", f"--include={','.join(packages())}"),
            *("--aptopt=Acquire::Check-Valid-Until false", "--skip=output/dev"),
            *(f"--customize-hook={hook}" for hook in hooks),
            *(SUITE, str(root)),
        ]
    )
    shutil.copy(root / "vmlinuz", made / "kernel")
    shutil.copy(root / "initrd.img", made / "initrd")
    _say("writing the file system")
    _run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(made / "disk"), SIZE])


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Two runs that start at once make one image."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str], given: bytes = b"") -> bytes:
    """What a command prints, run in the checkout."""
    try:
        done = subprocess.run(command, capture_output=True, cwd=ROOT, input=given, timeout=BUILD_WITHIN_S)
    except subprocess.TimeoutExpired as error:
        raise CannotBuild(f"{command[0]} takes longer than {BUILD_WITHIN_S} s") from error
    if done.returncode:
        raise CannotBuild(f"{command[0]} failed:\n{(done.stdout + done.stderr).decode(errors='replace')}")
    return done.stdout


def _say(what: str) -> None:
    print(f"the image: {what}", file=sys.stderr, flush=True)
