"""Tests that archives and folders are read correctly, and that unsafe archives raise an error."""

import binascii
import gzip
import io
import os
import pathlib
import struct
import tarfile
import tracemalloc
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coco_jax.errors import UserError
from tfds_builders.common import archives

FILES = {"UCF-101/Archery/v_Archery_g01_c01.avi": b"one" * 99, "b/c.mp4": b"", "a b/é.txt": b"text"}


def tar(path: pathlib.Path, files: dict[str, bytes], mode: str = "w") -> pathlib.Path:
    with tarfile.open(path, mode) as out:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def zipped(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


def rar(files: dict[str, bytes], *, flags: int = 0) -> bytes:
    """Returns a RAR 2.9 archive of uncompressed members, as the published format note describes it."""

    def block(kind: int, flags: int, body: bytes) -> bytes:
        head = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
        return struct.pack("<H", binascii.crc32(head) & 0xFFFF) + head

    out = b"Rar!\x1a\x07\x00" + block(0x73, 0, b"\0" * 6)
    for name, data in files.items():
        encoded = name.replace("/", "\\").encode("ascii")
        body = struct.pack(
            "<IIBIIBBHI", len(data), len(data), 3, binascii.crc32(data), 0x5A000000, 20, 0x30,
            len(encoded), 0x20,
        )  # fmt: skip
        out += block(0x74, 0x8000 | flags, body + encoded) + data
    return out + block(0x7B, 0x4000, b"")


def contents(path: pathlib.Path, **kwargs) -> dict[str, bytes]:
    return {member.name: member.read() for member in archives.members(path, **kwargs)}


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        (".tar", "w"),
        (".tar.gz", "w:gz"),
        (".tgz", "w:gz"),
        (".tar.bz2", "w:bz2"),
        (".tar.xz", "w:xz"),
    ],
)
def test_tar_members_are_read(tmp_path, suffix, mode):
    assert contents(tar(tmp_path / f"x{suffix}", FILES, mode)) == FILES


def test_zip_and_folder_members_are_read_and_filtered_by_suffix(tmp_path):
    assert contents(zipped(tmp_path / "x.ZIP", FILES)) == FILES
    for name, data in FILES.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    assert contents(tmp_path / "folder") == FILES
    names = [m.name for m in archives.members(tmp_path / "folder", suffixes={".avi", ".mp4"})]
    assert names == ["UCF-101/Archery/v_Archery_g01_c01.avi", "b/c.mp4"]


def test_members_of_a_nested_rar_are_named_after_it(tmp_path):
    """As in HMDB51: hmdb51_org.rar contains brush_hair.rar, which contains brush_hair/x.avi."""
    inner = {name: rar({f"{name}/x.avi": name.encode() * 50}) for name in ("brush_hair", "wave")}
    path = tmp_path / "hmdb51_org.rar"
    path.write_bytes(rar({f"{name}.rar": data for name, data in inner.items()}))
    assert contents(path, suffixes={".avi"}) == {
        "brush_hair/brush_hair/x.avi": b"brush_hair" * 50,
        "wave/wave/x.avi": b"wave" * 50,
    }


def test_hidden_files_are_left_out(tmp_path):
    files = {"a.mp4": b"a", "._a.mp4": b"b", "__MACOSX/a.mp4": b"c", ".git/a.mp4": b"d"}
    assert contents(zipped(tmp_path / "x.zip", files)) == {"a.mp4": b"a"}


