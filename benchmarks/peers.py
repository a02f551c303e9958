"""Systems that keep versions of files, each behind the same few calls, for `benchmarks/store.py`.

Each adds a version and gives a series' newest one back by the commands that its users type, every one a fresh process.
All keep what they store in one directory, so that what is on disk is counted the same way for all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from benchmarks.measure import Cost, measured

ROOT = Path(__file__).parent.parent

ADD_OURS = """
import sys
from pathlib import Path
from cas.store import Store
with Store.open(Path(sys.argv[1])) as store:
    stored = store.put(Path(sys.argv[3]).read_bytes(), name=sys.argv[2])
    print(stored.stored_bytes)
"""
REPACK_OURS = """
import sys
from pathlib import Path
from cas.store import Store
with Store.open(Path(sys.argv[1])) as store:
    store.repack()
"""
READ_OURS = """
import sys
from pathlib import Path
from cas.store import Store
with Store.open(Path(sys.argv[1]), create=False) as store:
    sys.stdout.buffer.write(store.read(store.history(sys.argv[2])[0]))
"""


class Peer(Protocol):
    """One system with a repository of its own. `needs` is the command without which it is left out."""

    name: str
    needs: str

    def __init__(self, scratch: Path) -> None: ...

    def add(self, series: str, path: Path) -> tuple[Cost, int]:
        """Add SERIES/VERSION/FILE: cost, and the bytes that a copy with the version before must be sent."""
        ...

    def finish(self) -> Cost:
        """What its users run from time to time."""
        ...

    def read(self, series: str, out: Path) -> Cost:
        """The newest version of a series into a file."""
        ...

    @property
    def directory(self) -> Path: ...


def directory_bytes(directory: Path) -> int:
    """Blocks on disk."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def content_bytes(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


class Lowcloud:
    """With bytecode compiled, as an installed package has it, and no compiled kernel to begin with."""

    name, needs = "lowcloud", sys.executable

    def __init__(self, scratch: Path) -> None:
        self.directory = scratch / "lowcloud"
        self._printed = scratch / "lowcloud.out"
        self._environment = {
            "PYTHONPATH": str(ROOT),
            "PYTHONPYCACHEPREFIX": str(scratch / "bytecode"),
            "PYTHONDONTWRITEBYTECODE": "",
            "XDG_CACHE_HOME": str(scratch / "cache"),
        }
        measured([sys.executable, "-c", "import cas.putting, cas.store, delta, wasmtime"], env=self._environment)

    def _python(self, code: str, *arguments: str | Path, out: Path | None = None) -> Cost:
        return measured([sys.executable, "-c", code, self.directory, *arguments], out=out, env=self._environment)

    def add(self, series: str, path: Path) -> tuple[Cost, int]:
        cost = self._python(ADD_OURS, series, path, out=self._printed)
        return cost, int(self._printed.read_text())

    def finish(self) -> Cost:
        return Cost()

    def read(self, series: str, out: Path) -> Cost:
        return self._python(READ_OURS, series, out=out)


class LowcloudRepacked(Lowcloud):
    name = "lowcloud + repack"

    def finish(self) -> Cost:
        return self._python(REPACK_OURS)


