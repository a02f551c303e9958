"""`lowcloud fmt`."""

from __future__ import annotations

from pathlib import Path

from tests.tools.command import lowcloud
from tests.tools.shop import Shop


def test_every_file_of_the_definition_is_laid_out_and_means_the_same(written: Shop) -> None:
    written.definition.chmod(0o640)
    before = written.json("resolve")["definition"]
    (written.root / "cloud.staging.toml").write_text("[process.web]\nmemory='48MiB' # more\n")
    assert written.run("fmt", "--check").code == 1
    changed = written.json("fmt")["changed"]
    assert [Path(path).name for path in changed] == ["cloud.toml", "cloud.staging.toml"]
    assert (written.root / "cloud.staging.toml").read_text() == "[process.web]\nmemory = '48MiB'  # more\n"
    assert written.definition.stat().st_mode & 0o777 == 0o640
    assert written.json("resolve")["definition"] == before
    assert written.succeed("fmt", "--check").out == ""
    assert written.json("fmt") == {"changed": [], "written": True}


def test_check_names_what_it_would_change_and_leaves_it(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("a=1\n")
    result = lowcloud("fmt", "--check", file)
    assert (result.code, file.read_text()) == (1, "a=1\n")
    assert str(file) in result.out
    assert "laid out otherwise" in result.err


def test_what_is_not_toml_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("a=\n")
    result = lowcloud("fmt", file)
    assert (result.code, file.read_text()) == (2, "a=\n")
    assert f"{file}:1:3" in result.err
    assert lowcloud("fmt", tmp_path / "absent.toml").code == 2
