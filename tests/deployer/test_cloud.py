"""The directory of a cloud: found from below, never overwritten, mistakes in its settings told with their place."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deployer.cloud import trust
from deployer.cloud.cloud import CONFIG_NAME, CONFIG_TEXT, Cloud, CloudConfig, parse_config
from deployer.errors import BadInput, CloudDamaged, CloudExists, CloudMissing, ConfigInvalid


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cloud") / "shop"
    with Cloud.create(root, operator="ada"):
        pass
    return root


def test_a_new_cloud_has_a_store_an_authority_and_an_operator(made: Path) -> None:
    with Cloud.open(made) as cloud:
        assert cloud.root == made
        assert cloud.config == CloudConfig()
        stored = cloud.store.put(b"hello")
        assert cloud.store.read(stored.digest) == b"hello"
        assert trust.common_name(cloud.credentials) == "operator:ada"
        assert (cloud.authority / "key.pem").is_file()


def test_what_is_secret_is_readable_by_its_owner_only(made: Path) -> None:
    with Cloud.open(made) as cloud:
        assert stat.S_IMODE(cloud.state.stat().st_mode) == 0o700
        assert stat.S_IMODE((cloud.authority / "key.pem").stat().st_mode) == 0o600
        assert stat.S_IMODE((cloud.credentials / "key.pem").stat().st_mode) == 0o600


def test_nothing_is_left_of_the_making(made: Path) -> None:
    assert sorted(entry.name for entry in made.iterdir()) == [".lowcloud", CONFIG_NAME]


def test_a_cloud_is_found_from_any_directory_below_it(made: Path) -> None:
    below = made / "conf" / "deep"
    below.mkdir(parents=True)
    try:
        with Cloud.open(below) as cloud:
            assert cloud.root == made
    finally:
        below.rmdir()
        below.parent.rmdir()


def test_where_there_is_no_cloud_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CloudMissing) as caught:
        Cloud.open(tmp_path)
    assert "lowcloud init" in caught.value.hint


def test_a_cloud_is_never_overwritten(made: Path) -> None:
    before = (made / ".lowcloud" / "ca" / "key.pem").read_bytes()
    with pytest.raises(CloudExists):
        Cloud.create(made)
    assert (made / ".lowcloud" / "ca" / "key.pem").read_bytes() == before


def test_a_cloud_that_lost_its_settings_is_not_overwritten_and_can_be_used_again(tmp_path: Path) -> None:
    Cloud.create(tmp_path, operator="ada").close()
    (tmp_path / CONFIG_NAME).unlink()
    with pytest.raises(CloudExists, match="write one"):
        Cloud.create(tmp_path)
    (tmp_path / CONFIG_NAME).touch()
    Cloud.open(tmp_path).close()


def test_a_cloud_that_lost_its_state_says_so(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).touch()
    with pytest.raises(CloudDamaged, match=r"\.lowcloud is missing"):
        Cloud.open(tmp_path)


def test_a_directory_with_other_files_can_become_a_cloud(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("mine")
    Cloud.create(tmp_path, operator="ada").close()
    assert (tmp_path / "README").read_text() == "mine"


def test_the_text_of_a_new_file_says_the_defaults() -> None:
    uncommented = "".join(line.removeprefix("# ") + "\n" for line in CONFIG_TEXT.splitlines() if " = " in line)
    assert parse_config(CONFIG_TEXT, Path(CONFIG_NAME)) == CloudConfig()
    assert parse_config(uncommented, Path(CONFIG_NAME)) == CloudConfig()


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("ref = ", "1:7", "Invalid value", ""),
        ("\n\nref = 'prod", "3:", "", ""),
        ("\n  plannner = 'rolling'\n", "2:3", "'plannner'", "did you mean planner?"),
        ("[engine]\nx = 1", "1:2", "'engine'", "there are: definition, ref, planner"),
        ("ref = 7", "1:1", "a text in quotes", ""),
        ("planner = 'minimal'\nref = 'Prod!'", "2:1", "'Prod!'", "lower-case"),
        ("ref = ''", "1:1", "a text in quotes", ""),
        ('definition = "a\\u0000b"', "1:1", "zero byte", ""),
    ],
)
def test_a_mistake_in_the_settings_is_told_with_its_place(text: str, place: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_config(text, Path(CONFIG_NAME))
    assert str(caught.value).startswith(f"{CONFIG_NAME}:{place}")
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_settings_that_are_no_text_or_too_large_are_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_bytes(b"ref = 'prod'\n# \xff")
    with pytest.raises(ConfigInvalid, match=":2:1: this is not UTF-8"):
        Cloud.open(tmp_path)
    (tmp_path / CONFIG_NAME).write_bytes(b"#" * (1 << 17))
    with pytest.raises(BadInput, match="larger"):
        Cloud.open(tmp_path)


@pytest.mark.parametrize("name", ["../x", "", "A", "a/b"])
def test_a_host_directory_cannot_be_outside_the_cloud(made: Path, name: str) -> None:
    with Cloud.open(made) as cloud, pytest.raises(BadInput):
        cloud.host_directory(name)


def test_opening_a_cloud_imports_nothing_slow() -> None:
    program = (
        "import sys, deployer.cloud.cloud\n"
        "slow = {'asyncio', 'aiohttp', 'cryptography', 'lmdb', 'wasmtime', 'rich', 'zstandard', 'msgspec'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
