"""The working tree as one archive, the same bytes for the same files, without what git ignores."""

import io
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import xxhash

from charactertrain.exceptions import ConfigError
from launch.credentials import looks_secret

MAX_BYTES = 64 * 2**20
"""Of all files together. Ray takes some hundred MiB, and every node unpacks them for every job."""
_NUM_NAMED = 8
_MIDNIGHT_1980 = (1980, 1, 1, 0, 0, 0)
"""The earliest time that an archive can hold, for every file: times are no content."""
_EXCLUDE = "leave them out with --exclude PATTERN, or name them in .gitignore"


@dataclass(frozen=True)
class Package:
    """What a job is to find as its working directory."""

    data: bytes
    """A zip archive."""
    num_files: int

    @property
    def name(self) -> str:
        """What Ray calls it: equal contents have equal names, and are uploaded once."""
        return f"_ray_pkg_{xxhash.xxh3_128_hexdigest(self.data)}.zip"

    @property
    def uri(self) -> str:
        """What the runtime environment calls it."""
        return f"gcs://{self.name}"


def make_package(root: Path, *, exclude: Sequence[str] = ()) -> Package:
    """The checkout at `root`: files that git tracks, and new ones that it does not ignore.

    Args:
        root: The top of the checkout.
        exclude: Patterns of paths to leave out; `*` spans directories.

    Raises:
        ConfigError: It is no checkout, is too large, holds what looks like a credential, or a
            link that leads out of it.
    """
    names = [name for name in _listed(root) if not any(fnmatchcase(name, p) for p in exclude)]
    paths = {name: root / name for name in names}
    # Tracked files may be deleted, and submodules are directories.
    files = {name: path for name, path in paths.items() if path.is_file()}
    _check_links(root, files)
    _check_size(files)
    contents = {name: path.read_bytes() for name, path in files.items()}
    _check_secrets(contents)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _MIDNIGHT_1980)
            entry.compress_type = zipfile.ZIP_DEFLATED
            is_executable = files[name].stat().st_mode & 0o100
            entry.external_attr = (0o755 if is_executable else 0o644) << 16
            target.writestr(entry, data)
    return Package(archive.getvalue(), len(contents))


def _listed(root: Path) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{root}: git says which files a job gets, and is not installed (or the directory is "
            "not there)"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"{root}: git says which files a job gets, and this is no checkout of it: "
            f"{error.stderr.decode(errors='replace').strip()}"
        ) from error
    return sorted(set(done.stdout.decode().split("\0")) - {""})


def _check_links(root: Path, files: Mapping[str, Path]) -> None:
    top = root.resolve()
    leading_out = [name for name, path in files.items() if not path.resolve().is_relative_to(top)]
    if leading_out:
        raise ConfigError(
            f"links lead out of {root}, and their targets would be sent along: "
            f"{_named(leading_out)}; {_EXCLUDE}"
        )


def _check_size(files: Mapping[str, Path]) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    if total <= MAX_BYTES:
        return
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_NUM_NAMED]
    lines = "".join(f"\n  {sizes[name] / 2**20:8.1f} MiB  {name}" for name in largest)
    raise ConfigError(
        f"the working tree has {total / 2**20:.0f} MiB in {len(sizes)} files, expected "
        f"{MAX_BYTES // 2**20} MiB at most; the largest are:{lines}\nData and models belong on "
        f"storage that all nodes share; {_EXCLUDE}."
    )


def _check_secrets(contents: Mapping[str, bytes]) -> None:
    reasons = {name: looks_secret(name, data) for name, data in contents.items()}
    found = [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
    if found:
        lines = "".join(f"\n  {line}" for line in found)
        raise ConfigError(
            f"files of the working tree look like credentials, and nothing was sent:{lines}\n"
            f"{_EXCLUDE[0].upper()}{_EXCLUDE[1:]}. What a job needs, pass as a variable (--env "
            "NAME) or as a secret of the cluster."
        )


def _named(names: Sequence[str]) -> str:
    more = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
