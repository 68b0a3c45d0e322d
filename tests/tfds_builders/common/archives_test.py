"""Archives are read as they are packed, and what is hostile in them is refused."""

import binascii
import gzip
import io
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
    """A RAR 2.9 archive of stored members (no compression), as the published format note has it."""

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
def test_tars(tmp_path, suffix, mode):
    assert contents(tar(tmp_path / f"x{suffix}", FILES, mode)) == FILES


def test_zips_and_folders_and_suffixes(tmp_path):
    assert contents(zipped(tmp_path / "x.ZIP", FILES)) == FILES
    for name, data in FILES.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    assert contents(tmp_path / "folder") == FILES
    names = [m.name for m in archives.members(tmp_path / "folder", suffixes={".avi", ".mp4"})]
    assert names == ["UCF-101/Archery/v_Archery_g01_c01.avi", "b/c.mp4"]


def test_a_rar_of_rars_keeps_the_class_in_the_name(tmp_path):
    """HMDB51's shape: hmdb51_org.rar holds brush_hair.rar, which holds brush_hair/x.avi."""
    inner = {name: rar({f"{name}/x.avi": name.encode() * 50}) for name in ("brush_hair", "wave")}
    path = tmp_path / "hmdb51_org.rar"
    path.write_bytes(rar({f"{name}.rar": data for name, data in inner.items()}))
    assert contents(path, suffixes={".avi"}) == {
        "brush_hair/brush_hair/x.avi": b"brush_hair" * 50,
        "wave/wave/x.avi": b"wave" * 50,
    }


def test_hidden_files_are_passed_over(tmp_path):
    files = {"a.mp4": b"a", "._a.mp4": b"b", "__MACOSX/a.mp4": b"c", ".git/a.mp4": b"d"}
    assert contents(zipped(tmp_path / "x.zip", files)) == {"a.mp4": b"a"}


@pytest.mark.parametrize(
    "name", ["../x.mp4", "a/../../x.mp4", "/etc/x.mp4", "C:\\x.mp4", "..\\x.mp4"]
)
@pytest.mark.parametrize("pack", [tar, zipped])
def test_names_that_lead_out_are_refused(tmp_path, pack, name):
    path = pack(tmp_path / ("x.tar" if pack is tar else "x.zip"), {"ok.mp4": b"", name: b"x"})
    with pytest.raises(UserError, match="leads out of the archive"):
        contents(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as out:
        info = tarfile.TarInfo("x.mp4")
        info.type, info.linkname = kind, "/etc/passwd"
        out.addfile(info)
    with pytest.raises(UserError, match=r"'x.mp4' is (a link|no regular file)"):
        contents(tmp_path / "x.tar")


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as out:
        info = zipfile.ZipInfo("x.mp4")
        info.external_attr = 0o120777 << 16
        out.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        contents(tmp_path / "x.zip")


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path / "x.zip", {f"{n}.mp4": bytes(1 << 20) for n in range(4)})
    monkeypatch.setattr(archives, "MAX_TOTAL", 2 << 20)
    with pytest.raises(UserError, match="unpacks without end"):
        contents(path)
    monkeypatch.setattr(archives, "MAX_RATIO", 10_000)  # large, but not out of proportion
    assert len(contents(path)) == 4
    with pytest.raises(UserError, match="says it has 1,048,576 bytes"):
        contents(path, max_bytes=1 << 19)


