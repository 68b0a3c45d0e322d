"""Reads the members of folders and archives one at a time, without extracting them to disk.

Archives are not trusted: a name with `..`, an absolute name, a link, a device or a decompression
bomb raises an error. In folders, links are followed, since videos are often on another disk.

The only temporary files are those of `rarfile`, which writes a compressed member to a file for its
decompression tool. For a compressed solid .rar inside another archive, it writes the whole .rar.
"""

import bz2
import contextlib
import dataclasses
import functools
import gzip
import io
import lzma
import pathlib
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import IO, Any

import rarfile

from coco_jax.errors import UserError
from coco_jax.files import check_zip_directory, open_regular

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".rar")
MAX_DEPTH = 2  # nesting of archives: HMDB51 is a .rar of .rar files
MAX_BYTES = 2 << 30  # bytes of one member
# An archive is a bomb if its content exceeds both: this multiple of its size, and this many bytes.
MAX_RATIO, MAX_TOTAL = 200, 8 << 30
# So is one of its members, which are read whole. Videos are compressed already.
MAX_MEMBER_RATIO, MAX_MEMBER = 20, 256 << 20
MAX_HEADER = 1 << 20  # bytes of the headers of one tar member, with long names and PAX records
_CHUNK = 1 << 20
_UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_TOOLS = "install unrar, unar, bsdtar or 7z, or extract it yourself and give the folder"
_EXTRACT = "extract it yourself and give the folder"
_PACK = "pack the archive again with regular files only"


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file of a folder or archive.

    Attributes:
      name: POSIX path of the file in the folder or archive. Members of a nested archive have the
        name `STEM_OF_THE_NESTED_ARCHIVE/PATH`.
      read: returns the bytes of the file. Call it before requesting the next member.
    """

    name: str
    read: Callable[[], bytes]


def members(
    path: pathlib.Path, *, suffixes: Collection[str] | None = None, max_bytes: int = MAX_BYTES
) -> Iterator[Member]:
    """Yields the files of a folder, sorted, at any depth, or of an archive in its own order.

    Hidden files are left out.

    Args:
      path: a folder, or an archive whose name ends in one of `SUFFIXES`.
      suffixes: file name extensions to yield, in lower case with a dot; all if None. Archives inside
        an archive are always opened; archives inside a folder are treated like other files.
      max_bytes: maximum size of a member, in bytes.

    Raises:
      UserError: the path does not exist, is of an unknown type, damaged or encrypted, or has a member
        with an unsafe name (with `..`, or absolute), a link, a device, a member that is too large, or
        is a decompression bomb.
    """
    if path.is_dir():
        with _readable(str(path)):
            for file in files(path):
                name = file.relative_to(path).as_posix()
                if _wanted(name, suffixes):
                    yield Member(name, functools.partial(_whole, file, max_bytes))
        return
    if not path.is_file():
        raise UserError(f"{path}: no such folder or archive; check the path")
    if not _kind(path.name):
        raise UserError(
            f"{path}: neither a folder nor an archive; give a folder or a file that ends in one of "
            f"{' '.join(SUFFIXES)}"
        )
    with _readable(str(path)):
        budget = _Budget(str(path), path.stat().st_size)
        yield from _archive(path, path.name, budget, suffixes, max_bytes, 1)


@dataclasses.dataclass
class _Budget:
    """Counts the decompressed bytes of an archive and of the archive that contains it (`outer`)."""

    where: str
    size: int
    outer: "_Budget | None" = None
    total: int = 0

    def spend(self, count: int) -> None:
        self.total += count
        if self.total > MAX_TOTAL and self.total > MAX_RATIO * self.size:
            _fail(
                self.where,
                f"decompresses to more than {MAX_TOTAL:,} bytes and {MAX_RATIO} times its size",
                "download it again from a source that you trust",
            )
        if self.outer:
            self.outer.spend(count)


class _Counted:
    """A stream of decompressed bytes that counts them in a budget.

    Reading beyond `limit` bytes, if it is set, raises `tarfile.ReadError`.
    """

    def __init__(self, stream: IO[bytes], budget: _Budget):
        self.limit: int | None = None
        self._stream, self._budget, self._read = stream, budget, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._read += len(data)
        self._budget.spend(len(data))
        if self.limit is not None and self._read > self.limit:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER:,} bytes")
        return data


def files(folder: pathlib.Path, above: tuple[pathlib.Path, ...] = ()) -> Iterator[pathlib.Path]:
    """Yields the files of a folder, sorted, at any depth; links are followed.

    Hidden files are left out.

    Args:
      folder: the folder.
      above: resolved paths of the folders that contain it, to detect cycles of links.

    Raises:
      UserError: the target of a link does not exist, or is a folder that contains the link; or there is
        something else than files and folders, such as a FIFO.
    """
    above = (*above, folder.resolve())
    for entry in sorted(folder.iterdir()):
        if _hidden(entry.name):
            continue
        if entry.is_symlink() and not entry.exists():
            _fail(str(entry), "link to a file that does not exist", "mount its disk or remove it")
        if entry.is_dir():
            if entry.resolve() in above:
                _fail(str(entry), "link to a folder that contains it", "remove the link")
            yield from files(entry, above)
        elif entry.is_file():
            yield entry
        else:
            _fail(str(entry), "neither a regular file nor a folder", "remove it")


def _whole(file: pathlib.Path, max_bytes: int) -> bytes:
    try:
        if (size := file.stat().st_size) > max_bytes:
            _fail(str(file), f"has {size:,} bytes, more than {max_bytes:,}", "remove it")
        return file.read_bytes()
    except OSError as error:
        return _fail(str(file), f"cannot be read ({error.strerror})", "check its permissions")


def _archive(
    source: pathlib.Path | io.BytesIO, name: str, budget: _Budget, suffixes, max_bytes, depth: int
) -> Iterator[Member]:
    """Yields the members of an archive, including those of archives inside it."""
    where = budget.where

    def read_member(member: str, read: Callable[[], Any], declared: int) -> bytes:
        if declared > max_bytes:
            _fail(
                where,
                f"{_show(member)} has {declared:,} bytes, more than {max_bytes:,}",
                "pack the archive again without it",
            )
        out, count = io.BytesIO(), 0
        with _readable(where, member), read() as opened:
            while data := opened.read(_CHUNK):
                count += out.write(data)
                if count > max_bytes:
                    _fail(
                        where,
                        f"{_show(member)} decompresses to more than {max_bytes:,} bytes",
                        "pack the archive again without it",
                    )
                if count > MAX_MEMBER and count > MAX_MEMBER_RATIO * budget.size:
                    _fail(
                        where,
                        f"{_show(member)} decompresses to more than {MAX_MEMBER:,} bytes and "
                        f"{MAX_MEMBER_RATIO} times the size of the archive",
                        "pack the archive again without it",
                    )
            if count != declared:
                raise EOFError(f"{count:,} of {declared:,} bytes")
        return out.getvalue()  # without a copy

    reader = {".zip": _zip, ".rar": _rar}.get(_kind(name), _tar)
    with _readable(where):
        for raw, read, declared in reader(source, budget):
            _check_name(where, raw)
            member = pathlib.PurePosixPath(raw).as_posix()  # removes a leading "./"
            if _hidden(member):
                continue
            if _kind(member):
                if depth == MAX_DEPTH:
                    _fail(
                        where,
                        f"{_show(member)} is an archive nested {MAX_DEPTH + 1} deep",
                        _EXTRACT,
                    )
                data = read_member(member, read, declared)
                inner = pathlib.PurePosixPath(member).name
                stem = re.sub(r"(\.tar)?\.\w+$", "", inner)
                within = _Budget(f"{where}/{_show(member)[1:-1]}", len(data), budget)
                nested = _archive(io.BytesIO(data), inner, within, suffixes, max_bytes, depth + 1)
                for inner_member in nested:
                    yield Member(f"{stem}/{inner_member.name}", inner_member.read)
            elif _wanted(member, suffixes):
                yield Member(member, functools.partial(read_member, member, read, declared))


# Name, function that opens the member, declared size in bytes.
_Opened = Iterator[tuple[str, Callable[[], Any], int]]


@contextlib.contextmanager
def _stream(source: pathlib.Path | io.BytesIO) -> Iterator[IO[bytes]]:
    if isinstance(source, io.BytesIO):
        yield source
    else:
        with open_regular(source) as stream:
            yield stream


class _Header(tarfile.TarInfo):
    """A tar header that raises an error if it is damaged.

    tarfile itself treats a damaged header as the end of the archive and drops the later members.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":  # type: ignore[override]
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the regular end of the archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _tar(source: pathlib.Path | io.BytesIO, budget: _Budget) -> _Opened:
    # The archive is read once, from start to end. It is decompressed here because tarfile's own
    # decompression verifies no checksums and stops after the first of several gzip streams.
    with _stream(source) as stream:
        magic = stream.read(2)
        stream.seek(0)
        unpacked = _UNPACKERS[magic](stream) if magic in _UNPACKERS else stream
        counted = _Counted(unpacked, budget)
        slack = MAX_HEADER + tarfile.RECORDSIZE
        counted.limit = slack
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=_Header) as archive:  # type: ignore
            while member := archive.next():
                counted.limit = archive.offset + slack  # type: ignore[attr-defined]
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    kind = "a link" if member.issym() or member.islnk() else "not a regular file"
                    _fail(budget.where, f"{_show(member.name)} is {kind}", _PACK)
                yield member.name, functools.partial(_extract, archive, member), member.size
            counted.limit = None
            while counted.read(_CHUNK):  # the checksums are at the end of the stream
                pass


