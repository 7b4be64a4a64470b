"""One directory of a run, on a local disk or on any file system that pyarrow opens.

Everything above this module speaks of names relative to a directory; only this module knows
whether they are files of this machine or objects in a store.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import xxhash

from charactertrain.exceptions import ArtifactError, ConfigError, UnavailableError

_COPY_CHUNK_BYTES = 8 * 2**20
_NUM_READERS = 16
"""A store answers each request late and many at a time."""
_READ_AHEAD = 64
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)
"""Another file system, or one without hard links, or too many of them."""
_LASTING = (
    errno.EEXIST,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EDQUOT,
)
"""What does not pass by itself; a store's errors have no number, and may."""


@dataclass(frozen=True)
class Directory:
    """A directory on a pyarrow file system. Making one creates nothing."""

    filesystem: pafs.FileSystem
    root: str
    """Path on the file system, without scheme and without trailing slash."""
    uri: str
    """The directory as a user would write it."""

    def child(self, name: str) -> "Directory":
        """The directory `name` below this one."""
        return Directory(self.filesystem, f"{self.root}/{name}", f"{self.uri}/{name}")

    def path(self, name: str) -> str:
        """The path of `name` on the file system."""
        return f"{self.root}/{name}"

    @property
    def is_local(self) -> bool:
        """Whether files here can be opened by path on this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def local_path(self) -> Path:
        """This directory as a local path; raises ArtifactError where it is not local."""
        if not self.is_local:
            raise ArtifactError(f"{self.uri} is not on a local disk; download it first")
        return Path(self.root)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn what goes wrong with `name` into an ArtifactError: where, why, what to do."""
        try:
            yield
        except OSError as error:
            where = f"{self.uri}/{name}" if name else self.uri
            kind = UnavailableError if may_pass(error) else ArtifactError
            raise kind(f"{where}: {error}. {_advice(error)}") from error

    def exists(self, name: str) -> bool:
        """Whether a file or directory `name` exists."""
        with self._explained(name):
            info = self.filesystem.get_file_info(self.path(name))
        return info.type is not pafs.FileType.NotFound

    def files(self, name: str = "") -> list[str]:
        """Names of all files below `name`, sorted, relative to this directory."""
        base = self.path(name) if name else self.root
        selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
        with self._explained(name):
            infos = self.filesystem.get_file_info(selector)
        found = [info.path for info in infos if info.type is pafs.FileType.File]
        names = [path[len(self.root) + 1 :] for path in found]
        return sorted(n for n in names if not Path(n).name.startswith("."))

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        with self._explained(name):
            return int(self.filesystem.get_file_info(self.path(name)).size)

    def read_bytes(self, name: str) -> bytes:
        """The whole of a file."""
        with self._explained(name), self.filesystem.open_input_file(self.path(name)) as stream:
            return bytes(stream.read())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees all of it or none."""
        with self.replacing(name) as stream:
            stream.write(data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that is not there; False where there is one. One of several succeeds.

        Readers may see it empty for a moment. Raises ArtifactError where the directory is in a
        store: pyarrow has no conditional write.
        """
        path = self.local_path / name
        with self._explained(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except FileExistsError:
                return False
        return True

    def take(self, source: "Directory", name: str) -> None:
        """Have a local file of another directory under the same name here, linked where possible.

        Nothing writes into a file that is there, so a link is as good as a copy.
        """
        with self._explained(name):
            original, target = source.local_path / name, self.local_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                target.hardlink_to(original)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with self.replacing(name) as stream, original.open("rb") as file:
                    shutil.copyfileobj(file, stream, _COPY_CHUNK_BYTES)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A parquet file as a table."""
        with self._parquet(name) as stream:
            return pq.read_table(stream, columns=columns)

    def read_slice(self, name: str, start: int, stop: int, columns: list[str]) -> pa.Table:
        """Rows [start, stop) of a parquet file; only the row groups that they are in are read."""
        with self._parquet(name) as stream:
            file = pq.ParquetFile(stream)
            groups: list[int] = []
            first = row = 0
            for group in range(file.num_row_groups):
                end = row + file.metadata.row_group(group).num_rows
                if end > start and row < stop:
                    first = first if groups else row
                    groups.append(group)
                row = end
            table = file.read_row_groups(groups, columns=columns)
        return table.slice(start - first, stop - start)

    def num_rows(self, name: str) -> int:
        """Rows of a parquet file, as its footer says."""
        with self._parquet(name) as stream:
            return int(pq.read_metadata(stream).num_rows)

    @contextmanager
    def _parquet(self, name: str) -> Iterator[pa.NativeFile]:
        """A parquet file to be read; what is wrong with it is an ArtifactError."""
        with self._explained(name), self.filesystem.open_input_file(self.path(name)) as stream:
            try:
                yield stream
            except (pa.ArrowInvalid, OSError) as error:
                # pyarrow says OSError for some kinds of damage, and for a store that went away.
                is_sure = isinstance(error, pa.ArrowInvalid) or (
                    self.is_local and error.errno is None
                )
                unreachable = "" if is_sure else "If the store was not reached, run again. If not: "
                kind = ArtifactError if is_sure else UnavailableError
                raise kind(
                    f"{self.uri}/{name}: {error}. {unreachable}The file was damaged after it was "
                    "written: restore it, or move the stage's directory away and run again."
                ) from error

    def read_tables(self, names: Sequence[str], columns: list[str]) -> Iterator[pa.Table]:
        """Columns of many parquet files, in order; several are read at a time."""
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            # In groups, so that what is read ahead stays small however many files there are.
            for start in range(0, len(names), _READ_AHEAD):
                group = names[start : start + _READ_AHEAD]
                yield from pool.map(lambda name: self.read_table(name, columns), group)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a parquet file so that a reader sees all of it or none."""
        with self.replacing(name) as stream:
            pq.write_table(table, stream, compression="zstd")

    def checksum(self, name: str) -> str:
        """xxh3-128 of a file's bytes, in hexadecimal."""
        digest = xxhash.xxh3_128()
        with self._explained(name), self.filesystem.open_input_stream(self.path(name)) as stream:
            while chunk := stream.read(_COPY_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    @contextmanager
    def replacing(self, name: str) -> Iterator[IO[bytes]]:
        """A stream to a file that appears under `name` only when it is complete."""
        with self._explained(name), self._replacing(name) as stream:
            yield stream

    @contextmanager
    def _replacing(self, name: str) -> Iterator[IO[bytes]]:
        """The same without the explanation.

        On a local disk: a hidden file beside it, flushed and then renamed. For an object store: a
        temporary file, uploaded when it is whole, because closing pyarrow's stream publishes what
        was written so far, and so does leaving it to the garbage collector.
        """
        if not self.is_local:
            with tempfile.NamedTemporaryFile(prefix="charactertrain-") as temporary:
                yield temporary
                temporary.flush()
                self._send(Path(temporary.name), name)
            return
        target = self.path(name)
        parent, _, base = target.rpartition("/")
        Path(parent).mkdir(parents=True, exist_ok=True)
        partial = Path(parent) / f".{base}.{uuid4().hex[:8]}.partial"
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def upload(self, source: Path, name: str) -> None:
        """Copy a local directory's files to `name` below this directory, each atomically."""
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            target = f"{name}/{file.relative_to(source).as_posix()}"
            if not self.is_local:
                with self._explained(target):
                    self._send(file, target)
                continue
            with self.replacing(target) as stream, file.open("rb") as original:
                shutil.copyfileobj(original, stream, _COPY_CHUNK_BYTES)

    def _send(self, file: Path, name: str) -> None:
        """Copy a local file to the store, where it appears under `name` only when it is complete.

        An object of S3 or GCS does so by itself; on any other file system it is moved there.
        """
        is_object = isinstance(self.filesystem, pafs.S3FileSystem | pafs.GcsFileSystem)
        target = self.path(name)
        parent, _, base = target.rpartition("/")
        written = target if is_object else f"{parent}/.{base}.{uuid4().hex[:8]}.partial"
        if not is_object:
            self.filesystem.create_dir(parent, recursive=True)
        pafs.copy_files(
            str(file),
            written,
            pafs.LocalFileSystem(),
            self.filesystem,
            chunk_size=_COPY_CHUNK_BYTES,
        )
        if not is_object:
            # HDFS moves nothing onto a file that is there.
            self.delete(name)
            self.filesystem.move(written, target)

    def delete(self, name: str) -> None:
        """Remove a file or a directory with all it holds; nothing happens where it is not."""
        with self._explained(name):
            info = self.filesystem.get_file_info(self.path(name))
            if info.type is pafs.FileType.Directory:
                self.filesystem.delete_dir(self.path(name))
            elif info.type is pafs.FileType.File:
                self.filesystem.delete_file(self.path(name))

    @contextmanager
    def on_local_disk(self) -> Iterator[Path]:
        """This directory as a local path; a temporary copy where it lives in a store."""
        if self.is_local:
            yield self.local_path
            return
        with tempfile.TemporaryDirectory(prefix="charactertrain-") as temporary:
            for name in self.files():
                target = Path(temporary) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with (
                    self._explained(name),
                    self.filesystem.open_input_stream(self.path(name)) as stream,
                    target.open("wb") as file,
                ):
                    shutil.copyfileobj(stream, file, _COPY_CHUNK_BYTES)
            yield Path(temporary)


def open_directory(location: str) -> Directory:
    """The directory at a local path or at a URI that pyarrow opens (s3, gs, hdfs, file)."""
    if "://" not in location:
        path = Path(location).expanduser().absolute()
        return Directory(pafs.LocalFileSystem(), str(path), str(path))
    try:
        filesystem, root = pafs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, ValueError, OSError) as error:
        raise ConfigError(
            without_userinfo(f"run.dir: cannot open {location!r}: {error}. ")
            + "Expected a local path or a URI with scheme file, s3, gs or hdfs."
        ) from error
    # Shown in messages: without options, and without keys in front of the host.
    uri = without_keys(location.split("?", 1)[0]).rstrip("/")
    return Directory(filesystem, root.rstrip("/"), uri)


def may_pass(error: OSError) -> bool:
    """Whether the same may work in a while: not of what is missing, forbidden or full."""
    return error.errno not in _LASTING


def without_keys(text: str) -> str:
    """`text` with the keys taken out of the URIs in it, for what people are shown."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def without_userinfo(text: str) -> str:
    """The same for a URI that does not parse: a key may hold a slash, so up to the last '@'."""
    return re.sub(r"(?<=://)[^\s'\"]*@", "", text)


def _advice(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "The disk is full: free some space, and run the same command again."
    return (
        "Check that run.dir is a directory that can be written, that the disk has room, and that "
        "the store can be reached with your credentials; then run the same command again."
    )
