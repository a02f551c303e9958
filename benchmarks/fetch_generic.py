"""Fetches what a delta is made of when it is not WASM: configuration, JSON, archives of source, executables.

    python -m benchmarks.fetch_generic CORPUS

Leaves CORPUS/SERIES/VERSION/FILE, as benchmarks/corpus.py reads it; a file that is there already is not fetched again.
Packages come through `npm pack` and `pip download`, from the registries that these are configured for: 110 MB in all.
"""

from __future__ import annotations

import argparse
import gzip
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PLATFORM = (
    "--python-version=3.11",
    "--abi=cp311",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
)


@dataclass(frozen=True)
class Series:
    name: str
    package: str
    versions: tuple[str, ...]
    """Oldest first; every two neighbours are a pair."""
    file: str
    """What the file is called in CORPUS."""
    read: Callable[[str, str], bytes]
    """The file's bytes, from package and version."""


def from_npm(member: str | None) -> Callable[[str, str], bytes]:
    """A file of an npm package, or the whole archive without its compression."""

    def read(package: str, version: str) -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            command = ["npm", "pack", "--silent", f"{package}@{version}"]
            subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
            (packed,) = Path(directory).glob("*.tgz")
            archive = gzip.decompress(packed.read_bytes())
        if member is None:
            return archive
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            found = files.extractfile(f"package/{member}")
            if found is None:
                raise SystemExit(f"{package}@{version}: {member} is no file")
            return found.read()

    return read


def from_wheel(member: str) -> Callable[[str, str], bytes]:
    def read(package: str, version: str) -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                *PLATFORM,
            ]
            subprocess.run([*command, f"--dest={directory}", f"{package}=={version}"], check=True)
            (wheel,) = Path(directory).glob("*.whl")
            with zipfile.ZipFile(wheel) as files:
                return files.read(member)

    return read


ELF = "cpython-311-x86_64-linux-gnu.so"
ESLINT = ("10.12.0", "10.13.0", "10.14.0", "10.15.0")

CORPUS = (
    Series("config", "eslint", ESLINT, "package.json", from_npm("package.json")),
    Series("json", "mime-db", ("1.51.0", "1.52.0", "1.53.0", "1.54.0"), "db.json", from_npm("db.json")),
    Series("json-large", "@mdn/browser-compat-data", ("8.1.5", "8.1.6", "8.1.7"), "data.json", from_npm("data.json")),
    Series("source-tar", "eslint", ESLINT, "package.tar", from_npm(None)),
    Series(
        "elf-c",
        "msgspec",
        ("0.18.6", "0.19.0", "0.20.0", "0.21.0", "0.21.1"),
        "core.so",
        from_wheel(f"msgspec/_core.{ELF}"),
    ),
    Series(
        "elf-rust",
        "pydantic-core",
        ("2.50.0", "2.50.1", "2.50.2", "2.50.3"),
        "pydantic_core.so",
        from_wheel(f"pydantic_core/_pydantic_core.{ELF}"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch files that are not WASM for the delta benchmark.")
    parser.add_argument("corpus", type=Path)
    options = parser.parse_args()
    for series in CORPUS:
        for version in series.versions:
            target = options.corpus / series.name / version / series.file
            if target.is_file():
                continue
            print(f"{series.package} {version}", file=sys.stderr)
            content = series.read(series.package, version)
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(target.name + ".unfinished")
            unfinished.write_bytes(content)
            unfinished.rename(target)
    print(f"{sum(len(series.versions) - 1 for series in CORPUS)} pairs in {options.corpus}")


if __name__ == "__main__":
    main()