def _zip(source: pathlib.Path | io.BytesIO, budget: _Budget) -> _Opened:
    with _stream(source) as stream:
        check_zip_directory(stream)
        archive = zipfile.ZipFile(stream)
        for member in archive.infolist():
            if member.is_dir():
                continue
            name = member.orig_filename
            if member.flag_bits & 1:
                _fail(budget.where, f"{_show(name)} is encrypted", _EXTRACT)
            if (kind := (member.external_attr >> 16) & 0o170000) not in (0, 0o100000):
                what = "a link" if kind == 0o120000 else "not a regular file"
                _fail(budget.where, f"{_show(name)} is {what}", _PACK)
            opener = functools.partial(_open_counted, archive, member, budget)
            yield name.replace("\\", "/"), opener, member.file_size


def _rar(source: pathlib.Path | io.BytesIO, budget: _Budget) -> _Opened:
    # A path is preferred: given a stream, rarfile copies a solid archive to disk for every member.
    # By default rarfile takes a damaged header for the end of the archive, and drops the later members.
    with rarfile.RarFile(source, errors="strict") as archive:
        if archive.needs_password():
            _fail(budget.where, "encrypted", _EXTRACT)
        if not archive.infolist():  # rarfile accepts noise after the first bytes
            _fail(budget.where, "damaged, or empty", "download it again")
        for member in archive.infolist():
            if member.is_dir():
                continue
            redirected = member.file_redir and member.file_redir[0]
            # A redirection to a copy of another member is a file, all others are links.
            copied = redirected in (None, rarfile.RAR5_XREDIR_FILE_COPY)
            if member.is_symlink() or not member.is_file() or not copied:
                _fail(budget.where, f"{_show(member.filename)} is a link", _PACK)
            opener = functools.partial(_open_counted, archive, member, budget)
            yield member.filename, opener, member.file_size


