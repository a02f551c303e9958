"""A cloud as a directory: `lowcloud.toml`, which a person edits, and `.lowcloud/`, which is lowcloud's own.

    lowcloud.toml            settings; marks the directory, so that every command works from anywhere below it
    .lowcloud/store/         blobs and refs
    .lowcloud/ca/            the certificate authority: ca.pem, key.pem. Whoever reads the key owns every host
    .lowcloud/operator/      this operator's ca.pem, cert.pem, key.pem
    .lowcloud/hosts/NAME/    what was issued for a host

With `refs` or `blobs` in `lowcloud.toml`, history and blobs are shared (`deployer.cloud.engines`); `.lowcloud/store/`
is then their local copy, and `.lowcloud/last-refs.json` says where the refs were when they were last seen.

Every command opens a cloud first, so nothing slow is imported here: the store, the certificates and the network come in
where they are used.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deployer.cloud.files import read_file, sync_directory, write_file
from deployer.errors import BadInput, CloudDamaged, CloudExists, CloudMissing, ConfigInvalid

if TYPE_CHECKING:
    import tomllib
    from collections.abc import Callable
    from types import TracebackType

    from cas.engines.errors import EngineUnreachable
    from cas.engines.shared import SharedStore
    from cas.store import Store

CONFIG_NAME: Final = "lowcloud.toml"
STATE_NAME: Final = ".lowcloud"
MAX_CONFIG_BYTES: Final = 1 << 16

DEFAULT_DEFINITION: Final = "cloud.toml"
DEFAULT_REF: Final = "prod"
DEFAULT_PLANNER: Final = "minimal"
DEFAULT_ENGINE: Final = "lmdb"

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
"""What a host, a ref, a planner or an operator may be called."""

CONFIG_TEXT: Final = """\
# Settings of this cloud. Every line is optional; what is commented out is the default.