@pytest.mark.parametrize(
    "name", ["../x.mp4", "a/../../x.mp4", "/etc/x.mp4", "C:\\x.mp4", "..\\x.mp4"]
)
@pytest.mark.parametrize("pack", [tar, zipped])
def test_unsafe_member_name_raises(tmp_path, pack, name):
    path = pack(tmp_path / ("x.tar" if pack is tar else "x.zip"), {"ok.mp4": b"", name: b"x"})
    with pytest.raises(UserError, match=r"is an absolute name or has '\.\.'"):
        contents(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_link_or_device_in_a_tar_raises(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as out:
        info = tarfile.TarInfo("x.mp4")
        info.type, info.linkname = kind, "/etc/passwd"
        out.addfile(info)
    with pytest.raises(UserError, match=r"'x.mp4' is (a link|not a regular file)"):
        contents(tmp_path / "x.tar")


def test_link_in_a_zip_raises(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as out:
        info = zipfile.ZipInfo("x.mp4")
        info.external_attr = 0o120777 << 16
        out.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        contents(tmp_path / "x.zip")


def test_decompression_bomb_raises(tmp_path, monkeypatch):
    path = zipped(tmp_path / "x.zip", {f"{n}.mp4": bytes(1 << 20) for n in range(4)})
    monkeypatch.setattr(archives, "MAX_TOTAL", 2 << 20)
    with pytest.raises(UserError, match=r"x\.zip: decompresses to more than"):
        contents(path)
    monkeypatch.setattr(archives, "MAX_RATIO", 10_000)  # many bytes at a normal ratio are allowed
    assert len(contents(path)) == 4
    with pytest.raises(UserError, match="has 1,048,576 bytes, more than 524,288"):
        contents(path, max_bytes=1 << 19)


@pytest.mark.parametrize("declared", [10, 5 << 20])
def test_wrong_size_in_a_zip_header_raises(tmp_path, declared):
    path = zipped(tmp_path / "x.zip", {"a.mp4": bytes(1 << 20)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, declared)  # size in the central directory
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.zip: 'a\.mp4' damaged"):
        contents(path)


def test_error_on_an_unreadable_archive_names_the_file_and_the_reason(tmp_path):
    whole = tar(tmp_path / "x.tar.gz", {"a.mp4": bytes(range(256)) * 999}, "w:gz").read_bytes()
    for name, data, reason in (
        ("cut.tar.gz", whole[: len(whole) // 2], "damaged or truncated"),
        ("cut.zip", zipped(tmp_path / "y.zip", FILES).read_bytes()[:-30], "damaged or truncated"),
        ("no.rar", b"no rar at all", "damaged or truncated"),
        ("locked.rar", rar({"a.avi": b"x"}, flags=4), "encrypted"),
        ("packed.7z", b"", "neither a folder nor an archive"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=reason) as error:
            contents(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such folder or archive"):
        contents(tmp_path / "absent.zip")
    locked = bytearray(zipped(tmp_path / "z.zip", {"a.mp4": b"x"}).read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "z.zip").write_bytes(locked)
    with pytest.raises(UserError, match="encrypted"):
        contents(tmp_path / "z.zip")


def test_archive_nested_three_deep_raises(tmp_path):
    inner = rar({"c.rar": rar({"x.avi": b"x"})})
    (tmp_path / "a.rar").write_bytes(rar({"b.rar": inner}))
    with pytest.raises(UserError, match="is an archive nested 3 deep"):
        contents(tmp_path / "a.rar")


def test_memory_holds_one_member_at_a_time(tmp_path):
    path = tar(tmp_path / "x.tar", {f"{n}.mp4": bytes(4 << 20) for n in range(16)})
    tracemalloc.start()
    for member in archives.members(path):
        assert len(member.read()) == 4 << 20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 << 20


@given(st.binary(max_size=400))
def test_arbitrary_bytes_give_members_or_a_one_line_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    for name in ("x.tar", "x.zip", "x.rar", "x.tar.gz"):
        (folder / name).write_bytes(data)
        try:
            contents(folder / name)
        except UserError as error:
            assert "\n" not in str(error)


def test_member_names_are_converted_to_posix(tmp_path):
    assert contents(tar(tmp_path / "x.tar", {"./a//x.avi": b"x"})) == {"a/x.avi": b"x"}
    assert contents(zipped(tmp_path / "x.zip", {"a\\x.avi": b"x"})) == {"a/x.avi": b"x"}


def test_links_in_a_folder_are_followed_unless_cyclic_or_dangling(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/x.avi").write_bytes(b"x")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/Archery").symlink_to(tmp_path / "disk")
    (tmp_path / "top").symlink_to(tmp_path / "videos")
    assert contents(tmp_path / "top") == {"Archery/x.avi": b"x"}
    with pytest.raises(UserError, match="more than 0"):
        contents(tmp_path / "top", max_bytes=0)
    (tmp_path / "disk/again").symlink_to(tmp_path / "videos")
    with pytest.raises(UserError, match="link to a folder that contains it"):
        contents(tmp_path / "top")
    (tmp_path / "disk/again").unlink()
    (tmp_path / "videos/Bowling").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="link to a file that does not exist"):
        contents(tmp_path / "top")


@pytest.mark.parametrize("end", [3072, 3172, 3584, 3684])  # the members have 4608 bytes
def test_truncated_or_damaged_tar_raises(tmp_path, end):
    data = tar(tmp_path / "x.tar", {f"{n}.avi": b"z" * 1000 for n in range(3)}).read_bytes()
    (tmp_path / "x.tar").write_bytes(data[:end])
    with pytest.raises(UserError, match="damaged or truncated"):
        contents(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(data[:1536] + b"\xff" * 512 + data[2048:])
    with pytest.raises(UserError, match="damaged or truncated"):
        contents(tmp_path / "x.tar")


def test_rar_with_a_damaged_header_raises(tmp_path):
    """It is not taken for the end of the archive: the member after it would be missing."""
    data = bytearray(rar({"a.avi": b"a" * 99, "b.avi": b"b" * 99}))
    (tmp_path / "x.rar").write_bytes(data)
    assert len(contents(tmp_path / "x.rar")) == 2
    data[data.index(b"b.avi")] ^= 1
    (tmp_path / "x.rar").write_bytes(data)
    with pytest.raises(UserError, match="damaged or truncated"):
        contents(tmp_path / "x.rar")


def test_member_that_expands_far_beyond_the_archive_raises_before_it_is_read_whole(
    tmp_path, monkeypatch
):
    path = zipped(tmp_path / "x.zip", {"a.mp4": bytes(16 << 20)})
    assert len(contents(path)["a.mp4"]) == 16 << 20  # a small one may
    monkeypatch.setattr(archives, "MAX_MEMBER", 1 << 20)
    tracemalloc.start()
    with pytest.raises(
        UserError, match=r"'a\.mp4' decompresses to more than 1,048,576 bytes and 20 times"
    ):
        contents(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_fifo_in_a_folder_raises(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"a\.mp4: neither a regular file nor a folder"):
        contents(tmp_path)


def test_gzip_of_several_streams_is_read_and_its_checksum_verified(tmp_path):
    data = tar(tmp_path / "x.tar", FILES).read_bytes()
    path = tmp_path / "x.tgz"
    path.write_bytes(gzip.compress(data[:1024]) + gzip.compress(data[1024:]))
    assert contents(path) == FILES
    path.write_bytes(gzip.compress(data)[:-8] + b"12345678")
    with pytest.raises(UserError, match="damaged or truncated"):
        contents(path)


def test_members_left_out_count_towards_the_bomb_limit(tmp_path, monkeypatch):
    path = tar(tmp_path / "x.tgz", {"a.txt": bytes(4 << 20)}, "w:gz")
    monkeypatch.setattr(archives, "MAX_TOTAL", 2 << 20)
    with pytest.raises(UserError, match="decompresses to more than"):
        contents(path, suffixes={".avi"})


def test_nested_archives_count_towards_the_bomb_limit_of_the_outer_one(tmp_path, monkeypatch):
    inner = zipped(tmp_path / "i.zip", {"a.avi": bytes(1 << 20)}).read_bytes()
    path = zipped(tmp_path / "x.zip", {f"{n}.zip": inner for n in range(4)})
    monkeypatch.setattr(archives, "MAX_TOTAL", 2 << 20)
    with pytest.raises(UserError, match=r"x\.zip: decompresses to more than"):
        contents(path)


def test_oversized_tar_header_raises(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 64 << 20
    (tmp_path / "x.tgz").write_bytes(gzip.compress(info.tobuf() + bytes(64 << 20), 1))
    tracemalloc.start()
    with pytest.raises(UserError, match="a header of more than 1,048,576 bytes"):
        contents(tmp_path / "x.tgz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_error_on_a_compressed_rar_without_a_tool_says_what_to_install(tmp_path, monkeypatch):
    data = bytearray(rar({"a.avi": b"x"}))
    at = data.index(b"a.avi") - 7  # the byte of the compression method
    assert data[at] == 0x30
    data[at] = 0x33
    head = data[at - 25 + 2 : at + 7 + 5]  # the header from its type to the name
    struct.pack_into("<H", data, at - 25, binascii.crc32(head) & 0xFFFF)
    (tmp_path / "x.rar").write_bytes(data)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"'a\.avi' is compressed .*; install unrar, unar"):
        contents(tmp_path / "x.rar")


def test_error_on_a_name_with_a_line_break_is_one_line(tmp_path):
    path = zipped(tmp_path / "x.zip", {"a\nb.zip": b"none"})
    with pytest.raises(UserError) as error:
        contents(path)
    assert "\n" not in str(error.value)


def test_closing_the_generator_closes_the_archive(tmp_path):
    def open_files():
        return {p.resolve() for p in pathlib.Path("/proc/self/fd").iterdir()}

    if not pathlib.Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc")
    for path in (tar(tmp_path / "x.tgz", FILES, "w:gz"), zipped(tmp_path / "x.zip", FILES)):
        members = archives.members(path)
        next(members)
        assert path in open_files()
        members.close()
        assert path not in open_files()


@given(st.sampled_from(["tar", "tgz", "zip", "rar"]), st.integers(0, 10**6), st.binary(max_size=8))
def test_damaged_archive_gives_members_or_a_one_line_error(tmp_path_factory, kind, at, noise):
    folder = tmp_path_factory.getbasetemp()
    files = {"a/x.avi": b"xyz" * 99, "b/y.avi": b"y"}
    path = folder / f"d.{kind}"
    if kind == "zip":
        zipped(path, files)
    elif kind == "rar":
        path.write_bytes(rar(files))
    else:
        tar(path, files, "w:gz" if kind == "tgz" else "w")
    data = bytearray(path.read_bytes())
    at %= min(len(data), 3000)
    data[at : at + len(noise)] = noise
    path.write_bytes(data)
    try:
        contents(path)
    except UserError as error:
        assert "\n" not in str(error)
