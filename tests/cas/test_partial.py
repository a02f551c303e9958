"""The spool of arriving forms: nothing verified is lost by a kill, nothing unverified is ever given out."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cas.digest import digest_of
from cas.errors import BlobMissing, ExchangeError, StoreFull
from cas.inventory import Form
from cas.manifest import PIECE_BYTES, Manifest, encode, in_pieces, manifest_of
from cas.partial import Spool
from cas.store import Store
from cas.swarm.messages import everything, pack_pieces, unpack_pieces

DATA = random.Random(1).randbytes(5 * PIECE_BYTES + 1234)
PIECES = list(in_pieces([DATA]))


def form_of(data: bytes) -> tuple[Form, Manifest]:
    manifest = manifest_of([data])
    return Form(digest=manifest.digest, size=len(data), manifest=digest_of(encode(manifest))), manifest


def test_a_form_becomes_a_blob_of_the_store_and_leaves_the_spool(tmp_path: Path, store: Store) -> None:
    spool = Spool(tmp_path / "spool")
    form, manifest = form_of(DATA)
    spool.begin(form, manifest)
    with pytest.raises(BlobMissing):
        spool.finish(form.digest, form.digest, len(DATA), store)
    for index in (5, 0, 3, 1, 2, 4):
        assert spool.write(form.digest, index, PIECES[index])
        assert spool.read(form.digest, index) == PIECES[index]
    assert spool.finish(form.digest, form.digest, len(DATA), store).new
    assert store.read(form.digest) == DATA
    assert list((tmp_path / "spool").iterdir()) == []


def test_what_was_written_before_a_kill_is_there_afterwards(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom tests.cas.test_partial import *\n"
        "spool = Spool(Path(sys.argv[1]))\nform, manifest = form_of(DATA)\nspool.begin(form, manifest)\n"
        "spool.write(form.digest, 1, PIECES[1])\nspool.write(form.digest, 4, PIECES[4])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path / "spool")], check=False)
    assert ran.returncode == -signal.SIGKILL
    assert Spool(tmp_path / "spool").held(form_of(DATA)[0].digest) == 0b10010


def test_a_piece_that_is_wrong_or_has_gone_bad_is_not_held(tmp_path: Path) -> None:
    form, manifest = form_of(DATA)
    spool = Spool(tmp_path / "spool")
    spool.begin(form, manifest)
    assert not spool.write(form.digest, 0, PIECES[1])
    assert not spool.write(form.digest, 99, PIECES[1])
    assert spool.held(form.digest) == 0
    assert spool.write(form.digest, 2, PIECES[2])
    (part,) = (tmp_path / "spool").glob("*.part")
    with part.open("r+b") as file:
        os.pwrite(file.fileno(), b"?", 2 * PIECE_BYTES + 7)
    assert spool.read(form.digest, 2) is None
    assert spool.held(form.digest) == 0
    assert Spool(tmp_path / "spool").held(form.digest) == 0


def test_files_that_are_no_part_of_a_spool_are_removed(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    for name in ("noise", "ab.form", "0" * 64 + ".form", "1" * 64 + ".part", "x.form.new"):
        (spool / name).write_bytes(b"lcsp\x01 something")
    assert Spool(spool).forms() == {}
    assert list(spool.iterdir()) == []


def test_a_form_that_has_no_room_is_refused_before_its_first_byte(tmp_path: Path) -> None:
    form, manifest = form_of(DATA)
    with pytest.raises(StoreFull, match="no room"):
        Spool(tmp_path / "a", free=lambda _: 65 << 20).begin(form, manifest)
    with pytest.raises(StoreFull, match="do not fit"):
        Spool(tmp_path / "b", quota_bytes=len(DATA) - 1).begin(form, manifest)
    with pytest.raises(ExchangeError):
        Spool(tmp_path / "c").begin(form, form_of(DATA + b"x")[1])


def test_sets_of_pieces_travel_as_bytes() -> None:
    assert pack_pieces(everything(9), 9) == b"\xff\x01"
    assert unpack_pieces(b"\xff\x01", 9) == everything(9)
    for hostile in (b"\xff", b"\xff\x02", b"\xff\x01\x00"):
        with pytest.raises(ValueError, match="no set"):
            unpack_pieces(hostile, 9)
