"""What of a working tree goes to a cluster, and what stops it."""

import io
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from charactertrain.exceptions import ConfigError
from launch import package
from launch.package import make_package


@pytest.fixture(name="tree")
def small_checkout(tmp_path: Path) -> Path:
    """A checkout with a tracked file, a new one, and an ignored one."""
    root = tmp_path / "tree"
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    (root / ".gitignore").write_text("runs/\n*.log\n")
    (root / "kept.py").write_text("x = 1\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    (root / "new file.py").write_text("y = 2\n")
    (root / "runs").mkdir()
    (root / "runs" / "big.bin").write_bytes(b"0" * 100)
    return root


def entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_package_has_what_git_does_not_ignore(tree: Path) -> None:
    found = entries(make_package(tree).data)
    assert set(found) == {".gitignore", "kept.py", "new file.py", "run.sh"}
    assert found["new file.py"] == b"y = 2\n"


def test_a_package_keeps_what_can_be_executed(tree: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(make_package(tree).data)) as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert modes["run.sh"] & 0o111
    assert not modes["kept.py"] & 0o111


def test_equal_contents_have_equal_names_whatever_the_time(tree: Path) -> None:
    before = make_package(tree)
    os.utime(tree / "kept.py", (0, 0))
    assert make_package(tree).name == before.name
    (tree / "kept.py").write_text("x = 2\n")
    assert make_package(tree).name != before.name


def test_a_tracked_file_that_was_deleted_is_not_missed(tree: Path) -> None:
    (tree / "kept.py").unlink()
    assert "kept.py" not in entries(make_package(tree).data)


def test_excluded_files_stay_behind(tree: Path) -> None:
    assert set(entries(make_package(tree, exclude=["*.py"]).data)) == {".gitignore", "run.sh"}


def test_a_directory_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkout"):
        make_package(tmp_path)


def test_a_tree_that_is_too_large_is_refused_with_its_largest_files(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MAX_BYTES", 2**20)
    (tree / "weights.bin").write_bytes(b"0" * 2**21)
    with pytest.raises(ConfigError, match=r"(?s)1 MiB at most.*2\.0 MiB  weights\.bin\n") as raised:
        make_package(tree)
    assert "big.bin" not in str(raised.value)
    make_package(tree, exclude=["weights.*"])


def test_a_link_out_of_the_tree_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("private")
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"lead out of .*: link;"):
        make_package(tree)


@pytest.mark.parametrize("name", [".env", "deep/server.pem", "id_rsa", ".netrc", "prod.env"])
def test_a_file_named_like_a_credential_is_refused(tree: Path, name: str) -> None:
    (tree / name).parent.mkdir(exist_ok=True)
    (tree / name).write_text("x")
    with pytest.raises(ConfigError, match="nothing was sent") as raised:
        make_package(tree)
    assert f"{name}: its name" in str(raised.value)


# Put together here, or this file would look like one.
SECRETS = {
    "private key": "-----BEGIN RSA PRIVATE " + "KEY-----",
    "AWS": "AKIA" + "ABCDEFGHIJKLMNOP",
    "Hugging Face": "hf_" + "a" * 34,
    "GitHub": "ghp_" + "a1" * 18,
    "API key": "sk-" + "a1" * 20,
}


@pytest.mark.parametrize("kind", list(SECRETS))
def test_a_file_that_holds_a_credential_is_refused_with_its_line(tree: Path, kind: str) -> None:
    (tree / "notes.txt").write_text(f"first line\nkey = {SECRETS[kind]}\n")
    with pytest.raises(ConfigError, match=r"notes\.txt: line 2 looks like") as raised:
        make_package(tree)
    assert kind in str(raised.value)
    assert SECRETS[kind] not in str(raised.value)


def test_examples_and_public_keys_are_no_credentials(tree: Path) -> None:
    for name in (".env.example", "id_ed25519.pub"):
        (tree / name).write_text("x")
    assert {".env.example", "id_ed25519.pub"} <= set(entries(make_package(tree).data))


def test_this_checkout_can_be_packed() -> None:
    found = entries(make_package(Path(__file__).parents[2]).data)
    assert {"conf/config.yaml", "charactertrain/__main__.py", "pyproject.toml"} <= set(found)
