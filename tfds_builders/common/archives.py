"""Members of folders and archives, one after another, without anything being extracted to disk.

Archives are hostile: a name that leaves its folder, a link, a device, or more bytes than anybody
would store ends in one line. In a folder links are followed: people keep videos on other disks.
Nothing is written to disk but by `rarfile`, which hands a compressed member to its tool in a file
of its own, and a compressed solid .rar that is within another archive whole.
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

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".rar")
MAX_DEPTH = 2  # archives within archives: HMDB51 is a .rar of .rars
MAX_BYTES = 2 << 30  # of one member
MAX_RATIO, MAX_TOTAL = 200, 8 << 30  # an archive that unpacks beyond both is a bomb
MAX_HEADER = 1 << 20  # of one tar member, long names and PAX records included
_CHUNK = 1 << 20
_UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_TOOLS = "install unrar, unar, bsdtar or 7z, or extract it yourself and name the folder"


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file: its posix path in the folder or archive, and its bytes.

    What an inner archive holds is named `INNER_STEM/path/in/it`. Ask for the bytes before asking
    for the next member.
    """

    name: str
    read: Callable[[], bytes]


def members(
    path: pathlib.Path, *, suffixes: Collection[str] | None = None, max_bytes: int = MAX_BYTES
) -> Iterator[Member]:
    """The files of a folder (sorted, at any depth) or of an archive (in its order).

    Args:
      path: a folder, or an archive by its suffix: tar (also gz, bz2, xz), zip, rar.
      suffixes: those wanted, lower-case with their dots; all if None. In an archive, archives are
        opened whatever the suffixes; in a folder they are files like others.
      max_bytes: of one member.

    Raises:
      UserError: it is missing, damaged, encrypted, of no known kind, or holds what no archive of
        videos should: names with `..`, absolute names, links, devices, bombs.
    """
    if path.is_dir():
        with _readable(str(path)):
            for file in files(path):
                name = file.relative_to(path).as_posix()
                if _wanted(name, suffixes):
                    yield Member(name, functools.partial(_whole, file, max_bytes))
        return
    if not path.is_file():
        raise UserError(f"{path}: no such folder or archive; check the name")
    if not _kind(path.name):
        raise UserError(
            f"{path}: no folder, and no archive by its name; name one of {' '.join(SUFFIXES)}"
        )
    with _readable(str(path)):
        budget = _Budget(str(path), path.stat().st_size)
        yield from _archive(path, path.name, budget, suffixes, max_bytes, 1)


@dataclasses.dataclass
class _Budget:
    """Counts what an archive unpacks to, and with it the archive that it lies in."""

    where: str
    size: int
    outer: "_Budget | None" = None
    total: int = 0

    def spend(self, count: int) -> None:
        self.total += count
        if self.total > MAX_TOTAL and self.total > MAX_RATIO * self.size:
            _fail(self.where, "it unpacks without end", "do not trust this archive")
        if self.outer:
            self.outer.spend(count)


class _Counted:
    """A stream of unpacked bytes that spends a budget, and stops at a limit when it has one."""

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
            raise tarfile.ReadError("a header without end")
        return data


def files(folder: pathlib.Path, above: tuple[pathlib.Path, ...] = ()) -> Iterator[pathlib.Path]:
    """Files of a folder at any depth, sorted, those behind links too; hidden ones are not.

    Raises:
      UserError: a link leads nowhere, or to one of the folders that it lies in (`above`).
    """
    above = (*above, folder.resolve())
    for entry in sorted(folder.iterdir()):
        if _hidden(entry.name):
            continue
        if entry.is_symlink() and not entry.exists():
            _fail(str(entry), "a link to nothing", "mount its disk, or remove the link")
        if entry.is_dir():
            if entry.resolve() in above:
                _fail(str(entry), "a link to a folder that it lies in", "remove the link")
            yield from files(entry, above)
        elif entry.is_file():
            yield entry


def _whole(file: pathlib.Path, max_bytes: int) -> bytes:
    try:
        if (size := file.stat().st_size) > max_bytes:
            _fail(str(file), f"has {size:,} bytes, more than {max_bytes:,}", "leave it out")
        return file.read_bytes()
    except OSError as error:
        return _fail(str(file), f"cannot be read ({error.strerror})", "check its permissions")