class Git:
    name, needs = "git", "git"

    def __init__(self, scratch: Path) -> None:
        self._tree = scratch / "git"
        self._tree.mkdir()
        self.directory = self._tree / ".git"
        self._revisions = scratch / "git.revisions"
        self._pack = scratch / "git.pack"
        self._run("init", "-q")
        self._run("config", "user.email", "bench@example.org")
        self._run("config", "user.name", "bench")
        self._run("config", "gc.auto", "0")

    def _run(self, *arguments: str, out: Path | None = None, given: Path | None = None) -> Cost:
        return measured(["git", *arguments], cwd=self._tree, out=out, given=given)

    def add(self, series: str, path: Path) -> tuple[Cost, int]:
        shutil.copyfile(path, self._tree / series)
        cost = self._run("add", series) + self._run("commit", "-q", "-m", path.parent.name)
        return cost, self._thin_pack(series)

    def _thin_pack(self, series: str) -> int:
        """What a push would send to a copy that has all commits but the last of this series."""
        listed = subprocess.run(
            ["git", "log", "-2", "--format=%H", "--", series],
            cwd=self._tree,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        self._revisions.write_text("\n".join([listed[0], *(f"^{older}" for older in listed[1:])]) + "\n")
        self._run("pack-objects", "--revs", "--thin", "--stdout", "-q", out=self._pack, given=self._revisions)
        return self._pack.stat().st_size

    def finish(self) -> Cost:
        return Cost()

    def read(self, series: str, out: Path) -> Cost:
        return self._run("cat-file", "blob", f"HEAD:{series}", out=out)


class GitGc(Git):
    name = "git + gc"

    def finish(self) -> Cost:
        return self._run("gc", "-q", "--prune=now")


class Ostree:
    """A commit for each version and a static delta from the one before."""

    name, needs = "ostree + static delta", "ostree"

    def __init__(self, scratch: Path) -> None:
        self.directory = scratch / "ostree"
        self._tree = scratch / "ostree-tree"
        self._printed = scratch / "ostree.out"
        self._last: dict[str, str] = {}
        self._run("init", "--mode=archive")

    def _run(self, *arguments: str, out: Path | None = None) -> Cost:
        return measured(["ostree", f"--repo={self.directory}", *arguments], out=out)

    def add(self, series: str, path: Path) -> tuple[Cost, int]:
        self._tree.mkdir(exist_ok=True)
        shutil.copyfile(path, self._tree / "file")
        cost = self._run(
            "commit", f"--branch={series}", f"--subject={path.parent.name}", str(self._tree), out=self._printed
        )
        commit = self._printed.read_text().strip()
        before, self._last[series] = self._last.get(series), commit
        if before is None:
            return cost, 0
        deltas = self.directory / "deltas"
        bytes_before = content_bytes(deltas)
        cost += self._run("static-delta", "generate", f"--from={before}", f"--to={commit}")
        return cost, content_bytes(deltas) - bytes_before

    def finish(self) -> Cost:
        return Cost()

    def read(self, series: str, out: Path) -> Cost:
        return self._run("cat", series, "/file", out=out)


class Casync:
    name, needs = "casync", "casync"

    def __init__(self, scratch: Path) -> None:
        self.directory = scratch / "casync"
        self.directory.mkdir()
        self._newest: dict[str, Path] = {}

    def add(self, series: str, path: Path) -> tuple[Cost, int]:
        index = self.directory / f"{series}-{path.parent.name}.caibx"
        before = content_bytes(self.directory)
        cost = measured(["casync", "make", f"--store={self.directory / 'chunks.castr'}", index, path])
        self._newest[series] = index
        return cost, content_bytes(self.directory) - before

    def finish(self) -> Cost:
        return Cost()

    def read(self, series: str, out: Path) -> Cost:
        store = f"--store={self.directory / 'chunks.castr'}"
        return measured(["casync", "extract", store, self._newest[series], out])


class Borg:
    name, needs = "borg (zstd 3)", "borg"

    def __init__(self, scratch: Path) -> None:
        self.directory = scratch / "borg"
        self._tree = scratch / "borg-tree"
        self._tree.mkdir()
        self._environment = {
            "BORG_BASE_DIR": str(scratch / "borg-home"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        self._newest: dict[str, str] = {}
        self._run("init", "-e", "none", str(self.directory))

    def _run(self, *arguments: str, out: Path | None = None) -> Cost:
        return measured(["borg", *arguments], cwd=self._tree, out=out, env=self._environment)

    def add(self, series: str, path: Path) -> tuple[Cost, int]:
        shutil.copyfile(path, self._tree / series)
        before = content_bytes(self.directory / "data")
        self._newest[series] = f"{self.directory}::{series}-{path.parent.name}"
        cost = self._run("create", "-C", "zstd,3", self._newest[series], series)
        return cost, content_bytes(self.directory / "data") - before

    def finish(self) -> Cost:
        return Cost()

    def read(self, series: str, out: Path) -> Cost:
        return self._run("extract", "--stdout", self._newest[series], series, out=out)


class Restic:
    name, needs = "restic", "restic"

    def __init__(self, scratch: Path) -> None:
        self.directory = scratch / "restic"
        self._tree = scratch / "restic-tree"
        self._tree.mkdir()
        self._environment = {
            "RESTIC_PASSWORD": "bench",
            "RESTIC_REPOSITORY": str(self.directory),
            "RESTIC_CACHE_DIR": str(scratch / "restic-cache"),
        }
        self._run("init")

    def _run(self, *arguments: str, out: Path | None = None) -> Cost:
        return measured(["restic", *arguments], cwd=self._tree, out=out, env=self._environment)

    def add(self, series: str, path: Path) -> tuple[Cost, int]:
        shutil.copyfile(path, self._tree / series)
        before = content_bytes(self.directory)
        cost = self._run("backup", "-q", "--tag", series, series)
        return cost, content_bytes(self.directory) - before

    def finish(self) -> Cost:
        return Cost()

    def read(self, series: str, out: Path) -> Cost:
        return self._run("dump", "-q", "--tag", series, "latest", f"/{series}", out=out)


class ZstdPatches:
    """The first version as a frame, each later one as a patch of the one before. Reading applies them all."""

    name, needs = "zstd -3 --patch-from", "zstd"

    def __init__(self, scratch: Path) -> None:
        self.directory = scratch / "zstd"
        self.directory.mkdir()
        self._rebuilt = scratch / "zstd.rebuilt"
        self._last: dict[str, Path] = {}
        self._chain: dict[str, list[Path]] = {}

    def add(self, series: str, path: Path) -> tuple[Cost, int]:
        target = self.directory / f"{series}-{path.parent.name}.zst"
        base = [f"--patch-from={self._last[series]}", "--long=27"] if series in self._last else []
        cost = measured(["zstd", "-q", "-3", *base, path, "-o", target])
        self._last[series] = path
        self._chain.setdefault(series, []).append(target)
        return cost, target.stat().st_size

    def finish(self) -> Cost:
        return Cost()

    def read(self, series: str, out: Path) -> Cost:
        cost = Cost()
        base: list[str] = []
        for patch in self._chain[series]:
            cost += measured(["zstd", "-q", "-d", "-f", "--long=27", *base, patch, "-o", out])
            out.replace(self._rebuilt)
            base = [f"--patch-from={self._rebuilt}"]
        self._rebuilt.replace(out)
        return cost


SYSTEMS: tuple[type[Peer], ...] = (Lowcloud, LowcloudRepacked, Ostree, Git, GitGc, Casync, Borg, Restic, ZstdPatches)
