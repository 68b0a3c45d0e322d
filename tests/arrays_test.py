"""Reading .npy and .npz files: the same arrays as numpy; damaged, huge and unusual ones are an error."""

import io
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from coco_jax import arrays, files

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float16).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.float32(3),
    "counts": np.array([-1, 2**40]),
    "flags": np.array([True, False]),
    "names": np.array(["a", "ä"]),
    "none": np.zeros((0, 3)),
}


def header(shape, descr="<f4", version=b"\x01\x00") -> bytes:
    """The header of an .npy file that says what it likes."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text


def npz(path, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def test_npz_and_npy_have_the_arrays_that_numpy_stored(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **ARRAYS)
        with arrays.open_npz(tmp_path / "x.npz") as found:
            assert list(found) == list(ARRAYS) and len(found) == len(ARRAYS)
            for name, want in ARRAYS.items():
                np.testing.assert_array_equal(found[name], want)
                assert found[name].dtype == want.dtype
            with pytest.raises(KeyError):
                found["absent"]
    for name in ("matrix", "fortran", "counts", "names"):
        np.save(tmp_path / "x.npy", ARRAYS[name])
        got = arrays.open_npy(tmp_path / "x.npy")
        np.testing.assert_array_equal(got, ARRAYS[name])
        assert isinstance(got, np.memmap)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header((2**50, 2)), r"needs 9,007,199,254,740,992 bytes, but 8 are stored"),
        (header((2**32, 2**32)), r"needs 73,786,976,294,838,206,464 bytes, but 8"),
        (header((-1, -2)), "shape"),
        (header((2,), "|O"), "pickle"),
        (header((2,), "<U0"), "only numbers and strings"),
        (header((2,), "|V4"), "only numbers and strings"),
        (header((2,), [("a", "<f4")]), "only numbers and strings"),
        (header("[1]"), "shape is not valid"),
        (header((2,), version=b"\x02\x00"), "version"),
        (header("-" * 9000 + "1"), "."),
        (header("(" * 3000), "."),
        (b"\x93NUMPY\x01\x00\xff\xff", "EOF"),
        (b"garbage", "magic"),
        (b"", "EOF"),
    ],
)
def test_header_that_does_not_fit_the_file_is_an_error_before_memory_is_used(
    tmp_path, data, message
):
    data += bytes(8) * data.startswith(b"\x93NUMPY\x01\x00")
    (tmp_path / "x.npy").write_bytes(data)
    npz(tmp_path / "x.npz", a=data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as error:
        arrays.open_npy(tmp_path / "x.npy")
    assert "\n" not in str(error.value)
    with (
        pytest.raises(ValueError, match=message),
        arrays.open_npz(tmp_path / "x.npz") as found,
    ):
        found["a"]
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_npz_that_expands_beyond_the_limits_is_an_error(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros((1 << 20,), np.float32))
    with arrays.open_npz(tmp_path / "x.npz") as found:  # a small one may
        assert found["a"].nbytes == 4 << 20
    monkeypatch.setattr(arrays, "MAX_BYTES", 2 << 20)
    with (
        pytest.raises(ValueError, match=r"4,194,\d+ bytes, more than 2,097,152 and more than 20"),
        arrays.open_npz(tmp_path / "x.npz"),
    ):
        pass
    np.savez(tmp_path / "x.npz", a=np.zeros((1 << 20,), np.float32))
    with arrays.open_npz(tmp_path / "x.npz") as found:  # a large one that is not compressed may
        assert found["a"].nbytes == 4 << 20


def test_damaged_npz_is_an_error(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.arange(1000.0))
    whole = (tmp_path / "x.npz").read_bytes()
    for data in (b"", b"PK\3\4" * 99, whole[:-9], whole[:2000] + b"!" + whole[2001:]):
        (tmp_path / "x.npz").write_bytes(data)
        with pytest.raises(ValueError), arrays.open_npz(tmp_path / "x.npz") as found:
            found["a"]


@pytest.mark.parametrize("form", ["zip", "zip64", "comment"])
def test_zip_with_a_huge_list_of_members_is_an_error_before_it_is_read(monkeypatch, form):
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for n in range(100):
            archive.writestr(f"{n}", b"")
        archive.comment = b"PK\5\6" * (form == "comment")
    if form == "zip64":  # the plain record has 2^32 - 1, and the one before it the size
        data = stored.getvalue()
        (size,) = struct.unpack_from("<L", data, len(data) - 10)
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 100, 100, size, 0)
        data = data[:-22] + record + data[-22:-10] + b"\xff" * 4 + data[-6:]
        stored = io.BytesIO(data)
    files.check_zip_directory(stored)
    monkeypatch.setattr(files, "MAX_ZIP_DIRECTORY", 4000)
    with pytest.raises(ValueError, match="a list of members of 4,790 bytes"):
        files.check_zip_directory(stored)


def test_real_numbers_become_float32_and_others_are_an_error():
    values = [1.5, -0.25]
    for dtype in (np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        got = arrays.to_float32(np.array(values, dtype))
        assert got.dtype == np.float32 and got.tolist() == values
    raw = np.array(values, ml_dtypes.bfloat16).view("V2")  # as numpy reads what it stored
    assert arrays.to_float32(raw).tolist() == values
    assert arrays.to_float32(np.array([1e300])).tolist() == [np.inf]
    for dtype in (np.complex64, "S3", "U3", "M8[s]", object):
        with pytest.raises(ValueError, match="only real numbers"):
            arrays.to_float32(np.zeros(2, dtype))
