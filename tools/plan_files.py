"""Plans in files: read, whether signed or not, and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools.cloud import shown_path
from tools.errors import UsageError

if TYPE_CHECKING:
    from deployer.cloud.cloud import Cloud
    from deployer.planning.plan import Plan
    from deployer.planning.signing import Signed

MAX_SHOWN = 8
"""Fields in one message."""
HINT = "make the plan again with `lowcloud plan -o FILE`"


def plan_in(cloud: Cloud, file: str | Path | None) -> tuple[Plan, Signed | None] | None:
    """The plan in a file and its signature (None: nobody's), or None where the file is something else, or not there.
    Its calls lead to the definition that it names, if that is in the store. Raises UsageError, SignatureInvalid."""
    from deployer.errors import RecordInvalid
    from deployer.planning import signing

    if file is None or not Path(file).is_file():
        return None
    with Path(file).open("rb") as opened:
        if not signing.is_plan(opened.read(64)):
            return None
        opened.seek(0)
        data = opened.read(signing.MAX_SIGNED_BYTES + 1)
    if len(data) > signing.MAX_SIGNED_BYTES:
        raise UsageError(f"{shown_path(file)} is larger than a plan may be")
    try:
        plan, who = signing.read_plan(data, cloud.credentials / "ca.pem")
    except RecordInvalid as error:
        raise UsageError(f"{shown_path(file)}: {error}", hint=HINT) from error
    _must_lead_to_its_definition(cloud, plan, file)
    return plan, signing.Signed(data, who) if who is not None else None


def _must_lead_to_its_definition(cloud: Cloud, plan: Plan, file: str | Path) -> None:
    """A file may have been changed since a planner made the plan: what a reviewer sees is the definition and the fields
    that differ, what runs is in the calls. Raises UsageError."""
    from cas.errors import BlobMissing
    from deployer.errors import PlanAltered
    from deployer.history import release
    from deployer.language.wording import dotted
    from deployer.planning.planners import require_true
    from deployer.resolving.difference import differences

    try:
        following = release.read_definition(cloud.store, plan.definition)
        require_true(plan, following)
        before = release.read_definition(cloud.store, plan.from_definition) if plan.from_definition else None
    except BlobMissing:
        return  # it can be shown; an apply reads the definition itself and ends there
    except PlanAltered as error:
        raise UsageError(f"{shown_path(file)}: {error}", hint=HINT) from error
    differ = {(one.path, one.change) for one in differences(before, following)}
    told = {(one.path, one.change) for one in plan.changes}
    paths = {path for path, _ in differ}
    blamed = {cause.path for step in plan.steps() for cause in step.causes if not cause.drift}
    if told != differ or not blamed <= paths:
        wrong = sorted({path for path, _ in told ^ differ} | (blamed - paths))
        raise UsageError(
            f"{shown_path(file)}: this plan does not tell truly in which fields its two definitions differ: "
            f"{', '.join(dotted(path) for path in wrong[:MAX_SHOWN])}",
            hint=HINT,
        )


def read(cloud: Cloud, file: Path) -> tuple[Plan, str | None]:
    """The plan in a file that must hold one, and who signed it."""
    found = plan_in(cloud, file)
    if found is None:
        what = "holds no plan" if file.exists() else "is not there"
        raise UsageError(f"{shown_path(file)} {what}", hint=HINT)
    plan, signed = found
    return plan, signed.who if signed else None


def write(cloud: Cloud, plan: Plan, file: Path, *, signed: bool) -> None:
    """Raises TrustError where there is nothing to sign with."""
    from deployer.planning import plan as plans
    from deployer.planning import signing

    file.write_bytes(signing.sign(plan, cloud.credentials) if signed else plans.encode(plan))
