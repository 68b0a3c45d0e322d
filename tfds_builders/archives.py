"""Members of folders and archives, one after another, without anything being extracted to disk.

Archives are hostile: a name that leaves its folder, a link, a device, or more bytes than anybody
would store ends in one line. In a folder links are followed: people keep videos on other disks.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import re
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
_CHUNK = 1 << 20
_TOOLS = "install unrar, unar, bsdtar or 7z, or extract it yourself and name the folder"


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file: its posix path in the folder or archive, and its bytes.

    What an inner archive holds is named `INNER_STEM/path/in/it`. Ask for the bytes before asking
    for the next member.
    """

    name: str
    read: Callable[[], bytes]


def members(path: pathlib.Path, *, suffixes: Collection[str] | None = None) -> Iterator[Member]:
    """The files of a folder (sorted, at any depth) or of an archive (in its order).

    Args:
      path: a folder, or an archive by its suffix: tar (also gz, bz2, xz), zip, rar.
      suffixes: those wanted, lower-case with their dots; all if None. In an archive, archives are
        opened whatever the suffixes; in a folder they are files like others.

    Raises:
      UserError: it is missing, damaged, encrypted, of no known kind, or holds what no archive of
        videos should: names with `..`, absolute names, links, devices, bombs.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if _wanted(name, suffixes) and file.is_file():
                yield Member(name, file.read_bytes)
        return
    if not path.is_file():
        raise UserError(f"{path}: no such folder or archive; check the name")
    with path.open("rb") as stream:
        yield from _archive(stream, str(path), path.name, path.stat().st_size, suffixes, 1)


def _archive(
    stream: IO[bytes], where: str, name: str, size: int, suffixes, depth: int
) -> Iterator[Member]:
    """The wanted members of an archive, and of those within it."""
    total = 0

    def take(member: str, read: Callable[[], IO[bytes]], declared: int) -> bytes:
        nonlocal total
        if declared > MAX_BYTES:
            _fail(where, f"{member!r} says it has {declared:,} bytes", "leave it out")
        out = bytearray()
        with _readable(where), read() as opened:
            while data := opened.read(_CHUNK):
                out += data
                total += len(data)
                if len(out) > MAX_BYTES or (total > MAX_TOTAL and total > MAX_RATIO * size):
                    _fail(where, f"{member!r} unpacks without end", "do not trust this archive")
        return bytes(out)

    with _readable(where):
        for member, read, declared in _reader(name)(stream, where):
            _check_name(where, member)
            inner = pathlib.PurePosixPath(member)
            if _kind(member) and not _hidden(member):
                if depth == MAX_DEPTH:
                    _fail(
                        where, f"{member!r} is an archive in an archive in an archive", "unpack it"
                    )
                data = take(member, read, declared)
                stem = re.sub(r"(\.tar)?\.\w+$", "", inner.name)
                for found in _archive(
                    io.BytesIO(data),
                    f"{where}/{member}",
                    inner.name,
                    len(data),
                    suffixes,
                    depth + 1,
                ):
                    yield Member(f"{stem}/{found.name}", found.read)
            elif _wanted(member, suffixes):
                yield Member(member, functools.partial(take, member, read, declared))


_Opened = Iterator[tuple[str, Callable[[], IO[bytes]], int]]  # name, opener, declared size


def _tar(stream: IO[bytes], where: str) -> _Opened:
    # Read once, front to back: shards may be on a pipe or a slow disk.
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            if member.isdir():
                continue
            if not member.isreg():
                kind = "a link" if member.issym() or member.islnk() else "no regular file"
                _fail(where, f"{member.name!r} is {kind}", "pack the files themselves")
            yield member.name, functools.partial(_extract, archive, member), member.size
            archive.members = []  # type: ignore[attr-defined]  # or it keeps every header


def _zip(stream: IO[bytes], where: str) -> _Opened:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                _fail(where, f"{member.filename!r} is encrypted", "unpack it and name the folder")
            if (member.external_attr >> 16) & 0o170000 == 0o120000:
                _fail(where, f"{member.filename!r} is a link", "pack the files themselves")
            yield member.orig_filename, functools.partial(archive.open, member), member.file_size


def _rar(stream: IO[bytes], where: str) -> _Opened:
    with rarfile.RarFile(stream) as archive:
        if archive.needs_password():
            _fail(where, "it is encrypted", "unpack it and name the folder")
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.is_symlink() or not member.is_file():
                _fail(where, f"{member.filename!r} is a link", "pack the files themselves")
            yield member.filename, functools.partial(archive.open, member), member.file_size


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(member)
    if opened is None:
        raise tarfile.ReadError("a member without bytes")
    return opened


def _kind(name: str) -> str:
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def _reader(name: str) -> Callable[[IO[bytes], str], _Opened]:
    kind = _kind(name)
    if not kind:
        raise UserError(
            f"{name}: no folder, and no archive by its name; known: {' '.join(SUFFIXES)}"
        )
    return {".zip": _zip, ".rar": _rar}.get(kind, _tar)


def _check_name(where: str, name: str) -> None:
    parts = re.split(r"[/\\]", name)
    if (
        ".." in parts
        or name.startswith(("/", "\\"))
        or re.match(r"[A-Za-z]:", name)
        or "\0" in name
    ):
        _fail(where, f"{name!r} leads out of the archive", "do not trust this archive")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _wanted(name: str, suffixes: Collection[str] | None) -> bool:
    if _hidden(name):
        return False
    return suffixes is None or pathlib.PurePosixPath(name).suffix.lower() in suffixes


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turns what the libraries say of a damaged archive into one line."""
    try:
        yield
    except rarfile.RarCannotExec:
        _fail(where, "its members are compressed", _TOOLS)
    except (
        tarfile.TarError, zipfile.BadZipFile, rarfile.Error, zlib.error, EOFError, OSError,
        NotImplementedError, RuntimeError,
    ) as error:  # fmt: skip
        _fail(
            where, f"damaged or truncated ({' '.join(str(error).split())[:100]})", "fetch it again"
        )


def _fail(where: str, what: str, remedy: str) -> Any:
    raise UserError(f"{where}: {what}; {remedy}") from None