# definition = "cloud.toml"     # the definition file that `plan`, `apply`, `up` and `resolve` take when none is named
# ref = "prod"                  # the history that `apply` and `rollback` move
# planner = "minimal"           # how a difference becomes calls: minimal, rolling, canary, regions, or a package's
# refs = "lmdb"                 # where the history is; shared: "etcd://10.0.0.1:2379,10.0.0.2:2379/shop"
# blobs = "lmdb"                # where blobs are; shared: "s3://bucket/prefix" (credentials: AWS_ACCESS_KEY_ID, ...)
# require_signed_plans = false  # whether `apply` takes nothing but plans that an operator has signed (`plan --sign`)
"""


class CloudConfig(NamedTuple):
    """The settings in `lowcloud.toml`."""

    definition: str = DEFAULT_DEFINITION
    ref: str = DEFAULT_REF
    planner: str = DEFAULT_PLANNER
    refs: str = DEFAULT_ENGINE
    blobs: str = DEFAULT_ENGINE
    require_signed_plans: bool = False


class Cloud:
    """An opened cloud. Use as a context manager, or call `close`, where the store was used."""

    def __init__(self, root: Path, config: CloudConfig) -> None:
        self.root = root
        self.config = config
        self.overlay: str | None = None
        """What differs here from the definition (`-e staging`). It has a lock and a history of its own."""
        self.on_stale: Callable[[EngineUnreachable, float], None] | None = None
        """Is told when the history's engine does not answer and the last known state is used: why, and its age."""
        self._store: Store | SharedStore | None = None

    # --- where things are ---

    @property
    def ref(self) -> str:
        """The ref that this cloud's releases move; an overlay's is called as it is."""
        return self.overlay or self.config.ref

    @property
    def definition_path(self) -> Path:
        return self.root / self.config.definition

    @property
    def state(self) -> Path:
        return self.root / STATE_NAME

    @property
    def store_path(self) -> Path:
        return self.state / "store"

    @property
    def authority(self) -> Path:
        """The certificate authority's directory."""
        return self.state / "ca"

    @property
    def credentials(self) -> Path:
        """The operator's `ca.pem`, `cert.pem` and `key.pem`."""
        return self.state / "operator"

    def host_directory(self, name: str) -> Path:
        """Where a host's credentials are kept by its deployer. Raises BadInput for what cannot be a host's name."""
        if not NAME.fullmatch(name):
            raise BadInput(
                f"{name!r} cannot be a host's name", hint="lower-case letters, digits and hyphens, a letter first"
            )
        return self.state / "hosts" / name

    @property
    def store(self) -> Store | SharedStore:
        """The store, opened when it is first used. Raises cas.errors.StoreUnreadable, EngineAddressInvalid,
        EngineRefused."""
        if self._store is None:
            from cas.store import Store

            local = Store.open(self.store_path)
            if self.is_shared:
                from deployer.cloud.engines import open_shared

                refs, blobs = self.config.refs, self.config.blobs
                self._store = open_shared(local, refs=refs, blobs=blobs, state=self.state, tell=self._tell_stale)
            else:
                self._store = local
        return self._store

    @property
    def is_shared(self) -> bool:
        """Whether history or blobs are anywhere but here."""
        return (self.config.refs, self.config.blobs) != (DEFAULT_ENGINE, DEFAULT_ENGINE)

    def _tell_stale(self, error: EngineUnreachable, age_s: float) -> None:
        if self.on_stale is not None:
            self.on_stale(error, age_s)

    # --- opening and closing ---

    @classmethod
    def open(cls, start: Path) -> Cloud:
        """The cloud of the nearest directory, from `start` upwards, that has a `lowcloud.toml`. Raises CloudMissing,
        ConfigInvalid, CloudDamaged."""
        absolute = start.absolute()
        for directory in (absolute, *absolute.parents):
            path = directory / CONFIG_NAME
            if path.is_file():
                config = parse_config(_read_text(path), path)
                return cls(directory, config)._checked()
        raise CloudMissing(start)

    @classmethod
    def create(cls, root: Path, *, operator: str | None = None) -> Cloud:
        """Make a new cloud in a directory, which may exist and hold other files. `operator` is the name in this
        operator's certificate (default: the login name). Raises CloudExists, BadInput.

        The parts are made beside their place and appear at once, `lowcloud.toml` last; so a cloud that was interrupted
        while it was made is never taken for a whole one."""
        import secrets
        import shutil

        from deployer.cloud import trust

        name = operator or _login_name()
        if not NAME.fullmatch(name):
            raise BadInput(
                f"{name!r} cannot be an operator's name", hint="lower-case letters, digits and hyphens, a letter first"
            )
        root = root.absolute()
        _refuse_existing(root)
        root.mkdir(parents=True, exist_ok=True)
        building = root / f"{STATE_NAME}.new-{secrets.token_hex(4)}"
        try:
            building.mkdir(mode=0o700)
            trust.create_authority(building / "ca")
            trust.issue_operator(building / "ca", name, building / "operator")
            (building / "hosts").mkdir(mode=0o700)
            _make_store(building / "store")
            try:
                building.rename(root / STATE_NAME)
            except OSError as error:
                raise CloudExists(root, f"{STATE_NAME}/, made a moment ago ({error.strerror})") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        sync_directory(root)
        write_file(root / CONFIG_NAME, CONFIG_TEXT.encode(), mode=0o644)
        return cls(root, CloudConfig())

    def _checked(self) -> Cloud:
        for directory in (self.state, self.store_path):
            if not directory.is_dir():
                raise CloudDamaged(f"{self.root / CONFIG_NAME} is here, but {directory} is missing")
        return self

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> Cloud:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- lowcloud.toml --------------------------------------------------------------------------------------------------


