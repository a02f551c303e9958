"""Moving a cloud between engines, in either direction: blobs first, each verified where it has arrived, then the refs,
then the lines in `lowcloud.toml`.

**Nothing is lost and nothing forks.** A ref that moves while the migration runs is taken again. A history in etcd is
marked as gone *before* the settings change, so that operators with the old line are told where it is, and none can add
to what was left behind. A history in LMDB is removed *after* they have changed, by compare-and-swap, so that an apply
that began with the old line finds its ref moved and stops before it has touched anything.

**Resuming.** Killed at any point, the same command goes on: what has arrived is not sent again, and a history that is
marked as gone to this very target counts as one's own. A target with another history under the same name is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from cas.digest import Digest, short
from cas.engines.address import LOCAL, parse_blobs, parse_refs
from cas.engines.errors import HistoryMoved
from cas.engines.etcd_refs import EtcdRefs
from cas.engines.origin import Origin
from cas.engines.shared import SharedStore
from cas.errors import BlobDamaged, BlobMissing, RefMoved
from cas.interface import RefStore
from cas.store import Store
from deployer.cloud.cloud import CONFIG_NAME, MAX_CONFIG_BYTES, Cloud, parse_config
from deployer.cloud.engines import needs_of, of_no_release, open_refs
from deployer.cloud.files import read_file, write_file
from deployer.errors import BadInput, ConfigInvalid, DeployerError, RecordInvalid
from deployer.history import release

GROUP_BLOBS: Final = 128
TRIES: Final = 16
"""So often a ref is taken again that others move meanwhile."""

Tell = Callable[[str, int, int], None]
"""What is being done, how much of it, of how much."""


class MigrationRefused(BadInput):
    """The target is not free for this cloud."""


class MigrationFailed(DeployerError):
    """The old engines are still the cloud's; what has arrived at the new ones stays there."""

    hint = "run the same command again: it goes on where it was"


class Migrated(NamedTuple):
    refs: dict[str, Digest]
    blobs: int
    """How many blobs were verified at the target; 0 where only refs moved."""
    skipped: dict[Digest, str]
    """Damaged blobs that no history needs, and what is wrong with them: they were left behind."""


def migrate(cloud: Cloud, *, refs: str, blobs: str, tell: Tell | None = None) -> Migrated:
    """Make `refs` and `blobs` (as `lowcloud.toml` writes them) the engines of a cloud, which must be opened anew
    afterwards. Raises MigrationRefused, MigrationFailed, and what the engines raise."""
    parse_refs(refs), parse_blobs(blobs)
    if (refs, blobs) == (cloud.config.refs, cloud.config.blobs):
        raise MigrationRefused(f"the cloud is at refs = {refs!r}, blobs = {blobs!r} already")
    return _Migration(cloud, refs, blobs, tell).run()


