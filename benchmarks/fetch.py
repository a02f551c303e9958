"""Fetches the corpus of the delta benchmark: 35 pairs of successive releases of WASM modules, from npm packages.

    python -m benchmarks.fetch CORPUS

Leaves CORPUS/SERIES/VERSION/FILE, as benchmarks/corpus.py reads it; a file that is there already is not fetched again.
The packages come through `npm pack`, from the registry that npm is configured for: 315 MB of modules when unpacked.

Of each series the versions are successive ones whose modules really differ; a release that ships the same module again
is left out. Published versions never change, so the corpus is the same for everybody.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Series:
    name: str
    package: str
    file: str
    """Path inside of the package."""
    versions: tuple[str, ...]
    """Oldest first; every two neighbours are a pair."""


CORPUS = (
    Series(
        "rolldown",
        "@rolldown/binding-wasm32-wasi",
        "rolldown-binding.wasm32-wasi.wasm",
        ("1.2.9", "1.2.10", "1.2.11", "1.2.12", "1.2.13", "1.2.14"),
    ),
    Series(
        "oxc",
        "@oxc-parser/binding-wasm32-wasi",
        "parser.wasm32-wasi.wasm",
        ("0.150.0", "0.151.0", "0.152.0", "0.153.0", "0.154.0"),
    ),
    Series(
        "tailwind",
        "@tailwindcss/oxide-wasm32-wasi",
        "tailwindcss-oxide.wasm32-wasi.wasm",
        ("4.2.1", "4.2.2", "4.2.3", "4.2.4", "4.3.0", "4.3.1", "4.3.2", "4.3.3"),
    ),
    Series(
        "esbuild",
        "esbuild-wasm",
        "esbuild.wasm",
        ("0.27.4", "0.27.5", "0.27.7", "0.28.0", "0.28.1", "0.28.2"),
    ),
    Series(
        "ruby",
        "@ruby/3.4-wasm-wasi",
        "dist/ruby.wasm",
        ("2.7.2", "2.8.1", "2.9.3-2.9.4", "2.10.1"),
    ),
    Series(
        "jco-bindgen",
        "@bytecodealliance/jco-transpile",
        "vendor/js-component-bindgen-component.core.wasm",
        ("0.12.0", "0.12.1", "0.13.0", "0.14.0", "0.15.0"),
    ),
    Series(
        "wasm-tools",
        "@bytecodealliance/jco-transpile",
        "vendor/wasm-tools.core.wasm",
        ("0.11.0", "0.12.0", "0.13.0", "0.15.0"),
    ),
    Series(
        "starlingmonkey",
        "@bytecodealliance/componentize-js",
        "lib/starlingmonkey_embedding.wasm",
        ("0.19.0", "0.19.1", "0.19.2", "0.20.0", "0.23.0"),
    ),
)


def fetch(series: Series, version: str, target: Path) -> None:
    """Put the file of one version at `target`, whole or not at all."""
    with tempfile.TemporaryDirectory() as directory:
        command = ["npm", "pack", "--silent", f"{series.package}@{version}"]
        subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
        (package,) = Path(directory).glob("*.tgz")
        with tarfile.open(package) as archive:
            member = archive.extractfile(f"package/{series.file}")
            if member is None:
                raise SystemExit(f"{series.package}@{version}: {series.file} is no file")
            content = member.read()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".unfinished")
    unfinished.write_bytes(content)
    unfinished.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the release series that the delta benchmark measures.")
    parser.add_argument("corpus", type=Path)
    options = parser.parse_args()
    for series in CORPUS:
        for version in series.versions:
            target = options.corpus / series.name / version / Path(series.file).name
            if not target.is_file():
                print(f"{series.package}@{version}", file=sys.stderr)
                fetch(series, version, target)
    print(f"{sum(len(series.versions) - 1 for series in CORPUS)} pairs in {options.corpus}")


if __name__ == "__main__":
    main()