def _archive(
    source: pathlib.Path | io.BytesIO, name: str, budget: _Budget, suffixes, max_bytes, depth: int
) -> Iterator[Member]:
    """The wanted members of an archive, and of those within it."""
    where = budget.where

    def take(member: str, read: Callable[[], Any], declared: int) -> bytes:
        if declared > max_bytes:
            _fail(where, f"{_show(member)} says it has {declared:,} bytes", "leave it out")
        out = bytearray()
        with _readable(where, member), read() as opened:
            while data := opened.read(_CHUNK):
                out += data
                if len(out) > max_bytes:
                    _fail(where, f"{_show(member)} unpacks without end", "do not trust it")
            if len(out) != declared:
                raise EOFError(f"{len(out):,} of {declared:,} bytes")
        return bytes(out)

    reader = {".zip": _zip, ".rar": _rar}.get(_kind(name), _tar)
    with _readable(where):
        for raw, read, declared in reader(source, budget):
            _check_name(where, raw)
            member = pathlib.PurePosixPath(raw).as_posix()  # `./a` is `a`
            if _hidden(member):
                continue
            if _kind(member):
                if depth == MAX_DEPTH:
                    _fail(
                        where,
                        f"{_show(member)} is an archive in an archive in an archive",
                        "unpack it",
                    )
                data = take(member, read, declared)
                inner = pathlib.PurePosixPath(member).name
                stem = re.sub(r"(\.tar)?\.\w+$", "", inner)
                within = _Budget(f"{where}/{_show(member)[1:-1]}", len(data), budget)
                found_in = _archive(io.BytesIO(data), inner, within, suffixes, max_bytes, depth + 1)
                for found in found_in:
                    yield Member(f"{stem}/{found.name}", found.read)
            elif _wanted(member, suffixes):
                yield Member(member, functools.partial(take, member, read, declared))


_Opened = Iterator[tuple[str, Callable[[], Any], int]]  # name, opener, declared size


@contextlib.contextmanager
def _stream(source: pathlib.Path | io.BytesIO) -> Iterator[IO[bytes]]:
    if isinstance(source, io.BytesIO):
        yield source
    else:
        with source.open("rb") as stream:
            yield stream


class _Header(tarfile.TarInfo):
    """A header whose damage is an error: tarfile takes what follows one for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":  # type: ignore[override]
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end, as it should be
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _tar(source: pathlib.Path | io.BytesIO, budget: _Budget) -> _Opened:
    # Read once, front to back. tarfile's own unpacking checks no sums and stops at a second stream.
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
                archive.members = []  # type: ignore[attr-defined]  # or it keeps every header
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    kind = "a link" if member.issym() or member.islnk() else "no regular file"
                    _fail(budget.where, f"{_show(member.name)} is {kind}", "pack the files alone")
                yield member.name, functools.partial(_extract, archive, member), member.size
            counted.limit = None
            while counted.read(_CHUNK):  # to the end, where the sums are
                pass


def _zip(source: pathlib.Path | io.BytesIO, budget: _Budget) -> _Opened:
    with _stream(source) as stream, zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            name = member.orig_filename
            if member.flag_bits & 1:
                _fail(budget.where, f"{_show(name)} is encrypted", "unpack it and name the folder")
            if (kind := (member.external_attr >> 16) & 0o170000) not in (0, 0o100000):
                what = "a link" if kind == 0o120000 else "no regular file"
                _fail(budget.where, f"{_show(name)} is {what}", "pack the files alone")
            opener = functools.partial(_open_counted, archive, member, budget)
            yield name.replace("\\", "/"), opener, member.file_size


def _rar(source: pathlib.Path | io.BytesIO, budget: _Budget) -> _Opened:
    # By its path where it has one: given a stream, rarfile copies solid archives for every member.
    with rarfile.RarFile(source) as archive:
        if archive.needs_password():
            _fail(budget.where, "it is encrypted", "unpack it and name the folder")
        for member in archive.infolist():
            if member.is_dir():
                continue
            redirected = member.file_redir and member.file_redir[0]
            copied = redirected in (None, rarfile.RAR5_XREDIR_FILE_COPY)  # of a file beside it
            if member.is_symlink() or not member.is_file() or not copied:
                _fail(budget.where, f"{_show(member.filename)} is a link", "pack the files alone")
            opener = functools.partial(_open_counted, archive, member, budget)
            yield member.filename, opener, member.file_size


def _open_counted(archive: Any, member: Any, budget: _Budget) -> _Counted:
    return _Counted(archive.open(member), budget)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(member)
    if opened is None:
        raise tarfile.ReadError("a member without bytes")
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
        _fail(where, f"{_show(name)} leads out of the archive", "do not trust this archive")


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
    """Turns what the libraries say of a damaged archive into one line."""
    named = f"{_show(member)} " if member else ""
    try:
        yield
    except rarfile.RarCannotExec:
        _fail(where, f"{named}is compressed by rar", _TOOLS)
    except (rarfile.NoCrypto, rarfile.PasswordRequired, rarfile.RarWrongPassword):
        _fail(where, "it is encrypted", "unpack it and name the folder")
    except PermissionError as error:
        _fail(where, f"cannot be read ({error.strerror})", "check its permissions")
    except (
        tarfile.TarError, zipfile.BadZipFile, rarfile.Error, zlib.error, lzma.LZMAError, EOFError,
        OSError, ValueError, struct.error, LookupError, OverflowError, NotImplementedError,
        RuntimeError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        said = " ".join(str(error).split())[:100]
        _fail(where, f"{named}damaged or truncated ({said})", "fetch it again")


def _fail(where: str, what: str, remedy: str) -> Any:
    raise UserError(f"{where}: {what}; {remedy}") from None
