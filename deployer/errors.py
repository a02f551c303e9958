"""What can go wrong between a definition file and the hosts. Each class says what happened, to what, and what to do.

`exit_code` is what a command that ends with this error returns: 1 failed, 2 bad input, 4 applied in part or reverted.
This module imports nothing, so that a fast command can catch these errors without paying for what raises them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class DeployerError(Exception):
    """Base of every error that `deployer` raises on purpose."""

    hint: str = ""
    exit_code: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class BadInput(DeployerError):
    """What the person gave is wrong; trying again changes nothing."""

    exit_code = 2


# --- the directory --------------------------------------------------------------------------------------------------


class CloudMissing(BadInput):
    hint = "run `lowcloud init` here, or name the directory with -C or LOWCLOUD_DIR"

    def __init__(self, start: object) -> None:
        super().__init__(f"no lowcloud.toml in {start} or in any directory above it")


class CloudExists(BadInput):
    hint = "use it as it is, or choose another directory; lowcloud never overwrites a cloud"

    def __init__(self, root: object, what: str) -> None:
        super().__init__(f"{root} already holds {what}")


class CloudDamaged(DeployerError):
    """A part of `.lowcloud/` is missing or cannot be used."""

    hint = "restore .lowcloud/ from your backup"


class ConfigInvalid(BadInput):
    """A mistake in `lowcloud.toml`, with its place (lines and columns count from 1)."""

    def __init__(self, path: object, line: int, column: int, message: str, *, hint: str = "") -> None:
        super().__init__(f"{path}:{line}:{column}: {message}", hint=hint)
        self.path = path
        self.line = line
        self.column = column


# --- trust ----------------------------------------------------------------------------------------------------------


class TrustError(DeployerError):
    """Keys or certificates are missing, expired, or do not belong together."""


class BundleInvalid(BadInput):
    """A host's bundle is not what it should be."""

    hint = "make a new one with `lowcloud host add NAME` and carry it to the host again"


# --- releases and plans ---------------------------------------------------------------------------------------------


class ReleaseMissing(BadInput):
    hint = "`lowcloud history` lists the releases"


class NothingReleased(BadInput):
    hint = "`lowcloud apply` makes the first release"

    def __init__(self, ref: str) -> None:
        super().__init__(f"nothing has been released on {ref!r} yet")


class RecordInvalid(DeployerError):
    """A blob that should be a release or a plan is none, or is of a version that this program does not know."""

    hint = "`lowcloud check` verifies the store; a record of a newer version needs a newer lowcloud"


class PlannerMissing(BadInput):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"no planner is called {name!r}", hint=f"there are: {', '.join(known)}")


class PlannerBroken(DeployerError):
    """A planner that could not be loaded or gave something that is not a plan."""


class PlanAltered(BadInput):
    """A plan whose calls do not lead to the definition that it names: it was changed since a planner made it."""

    hint = "make a new plan"


class SignatureInvalid(BadInput):
    """A signature that does not count, or one that is missing where the cloud asks for it."""

    hint = "an operator of this cloud signs with `lowcloud plan --sign -o FILE`"


class NotReversible(DeployerError):
    """A plan that does not carry what it replaces."""

    hint = "`lowcloud rollback` plans the way back to any release from what the hosts run"


class WorldMoved(DeployerError):
    """The plan was made for a state that is no longer there."""

    hint = "make a new plan"

    def __init__(self, message: str, differences: Sequence[str] = ()) -> None:
        super().__init__(message + "".join(f"\n  {line}" for line in differences))
        self.differences = tuple(differences)


class ApplyRaced(DeployerError):
    """Another operator moved the ref first; nothing of this apply was carried out."""

    hint = "look at `lowcloud history`, then plan again"


# --- hosts ----------------------------------------------------------------------------------------------------------


class HostsUnreachable(DeployerError):
    """Hosts that an operation needs do not answer. Nothing was changed."""

    hint = (
        "check that their agents run and that their addresses in the definition are right; "
        "`plan`, `apply`, `rollback` and `up` leave such hosts alone with --allow-unreachable"
    )

    def __init__(self, reasons: Mapping[str, str]) -> None:
        hosts = "a host" if len(reasons) == 1 else f"{len(reasons)} hosts"
        super().__init__(f"{hosts} cannot be reached:{_by_host(reasons)}")
        self.reasons = dict(reasons)


class HostUnknown(BadInput):
    def __init__(self, host: str, known: Sequence[str]) -> None:
        listed = ", ".join(known[:20]) if known else "none"
        super().__init__(f"no host is called {host!r}", hint=f"hosts of this cloud: {listed}")


class TransferFailed(DeployerError):
    """Blobs could not be brought to every host. Nothing that runs was touched."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(f"blobs could not be brought to every host:{_by_host(reasons)}")
        self.reasons = dict(reasons)


class StagingFailed(DeployerError):
    """A host cannot run what the plan asks of it. Nothing that runs was touched."""

    def __init__(self, reasons: Mapping[str, str], *, hint: str = "") -> None:
        super().__init__(f"nothing was changed, because not every host is ready for it:{_by_host(reasons)}", hint=hint)
        self.reasons = dict(reasons)


def _by_host(reasons: Mapping[str, str]) -> str:
    """A line for each host. A reason that names its host already is not preceded by the name again."""
    return "".join(
        f"\n  {why}" if why.startswith(f"{host} ") else f"\n  {host}: {why}" for host, why in sorted(reasons.items())
    )