class _Migration:
    def __init__(self, cloud: Cloud, refs: str, blobs: str, tell: Tell | None) -> None:
        self.cloud = cloud
        self.source = cloud.store
        self.local: Store = self.source.local if isinstance(self.source, SharedStore) else self.source
        self.refs = refs
        self.blobs = blobs
        self.tell = tell or _say_nothing
        self.old_refs: RefStore | EtcdRefs = open_refs(cloud.config.refs) or self.local
        self.new_refs: RefStore | EtcdRefs = open_refs(refs) or self.local
        self.moves_refs = refs != cloud.config.refs
        self.moves_blobs = blobs != cloud.config.blobs
        self.origin = self._open_origin()
        self.verified = 0
        self.skipped: dict[Digest, str] = {}

    def run(self) -> Migrated:
        self._changed_settings()  # What cannot be written is found out before anything has moved.
        heads = self._heads()
        if self.moves_blobs:
            needed = self._needed(heads.values())
            every = [*needed, *(digest for digest in self.source.digests() if digest not in needed)]
            self._bring_blobs(every, needed)
        if not self.moves_refs:
            self._switch()
            return Migrated(heads, self.verified, self.skipped)
        for name, head in heads.items():
            self._bring_ref(name, head)
        if isinstance(self.old_refs, EtcdRefs):
            heads = {name: self._leave(name, head) for name, head in heads.items()}
            self._switch()
        else:
            self._switch()
            heads = {name: self._leave(name, head) for name, head in heads.items()}
        return Migrated(heads, self.verified, self.skipped)

    # --- blobs ---

    def _open_origin(self) -> Origin | None:
        address = parse_blobs(self.blobs)
        if address is None:
            return None
        from cas.engines.objects import Objects

        return Origin(Objects.open(address))

    def _needed(self, heads: Iterable[Digest]) -> dict[Digest, None]:
        """What the histories need, in an order in which a release comes after what it names."""
        found: dict[Digest, None] = {}
        for head in heads:
            try:
                links = list(release.chain(self.source, head))
            except RecordInvalid:
                found.update(dict.fromkeys(sorted(of_no_release(self.source, head))))
                continue
            for link in reversed(links):
                found.update(dict.fromkeys([*needs_of(self.source, link.release), link.digest]))
        return found

    def _bring_blobs(self, digests: list[Digest], needed: dict[Digest, None]) -> None:
        for start in range(0, len(digests), GROUP_BLOBS):
            group = [digest for digest in digests[start : start + GROUP_BLOBS] if self._bring_here(digest, needed)]
            if self.origin is not None:
                self.origin.ensure(self.local, group)
            self.tell("copy", start + len(group), len(digests))
        for done, digest in enumerate(digests):
            self.tell("verify", done, len(digests))
            if digest not in self.skipped:
                self._verify(digest)

    def _bring_here(self, digest: Digest, needed: dict[Digest, None]) -> bool:
        """Whole and verified in the local store, from which it goes on. False for one that may be left behind."""
        try:
            for _ in self.source.stream(digest):
                pass
        except (BlobDamaged, BlobMissing) as error:
            if digest in needed:
                raise MigrationFailed(
                    f"the history is not whole: {error}",
                    hint="push that file again, or restore the store from your backup; then run the same command again",
                ) from error
            self.skipped[digest] = str(error)
            return False
        return True

    def _verify(self, digest: Digest) -> None:
        if self.origin is not None:
            from cas.engines.origin_check import verify

            found = verify(self.origin, digest, self.local.read)
            if not isinstance(found, int):
                raise MigrationFailed(f"{digest} did not arrive whole at {self.blobs}: {found or 'it is not there'}")
        else:
            self.local.stat(digest)  # What is here was verified as it arrived.
        self.verified += 1

    # --- refs ---

    def _heads(self) -> dict[str, Digest]:
        """Where every ref is, by the old engine's own word. Of a migration that was killed, those that are gone to this
        target are taken from there."""
        if not isinstance(self.old_refs, EtcdRefs):
            return self.old_refs.refs()
        heads = {}
        for name, value in self.old_refs.entries().items():
            if value.moved_to is not None and value.moved_to != self.refs:
                raise HistoryMoved(name, value.moved_to)
            to = self.new_refs.read_ref(name) if value.moved_to is not None else value.to
            if to is not None:
                heads[name] = to
        return heads

    def _bring_ref(self, name: str, head: Digest) -> None:
        """Set a ref at the target. Raises MigrationRefused where it has a history of its own under that name."""
        try:
            there = self.new_refs.read_ref(name)
        except HistoryMoved:
            there = None
        if there == head:
            return
        if there is not None and there not in self._past(head):
            raise MigrationRefused(
                f"{self.refs} has another history under {name!r}, which is at {short(there)}",
                hint="choose another name in the address, or move that one away first",
            )
        if isinstance(self.new_refs, EtcdRefs) and there is None:
            self.new_refs.revive(name, head)
        else:
            self.new_refs.move_ref(name, there, head)

    def _past(self, head: Digest) -> set[Digest]:
        try:
            return {link.digest for link in release.chain(self.source, head)}
        except RecordInvalid:
            return {head}

    def _leave(self, name: str, head: Digest) -> Digest:
        """End a ref at the old engine. One that was moved meanwhile is brought again first; returns where it is."""
        for _ in range(TRIES):
            try:
                if isinstance(self.old_refs, EtcdRefs):
                    if self.old_refs.entries()[name].moved_to != self.refs:
                        self.old_refs.retire(name, head, self.refs)
                else:
                    self.old_refs.move_ref(name, head, None)
                return head
            except RefMoved as moved:
                if moved.actual is None:
                    return head
                head = moved.actual
                needed = self._needed([head])
                if self.moves_blobs:
                    self._bring_blobs(list(needed), needed)
                self._bring_ref(name, head)
        raise MigrationFailed(f"others moved {name!r} again and again")

    # --- the settings ---

    def _switch(self) -> None:
        path = self.cloud.root / CONFIG_NAME
        write_file(path, self._changed_settings(), mode=path.stat().st_mode & 0o777)

    def _changed_settings(self) -> bytes:
        path = self.cloud.root / CONFIG_NAME
        text = read_file(path, max_bytes=MAX_CONFIG_BYTES).decode()
        changed = with_setting(with_setting(text, "refs", self.refs), "blobs", self.blobs)
        try:
            understood = parse_config(changed, path) == parse_config(text, path)._replace(
                refs=self.refs, blobs=self.blobs
            )
        except ConfigInvalid:
            understood = False
        if not understood:
            raise MigrationRefused(
                f"{path} is written in a way that is not understood well enough to change it",
                hint="write refs and blobs on a line each, in plain quotes",
            )
        return changed.encode()


def with_setting(text: str, key: str, value: str) -> str:
    """A `lowcloud.toml` with one setting changed and everything else, comments too, as it was. The default is written
    as no line at all."""
    line = re.compile(rf"^[ \t]*[\"']?{key}[\"']?[ \t]*=[^\n]*(?:\n|\Z)", re.MULTILINE)
    written = "" if value == LOCAL else f'{key} = "{value}"\n'
    if line.search(text):
        return line.sub(lambda _: written, text, count=1)
    separator = "" if not text or text.endswith("\n") else "\n"
    return text + separator + written


def _say_nothing(what: str, done: int, total: int) -> None:
    """Nobody watches."""