def _open_counted(archive: Any, member: Any, budget: _Budget) -> _Counted:
    return _Counted(archive.open(member), budget)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(member)
    if opened is None:
        raise tarfile.ReadError("a member without content")
    return opened


def _kind(name: str) -> str:
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def _check_name(where: str, name: str) -> None:
    parts = re.split(r"[/\\]", name)
    if (
        ".." in parts
        or name.startswith(("/", "\\"))
        or re.match(r"[A-Za-z]:", name)
        or "\0" in name
    ):
        _fail(
            where,
            f"{_show(name)} is an absolute name or has '..' or a null character",
            "download the archive again from a source that you trust",
        )


def _show(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _wanted(name: str, suffixes: Collection[str] | None) -> bool:
    if _hidden(name):
        return False
    return suffixes is None or pathlib.PurePosixPath(name).suffix.lower() in suffixes


@contextlib.contextmanager
def _readable(where: str, member: str = "") -> Iterator[None]:
    """Turns the exceptions of the archive libraries into a `UserError`."""
    named = f"{_show(member)} " if member else ""
    try:
        yield
    except rarfile.RarCannotExec:
        _fail(where, f"{named}is compressed and no tool to decompress .rar is installed", _TOOLS)
    except (rarfile.NoCrypto, rarfile.PasswordRequired, rarfile.RarWrongPassword):
        _fail(where, "encrypted", _EXTRACT)
    except PermissionError as error:
        _fail(where, f"cannot be read ({error.strerror})", "check its permissions")
    except (
        tarfile.TarError, zipfile.BadZipFile, rarfile.Error, zlib.error, lzma.LZMAError, EOFError,
        OSError, ValueError, struct.error, LookupError, OverflowError, NotImplementedError,
        RuntimeError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:100]
        _fail(where, f"{named}damaged or truncated ({reason})", "download it again")


def _fail(where: str, what: str, remedy: str) -> Any:
    raise UserError(f"{where}: {what}; {remedy}") from None
