"""A short run of the outside fuzzer; `python -m tests.fuzz` runs it, and the inside one, for as long as one likes."""

from __future__ import annotations

import pytest

from delta import DeltaError, kernel_host, structured
from delta.kernel.build import build
from tests.fuzz.outside import Report, fuzz
from tests.fuzz.seeds import beyond_every_local, seeds

EXECUTIONS = 8000


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    if not kernel_host.available():
        build(kernel_host.KERNEL.parent)


@pytest.fixture(scope="module")
def report() -> Report:
    """Every input of the run was judged as outside.py says; one that fails ends the run with what repeats it."""
    return fuzz(EXECUTIONS, seed=20)


def test_every_hostile_patch_ends_in_a_delta_error_or_in_what_its_header_names(report: Report) -> None:
    assert report.executions > EXECUTIONS
    assert report.rebuilt >= 2 * (len(seeds()) - 1), "each seed with its text in two packings"
    assert sum(report.refusals.values()) - report.rebuilt > EXECUTIONS // 2


def test_the_fuzzer_finds_its_way_into_the_kernel(report: Report) -> None:
    assert report.edges > report.edges_of_seeds * 1.2
    assert report.kept > 100
    assert {reason for reason in kernel_host.REASONS.values() if any(reason in said for said in report.refusals)} >= {
        kernel_host.REASONS[number] for number in (2, 3, 4)
    }


def test_a_local_index_that_no_module_can_have_is_no_place_in_a_table() -> None:
    """As a signed number the index lay below the table that it was written to, a gigabyte away in the sandbox. Now the
    decoding goes on, and ends for another reason: such an index takes more bytes."""
    seed = beyond_every_local()
    with pytest.raises(DeltaError, match=kernel_host.REASONS[4]):
        structured.decode_streams(structured.WASM, seed.base, seed.streams, len(seed.target))
