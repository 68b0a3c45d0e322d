"""Archives are read as they are packed, and what is hostile in them is refused."""

import binascii
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
from tfds_builders import archives

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
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 19)
    with pytest.raises(UserError, match="says it has 1,048,576 bytes"):
        contents(path)


def test_a_header_that_lies_about_the_size_does_not_get_past(tmp_path, monkeypatch):
    path = zipped(tmp_path / "x.zip", {"a.mp4": bytes(1 << 20)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, 10)  # in the directory: 10 bytes unpacked
    path.write_bytes(data)
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 19)
    with pytest.raises(UserError, match=r"x\.zip"):
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