@pytest.mark.parametrize("said", [10, 5 << 20])
def test_a_header_that_lies_about_the_size_does_not_get_past(tmp_path, said):
    path = zipped(tmp_path / "x.zip", {"a.mp4": bytes(1 << 20)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, said)  # in the directory: bytes unpacked
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.zip: 'a\.mp4' damaged"):
        contents(path)


def test_what_is_damaged_encrypted_or_unknown_is_named(tmp_path):
    whole = tar(tmp_path / "x.tar.gz", {"a.mp4": bytes(range(256)) * 999}, "w:gz").read_bytes()
    for name, data, what in (
        ("cut.tar.gz", whole[: len(whole) // 2], "damaged or truncated"),
        ("cut.zip", zipped(tmp_path / "y.zip", FILES).read_bytes()[:-30], "damaged or truncated"),
        ("no.rar", b"no rar at all", "damaged or truncated"),
        ("locked.rar", rar({"a.avi": b"x"}, flags=4), "encrypted"),
        ("packed.7z", b"", "no archive by its name"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=what) as error:
            contents(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such folder or archive"):
        contents(tmp_path / "absent.zip")
    locked = bytearray(zipped(tmp_path / "z.zip", {"a.mp4": b"x"}).read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "z.zip").write_bytes(locked)
    with pytest.raises(UserError, match="encrypted"):
        contents(tmp_path / "z.zip")


def test_archives_three_deep_are_refused(tmp_path):
    inner = rar({"c.rar": rar({"x.avi": b"x"})})
    (tmp_path / "a.rar").write_bytes(rar({"b.rar": inner}))
    with pytest.raises(UserError, match="an archive in an archive in an archive"):
        contents(tmp_path / "a.rar")


def test_one_member_at_a_time_is_in_memory(tmp_path):
    path = tar(tmp_path / "x.tar", {f"{n}.mp4": bytes(4 << 20) for n in range(16)})
    tracemalloc.start()
    for member in archives.members(path):
        assert len(member.read()) == 4 << 20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 << 20


@given(st.binary(max_size=400))
def test_any_bytes_end_in_members_or_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    for name in ("x.tar", "x.zip", "x.rar", "x.tar.gz"):
        (folder / name).write_bytes(data)
        try:
            contents(folder / name)
        except UserError as error:
            assert "\n" not in str(error)


def test_names_are_made_posix(tmp_path):
    assert contents(tar(tmp_path / "x.tar", {"./a//x.avi": b"x"})) == {"a/x.avi": b"x"}
    assert contents(zipped(tmp_path / "x.zip", {"a\\x.avi": b"x"})) == {"a/x.avi": b"x"}


def test_links_in_a_folder_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/x.avi").write_bytes(b"x")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/Archery").symlink_to(tmp_path / "disk")
    (tmp_path / "top").symlink_to(tmp_path / "videos")
    assert contents(tmp_path / "top") == {"Archery/x.avi": b"x"}
    with pytest.raises(UserError, match="more than 0"):
        contents(tmp_path / "top", max_bytes=0)
    (tmp_path / "disk/again").symlink_to(tmp_path / "videos")
    with pytest.raises(UserError, match="a link to a folder that it lies in"):
        contents(tmp_path / "top")
    (tmp_path / "disk/again").unlink()
    (tmp_path / "videos/Bowling").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="a link to nothing"):
        contents(tmp_path / "top")


@pytest.mark.parametrize("end", [3072, 3172, 3584, 3684])  # 4608 bytes of members, then the mark
def test_a_tar_cut_anywhere_is_not_taken_for_whole(tmp_path, end):
    data = tar(tmp_path / "x.tar", {f"{n}.avi": b"z" * 1000 for n in range(3)}).read_bytes()
    (tmp_path / "x.tar").write_bytes(data[:end])
    with pytest.raises(UserError, match="damaged or truncated"):
        contents(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(data[:1536] + b"\xff" * 512 + data[2048:])
    with pytest.raises(UserError, match="damaged or truncated"):
        contents(tmp_path / "x.tar")


def test_a_gzip_is_checked_to_its_end_and_may_have_parts(tmp_path):
    data = tar(tmp_path / "x.tar", FILES).read_bytes()
    path = tmp_path / "x.tgz"
    path.write_bytes(gzip.compress(data[:1024]) + gzip.compress(data[1024:]))
    assert contents(path) == FILES
    path.write_bytes(gzip.compress(data)[:-8] + b"12345678")
    with pytest.raises(UserError, match="damaged or truncated"):
        contents(path)


def test_what_is_passed_over_is_counted_too(tmp_path, monkeypatch):
    path = tar(tmp_path / "x.tgz", {"a.txt": bytes(4 << 20)}, "w:gz")
    monkeypatch.setattr(archives, "MAX_TOTAL", 2 << 20)
    with pytest.raises(UserError, match="unpacks without end"):
        contents(path, suffixes={".avi"})


def test_archives_within_spend_the_outer_one_s_budget(tmp_path, monkeypatch):
    inner = zipped(tmp_path / "i.zip", {"a.avi": bytes(1 << 20)}).read_bytes()
    path = zipped(tmp_path / "x.zip", {f"{n}.zip": inner for n in range(4)})
    monkeypatch.setattr(archives, "MAX_TOTAL", 2 << 20)
    with pytest.raises(UserError, match=r"x\.zip: it unpacks without end"):
        contents(path)


def test_a_tar_header_without_end_is_refused(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 64 << 20
    (tmp_path / "x.tgz").write_bytes(gzip.compress(info.tobuf() + bytes(64 << 20), 1))
    tracemalloc.start()
    with pytest.raises(UserError, match="a header without end"):
        contents(tmp_path / "x.tgz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_compressed_rar_without_a_tool_says_what_to_install(tmp_path, monkeypatch):
    data = bytearray(rar({"a.avi": b"x"}))
    at = data.index(b"a.avi") - 7  # its method
    assert data[at] == 0x30
    data[at] = 0x33
    head = data[at - 25 + 2 : at + 7 + 5]  # from its kind to its name's end
    struct.pack_into("<H", data, at - 25, binascii.crc32(head) & 0xFFFF)
    (tmp_path / "x.rar").write_bytes(data)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"'a\.avi' is compressed by rar; install unrar, unar"):
        contents(tmp_path / "x.rar")


def test_names_of_errors_stay_on_one_line(tmp_path):
    path = zipped(tmp_path / "x.zip", {"a\nb.zip": b"none"})
    with pytest.raises(UserError) as error:
        contents(path)
    assert "\n" not in str(error.value)


def test_a_generator_left_midway_closes_its_file(tmp_path):
    def open_files():
        return {p.resolve() for p in pathlib.Path("/proc/self/fd").iterdir()}

    if not pathlib.Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc")
    for path in (tar(tmp_path / "x.tgz", FILES, "w:gz"), zipped(tmp_path / "x.zip", FILES)):
        found = archives.members(path)
        next(found)
        assert path in open_files()
        found.close()
        assert path not in open_files()


@given(st.sampled_from(["tar", "tgz", "zip", "rar"]), st.integers(0, 10**6), st.binary(max_size=8))
def test_a_damaged_archive_ends_in_members_or_one_line(tmp_path_factory, kind, at, noise):
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