def parse_config(text: str, path: Path) -> CloudConfig:
    """The settings in a `lowcloud.toml`. Raises ConfigInvalid with the place of the mistake."""
    if all(not line.strip() or line.lstrip().startswith("#") for line in text.splitlines()):
        return CloudConfig()  # as `init` leaves it: the TOML parser would take a quarter of a fast command's time
    import tomllib

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line, column, message = _place_of(error, text)
        raise ConfigInvalid(path, line, column, message) from error
    settings: dict[str, Any] = {}
    for key, value in table.items():
        if key not in CloudConfig._fields:
            raise _config_error(path, text, key, f"no setting is called {key!r}", _nearest_setting(key))
        settings[key] = _checked_setting(path, text, key, value)
    return CloudConfig(**settings)


def _checked_setting(path: Path, text: str, key: str, value: Any) -> str | bool:
    if key == "require_signed_plans":
        if not isinstance(value, bool):
            raise _config_error(path, text, key, f"{key} is true or false, not {value!r}", f"{key} = true")
        return value
    if not isinstance(value, str) or not value:
        raise _config_error(path, text, key, f"{key} is a text in quotes, not {value!r}", f'{key} = "…"')
    if key == "definition":
        if "\0" in value:
            raise _config_error(path, text, key, "a path has no zero byte", "")
    elif key in ("refs", "blobs"):
        from cas.engines.address import parse_blobs, parse_refs
        from cas.engines.errors import EngineAddressInvalid

        try:
            parse_refs(value) if key == "refs" else parse_blobs(value)
        except EngineAddressInvalid as error:
            raise _config_error(path, text, key, str(error), error.hint) from error
    elif not NAME.fullmatch(value):
        hint = "lower-case letters, digits and hyphens, a letter first"
        raise _config_error(path, text, key, f"{value!r} cannot be the name of a {key}", hint)
    return value


def _config_error(path: Path, text: str, key: str, message: str, hint: str) -> ConfigInvalid:
    quoted = re.escape(key)
    pattern = re.compile(rf"^[ \t]*\[*[ \t]*(?P<key>[\"']?{quoted}[\"']?)[ \t]*[=.\]]", re.MULTILINE)
    match = pattern.search(text)
    position = match.start("key") if match else 0
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    return ConfigInvalid(path, line, column, message, hint=hint)


def _nearest_setting(key: str) -> str:
    import difflib

    near = difflib.get_close_matches(key, CloudConfig._fields, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are: {', '.join(CloudConfig._fields)}"


def _place_of(error: tomllib.TOMLDecodeError, text: str) -> tuple[int, int, str]:
    """tomllib tells the place only in its message (until Python 3.14)."""
    message = str(error)
    match = re.fullmatch(r"(?P<what>.*) \(at line (?P<line>\d+), column (?P<column>\d+)\)", message, re.DOTALL)
    if match:
        return int(match["line"]), int(match["column"]), match["what"]
    last = text.rpartition("\n")[2]
    return text.count("\n") + 1, len(last) + 1, message.removesuffix(" (at end of document)")


def _read_text(path: Path) -> str:
    data = read_file(path, max_bytes=MAX_CONFIG_BYTES)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigInvalid(path, line, 1, "this is not UTF-8") from error


# --- making one -----------------------------------------------------------------------------------------------------


def _refuse_existing(root: Path) -> None:
    if (root / CONFIG_NAME).exists():
        raise CloudExists(root, f"a cloud ({CONFIG_NAME})")
    if (root / STATE_NAME).exists():
        raise CloudExists(
            root, f"{STATE_NAME}/ but no {CONFIG_NAME}: write one (it may be empty) to go on using the cloud in it"
        )


def _make_store(path: Path) -> None:
    from cas.store import Store

    Store.open(path).close()
    path.chmod(0o700)


def _login_name() -> str:
    for variable in ("LOGNAME", "USER"):
        name = re.sub(r"[^a-z0-9-]+", "-", os.environ.get(variable, "").lower()).strip("-")
        if NAME.fullmatch(name):
            return name
    return "operator"
