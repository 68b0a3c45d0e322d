"""Files as an attacker, a broken disk or a careless colleague makes them; the same seed gives the same.

Nearby is a folder `secret`, which some of them refer to. It must not be opened.
"""

import binascii
import contextlib
import functools
import gzip
import io
import json
import lzma
import os
import pathlib
import pickle
import random
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import h5py
import numpy as np
from safetensors.numpy import save

from coco_jax.data import video as videos

FORGED = (
    "x\x1b[2J\x1b[31m\ncoco_jax.predict: done\r"  # clears the screen, and looks like a line of ours
)
HERE = pathlib.Path(__file__).resolve().parents[1]
IDS = [f"v{n}" for n in range(6)]  # of the videos in videos.csv, beside features


class Case(NamedTuple):
    """A hostile file, or a folder with one.

    Attributes:
      kind: what it is given as: video, actions, descriptions, weights, features, folder (of videos) or
        archive.
      what: the name of the function that made it.
      path: of the file or folder.
      refused: whether it must be an error; otherwise a result is right too.
    """

    kind: str
    what: str
    path: str
    refused: bool


Make = Callable[[random.Random, pathlib.Path, pathlib.Path], pathlib.Path]  # (rng, folder, secret)
RECIPES: dict[str, list[tuple[Make, bool]]] = {}


def recipe(*kinds: str, refused: bool = True) -> Callable[[Make], Make]:
    """Adds a function that writes a hostile file of these kinds."""

    def add(make: Make) -> Make:
        for kind in kinds:
            RECIPES.setdefault(kind, []).append((make, refused))
        return make

    return add


def make(folder: pathlib.Path, counts: dict[str, int], seed: int = 0) -> list[Case]:
    """Writes `counts[kind]` files of each kind, each in a folder of its own; recipes take turns."""
    secret = folder / "secret"
    secret.mkdir(parents=True)
    (secret / "a.mp4").write_bytes(video("mp4"))
    (secret / "a.bin").write_bytes(b"secret!!" * 64)
    (secret / "a.safetensors").write_bytes(save({"a": np.ones(3, np.float32)}))
    with h5py.File(secret / "a.h5", "w") as file:
        file["features"] = np.ones((len(IDS), 4), np.float32)
    cases = []
    for kind, count in counts.items():
        for n in range(count):
            write, refused = RECIPES[kind][n % len(RECIPES[kind])]
            place = folder / f"{kind}{n}"
            place.mkdir()
            rng = random.Random(f"{seed}/{kind}/{n}")
            path = write(rng, place, secret)
            if kind in ("features", "folder"):
                path = place
            cases.append(Case(kind, write.__name__, os.fspath(path), refused))
    return cases


@functools.cache
def video(container: str) -> bytes:
    """A video of 12 frames."""
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
    codec = {"avi": "mpeg4", "gif": "gif"}.get(container, "libx264")
    if container == "gif":
        return gif(32, 24)
    return videos.encode(frames, 8, codec=codec, container=container)


def gif(width: int, height: int, frames: int = 3) -> bytes:
    """An animated GIF of a few bytes whose canvas has this size; each of its pictures has one pixel."""
    out = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    for n in range(frames):
        out += b"!\xf9\x04\x04" + struct.pack("<H", 10) + b"\0\0"
        out += b"," + struct.pack("<HHHHB", n, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return out + b";"


def flipped(rng: random.Random, data: bytes, least: int = 1, start: int = 0) -> bytes:
    """Some bytes set to other values."""
    changed = bytearray(data)
    for _ in range(rng.randint(least, least + 5)):
        at = rng.randrange(start, len(changed))
        changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """The beginning of the data."""
    return data[: rng.randrange(1, len(data) - 1)]


def written(path: pathlib.Path, data: bytes | str) -> pathlib.Path:
    """Writes a file and returns its path."""
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def sparse(path: pathlib.Path, size: int, data: bytes = b"") -> pathlib.Path:
    """A file of `size` bytes, of which the disk stores only the first ones."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.truncate(size)
    return path


# --- What is no file, instead of any file


NAMES = {
    "video": "a.mp4",
    "actions": "a.txt",
    "descriptions": "a.json",
    "weights": "model.safetensors",
    "archive": "a.zip",
}


def name_for(place: pathlib.Path) -> pathlib.Path:
    """A plain name for a file of the kind that the folder is named after."""
    return place / NAMES[place.name.rstrip("0123456789")]


@recipe(*NAMES)
def fifo(rng, place, secret):
    os.mkfifo(path := name_for(place))
    return path


@recipe("video", "actions", "descriptions", "archive")
def device(rng, place, secret):
    (path := name_for(place)).symlink_to(rng.choice(("/dev/zero", "/dev/urandom", "/dev/full")))
    return path


@recipe("video", "actions", "descriptions")
def directory(rng, place, secret):
    (path := name_for(place)).mkdir()
    return path


@recipe("video", "descriptions")
def unix_socket(rng, place, secret):
    path = name_for(place)
    here = os.getcwd()
    os.chdir(place)  # the path of a socket has at most 107 bytes
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(path.name)
    os.chdir(here)
    return path


@recipe(*NAMES)
def empty(rng, place, secret):
    return written(name_for(place), b"")


@recipe("video", "weights", "archive", "descriptions")
def noise(rng, place, secret):
    return written(name_for(place), rng.randbytes(rng.randrange(1, 5000)))


@recipe("video", "weights", "archive", "descriptions")
def forged_name(rng, place, secret):
    return written(place / f"{FORGED}{name_for(place).suffix}", b"nothing")


@recipe("video", "archive", "descriptions")
def name_of_bytes(rng, place, secret):
    path = os.fsencode(place) + b"/\xff\xfe" + name_for(place).suffix.encode()
    return written(pathlib.Path(os.fsdecode(path)), b"nothing")


@recipe("video", "weights", "actions", "descriptions")
def terabyte(rng, place, secret):
    return sparse(name_for(place), 1 << 40)


# --- Videos


@recipe("video", refused=False)
def cut_video(rng, place, secret):
    container = rng.choice(("mp4", "avi", "matroska", "mpegts", "gif"))
    return written(place / f"a.{container}", cut(rng, video(container)))


@recipe("video", refused=False)
def flipped_video(rng, place, secret):
    container = rng.choice(("mp4", "avi", "matroska", "mpegts", "gif"))
    return written(place / f"a.{container}", flipped(rng, video(container), 4))


@recipe("video", refused=False)
def huge_field_in_mp4(rng, place, secret):
    data = bytearray(video("mp4"))
    box = rng.choice(
        (b"stsz", b"stco", b"stts", b"stsc", b"ctts", b"mdhd", b"tkhd", b"elst", b"avc1")
    )
    at = data.find(box) + 4 + 4 * rng.randrange(8)
    data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"))
    return written(place / "a.mp4", bytes(data))


@recipe("video")
def playlist(rng, place, secret):
    target = rng.choice((secret / "a.mp4", "http://127.0.0.1:9/a.ts", "file:///etc/passwd"))
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:4,\n{target}\n#EXT-X-ENDLIST\n"
    return written(place / rng.choice(("a.m3u8", "a.mp4", "a.ts")), text)


@recipe("video")
def concat_list(rng, place, secret):
    text = f"ffconcat version 1.0\nfile '{secret / 'a.mp4'}'\n"
    return written(place / rng.choice(("a.ffconcat", "a.mp4", "a.txt")), text)


@recipe("video")
def manifest(rng, place, secret):
    texts = (
        f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        f"<AdaptationSet><Representation><BaseURL>{secret}/a.mp4</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        f"[playlist]\nFile1={secret}/a.mp4\n",
        ";FFMETADATA1\ntitle=x\n",
        f"<SmoothStreamingMedia><StreamIndex Url='{secret}/a.mp4'/></SmoothStreamingMedia>",
    )
    return written(place / rng.choice(("a.mpd", "a.sdp", "a.mp4")), rng.choice(texts))


@recipe("video", refused=False)
def mov_with_values_elsewhere(rng, place, secret):
    """The table of a .mov says that the frames are in another file."""
    data = video("mp4")
    url = b"file://" + os.fsencode(secret / "a.mp4") + b"\0"
    at = data.index(b"dref") - 4
    (size,) = struct.unpack_from(">I", data, at)
    entry = struct.pack(">I4sI", 12 + len(url), b"url ", 0) + url
    dref = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    return written(place / "a.mov", data[:at] + dref + data[at + size :])


@recipe("video")
def pattern_name(rng, place, secret):
    (place / "1.mp4").write_bytes(video("mp4"))
    name = rng.choice(
        ("%d.mp4", "*.mp4", "concat:1.mp4|1.mp4", "file:1.mp4", "pipe:0", "http:1.mp4")
    )
    return written(place / name, b"not this one")


@recipe("video")
def zip_as_video(rng, place, secret):
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.mp4", video("mp4"))
    return written(place / "a.mp4", stored.getvalue())


@recipe("video")
def other_file(rng, place, secret):
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(
        ">I4sIIBBBBB", 13, b"IHDR", 1 << 30, 1 << 30, 8, 2, 0, 0, 0
    )
    pages = (b"<html>" * 200, b"%PDF-1.7\n" * 50, png * 9, b"RIFF\xff\xff\xff\xffWAVEfmt " * 20)
    return written(place / rng.choice(("a.mp4", "a.webm", "a.avi")), rng.choice(pages))


@recipe("video")
def absurd_dimensions(rng, place, secret):
    side = rng.randrange(8_000, 16_000)
    ivf = struct.pack("<4sHH4sHHIIII", b"DKIF", 0, 32, b"VP80", 65535, 65535, 30, 1, 10**9, 0)
    contents = (
        ("a.gif", gif(side, side)),
        ("a.gif", gif(side, 2)),
        ("a.gif", gif(65_535, 65_535)),
        ("a.y4m", b"YUV4MPEG2 W99999999 H99999999 F1:1\nFRAME\n"),
        ("a.ivf", ivf + b"\xff" * 40),
    )
    name, data = rng.choice(contents)
    return written(place / name, data)


# --- Lists of actions, and descriptions


@recipe("actions")
def actions_twice(rng, place, secret):
    return written(place / "a.txt", rng.choice(("run\nrun\n", "Run\nrun\n", "run\n\u3000RUN\n")))


@recipe("actions", refused=False)
def forged_actions(rng, place, secret):
    return written(place / "a.txt", f"run {FORGED}\nhop \u202e\x9b31m\u2028now\n=1+1\n@SUM(A1)\n")


@recipe("actions")
def long_action(rng, place, secret):
    return written(place / "a.txt", "run\n" + "hop " * rng.randrange(300, 3_000_000))


@recipe("actions")
def many_actions(rng, place, secret):
    return written(place / "a.txt", "".join(f"{n}\n" for n in range(3_000_000)))


@recipe("actions")
def odd_actions_csv(rng, place, secret):
    texts = (
        "\xff\xfea\0", "action\n\xe9\n", '"action\n', "action," + "x" * 140_000, "name\nrun\n",
        "action\n\n,,\n\"\"\n",
    )  # fmt: skip
    return written(place / "a.csv", rng.choice(texts).encode("latin-1"))


@recipe("actions", refused=False)
def zeros_in_actions(rng, place, secret):
    return written(place / "a.txt", b"run\0\nhop\0\0\n")


@recipe("descriptions")
def nested_json(rng, place, secret):
    depth = rng.choice((2_000, 100_000, 2_000_000))
    text = rng.choice(("[" * depth, '{"a":' * depth, '{"a": ' + "[" * depth + "]" * depth + "}"))
    return written(place / "a.json", text)


@recipe("descriptions")
def half_surrogate(rng, place, secret):
    texts = ('{"run": ["\\ud800"]}', '{"\\udc00": ["a"]}', '{"run": ["\\udfff\\ud800"]}')
    return written(place / "a.json", rng.choice(texts))


@recipe("descriptions")
def huge_string(rng, place, secret):
    size = rng.choice((200_000, 20_000_000, 40_000_000))
    return written(place / "a.json", b'{"run": ["' + b"a" * size + b'"]}')


@recipe("descriptions")
def gigabyte_string(rng, place, secret):
    return sparse(place / "a.json", 1 << 30, b'{"run": ["')


@recipe("descriptions")
def odd_json(rng, place, secret):
    texts = (
        "null", "[]", "7", '"x"', "{", '{"run": "text"}', '{"run": [1]}', '{"run": [null]}',
        '{"run": {"a": []}}', '{"run": [NaN]}', f'{{"run": {"9" * 5000}}}', '{"run": ["a"]} x',
        "\x1b[2J", "{'run': ['a']}", '{"run": ["\t\n"]}',
    )  # fmt: skip
    return written(place / "a.json", rng.choice(texts))


@recipe("descriptions")
def odd_descriptions_csv(rng, place, secret):
    texts = (
        "x,y\n1,2\n", "action,description\nrun\n", "action,description\n" + "x" * 140_000 + ",y\n",
        "action,description\nrun,\xe9\n", "\0\0\0", "action\nrun\n",
    )  # fmt: skip
    return written(place / "a.csv", rng.choice(texts).encode("latin-1"))


@recipe("descriptions", refused=False)
def forged_descriptions(rng, place, secret):
    return written(place / "a.json", json.dumps({"run": [FORGED], "hop": ["=cmd|' /C calc'!A0"]}))


# --- Weights


def header(shape: object, descr: object = "<f4", fortran: bool = False) -> bytes:
    """The header of an .npy file that says what it likes."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npz_of(**members: bytes) -> bytes:
    """An .npz with these members."""
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stored.getvalue()


@functools.cache
def zeros(size: int) -> bytes:
    """`size` zero bytes, compressed as in a .zip or .gz to a thousandth of their size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated
    return block * (size >> 24) + b"\3\0"


def zip_of(
    name: bytes, packed: bytes, size: int, crc: int = 0, method: int = 8, flags: int = 0
) -> bytes:
    """A .zip with one member, whose sizes and checksum may be wrong."""
    fields = (20, flags, method, 0, 33, crc, len(packed), size, len(name), 0)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", *fields) + name + packed
    central = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, *fields, 0, 0, 0, 0, 0) + name
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def huge_directory() -> bytes:
    """A .zip whose list of members has 70 MB."""
    entry = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0
    )
    entries = (entry + b"a" * 99) * 500_000
    return entries + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, len(entries), 0, 0)


def odd_array(rng: random.Random) -> bytes:
    """An .npy file that is not a plain array of numbers."""
    values = (
        header((1 << 50, 4)) + bytes(64),
        header((1 << 32, 1 << 32)) + bytes(64),
        header((-4, -4)) + bytes(64),
        header((6, 4), "|O") + pickle.dumps(Attack("/nowhere")),
        header((6, 4), "<c8") + bytes(192),
        header((6,), "<U4000000") + bytes(64),
        header((6,), "<U0"),
        header((6, 4), "|V4") + bytes(96),
        header((6, 4), [("a", "<f4")]) + bytes(96),
        header((6, 4), "<f4") + struct.pack("<24f", *[float("nan")] * 24),
        header((6, 4), "<f8") + struct.pack("<24d", *[1e300] * 24),
        header((6, 0)),
        header((1 << 60, 0)),
        header("-" * 9000 + "1") + bytes(8),
        header("(" * 3000) + bytes(8),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(64),
        b"\x93NUMPY",
    )
    return rng.choice(values)


class Attack:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, place: str):
        self.place = place

    def __reduce__(self):
        return (os.mkdir, (self.place,))


@recipe("weights")
def odd_npz(rng, place, secret):
    values = odd_array(rng)
    if b", 0)" in values:  # in weights an array without values is only of no use
        values = header((7, 4), "<c8") + bytes(8 * 28)
    return written(place / "a.npz", npz_of(a=values))


@recipe("weights", refused=False)
def flipped_npz(rng, place, secret):
    stored = io.BytesIO()
    np.savez(stored, **{"a": np.ones((6, 4)), FORGED: np.ones(3)})
    data = flipped(rng, stored.getvalue())
    return written(place / "a.npz", cut(rng, data) if rng.random() < 0.3 else data)


@recipe("weights")
def npz_bomb(rng, place, secret):
    size = 1 << 30
    return written(place / "a.npz", zip_of(b"a.npy", zeros(size), size))


@recipe("weights")
def odd_zip_as_npz(rng, place, secret):
    contents = (
        huge_directory(),
        zip_of(b"a.npy", b"x" * 99, 99, method=99),
        zip_of(b"a.npy", b"x" * 99, 99, method=0, flags=1),
        zip_of(b"a.npy", b"x" * 99, 1 << 31, method=0),
        b"PK\3\4" * 500,
    )
    return written(place / "a.npz", rng.choice(contents))


@recipe("weights", refused=False)
def flipped_safetensors(rng, place, secret):
    data = save({"a": np.ones((6, 4), np.float32), "b": np.ones(3, np.float16)})
    data = flipped(rng, data)
    return written(place / "a.safetensors", cut(rng, data) if rng.random() < 0.3 else data)


@recipe("weights")
def odd_safetensors(rng, place, secret):
    def tensor(start, end, shape=(2,), dtype="F32"):
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    texts = (
        json.dumps({"a": tensor(0, 8), "b": tensor(0, 8)}),
        json.dumps({"a": tensor(0, 8), "b": tensor(4, 12)}),
        json.dumps({"a": tensor(8, 0)}),
        json.dumps({"a": tensor(0, 1 << 62, [1 << 60])}),
        json.dumps({"a": tensor(0, 8, [1 << 32, 1 << 32])}),
        json.dumps({"a": tensor(0, 8, (2,), "X9")}),
        json.dumps({"a": tensor(0, 16, (2,), "C64")}),
        json.dumps({"../../a": 1, "__metadata__": {"x": 1}}),
        '{"a":' * 100_000,
        '{"\\ud800": 1}',
        "[]",
    )
    text = rng.choice(texts).encode()
    return written(place / "a.safetensors", struct.pack("<Q", len(text)) + text + bytes(16))


@recipe("weights")
def huge_header(rng, place, secret):
    size = rng.choice((9 << 20, 90 << 20, 1 << 60))
    return sparse(place / "a.safetensors", 1 << 30, struct.pack("<Q", size) + b'{"a":')


@recipe("weights")
def index_of_other_files(rng, place, secret):
    index = place / "model.safetensors.index.json"
    names = (
        "../secret/a.safetensors",
        str(secret / "a.safetensors"),
        "/etc/passwd",
        index.name,
        "..",
        7,
    )
    text = json.dumps({"weight_map": {"a": rng.choice(names)}})
    return written(
        index, rng.choice((text, text, text, "[" * 100_000, '{"weight_map": {"a": {}}}'))
    )


@recipe("weights")
def malicious_pickle(rng, place, secret):
    data = pickle.dumps(Attack(str(secret / "executed")))
    name = rng.choice(("model.pt", "pytorch_model.bin", "a.safetensors", "a.ckpt"))
    if rng.random() < 0.5:
        stored = io.BytesIO()
        with zipfile.ZipFile(stored, "w") as archive:  # as torch.save writes it
            archive.writestr("archive/data.pkl", data)
        data = stored.getvalue()
    return written(place / name, data)


@recipe("weights")
def odd_torch_file(rng, place, secret):
    """The name of a file that is read although it is a pickle."""
    storage = ("storage", TorchName("torch", "FloatStorage"), "0", "cpu", 4)
    rebuild = TorchName("torch._utils", "_rebuild_tensor_v2")
    shape, strides = rng.choice(
        (((1 << 40,), (0,)), ((4,), (1 << 60,)), ((-1,), (1,)), ((9,), (1,)))
    )
    trees = (
        {"a": Rebuilt(rebuild, (Stored(storage), 0, shape, strides))},
        {f"{n}": Rebuilt(rebuild, (Stored(storage), 0, (1 << 20,), (0,))) for n in range(99)},
        {"a": Attack(str(secret / "executed"))},
        {"a": 7},
        Rebuilt(TorchName("collections", "OrderedDict"), ([("a", 7)],), {"get": 7, "items": 7}),
        [[]],
    )
    stored = io.BytesIO()
    TorchPickler(stored, protocol=2).dump(rng.choice(trees))
    name = place / "PE-Core-T16-384.pt"
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", stored.getvalue())
        archive.writestr("archive/data/0", bytes(16))
    return name


class TorchName(NamedTuple):
    """A name in a module, which is pickled as such without the module."""

    module: str
    name: str


class Stored(NamedTuple):
    """What torch pickles in place of the values of a tensor."""

    pid: tuple


class Rebuilt(NamedTuple):
    """A call in a pickle, and the attributes of its result."""

    function: TorchName
    arguments: tuple
    state: dict | None = None


class TorchPickler(pickle._Pickler):  # in Python: the other one has no hooks for names
    """Writes pickles as torch does, or as torch never would."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, TorchName):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Rebuilt):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Stored) else None


# --- Folders of models


@recipe("model")
def odd_model(rng, place, secret):
    texts = (
        "[" * 100_000, "[]", "null", "{", "\xff", '{"format": "\\ud800"}', '{"format": []}',
        '{"format": "coco_jax model", "format_version": 1e999}',
        '{"format": "coco_jax model", "format_version": 1, "kind": "\\u001b[2J"}',
        '{"format": "coco_jax model", "format_version": 1, "kind": "coco", "config": {"a": 1}}',
        '{"format": "coco_jax model", "format_version": 1, "kind": "pretrained"}',
        '{"model_type": "\\u001b[2J"}', '{"model_type": "clip", "vision_config": 7}', "{}",
    )  # fmt: skip
    written(place / "config.json", rng.choice(texts).encode("latin-1"))
    return place


@recipe("model")
def model_of_fifos(rng, place, secret):
    names = ["config.json", "model.safetensors", "texts.json", "tokenizer.json", "tokenizer.model"]
    for name in rng.sample(names, 3):
        os.mkfifo(place / name)
    return place


@recipe("model")
def huge_model(rng, place, secret):
    for name in ("config.json", "texts.json", "tokenizer.json", "model.safetensors"):
        sparse(place / name, 1 << 40, b'{"format": "coco_jax model", "a": "')
    return place


# --- Features


def features_folder(place: pathlib.Path) -> None:
    """Writes videos.csv."""
    rows = [f"{name},action {n % 3},{'train' if n < 4 else 'test'}" for n, name in enumerate(IDS)]
    (place / "videos.csv").write_text("\n".join(["video_id,label,split", *rows]) + "\n")
    (place / "unseen.txt").write_text("action 0\naction 1\n")


@recipe("features")
def odd_features_npy(rng, place, secret):
    features_folder(place)
    (place / "a.ids.txt").write_text("\n".join(IDS))
    return written(place / "a.npy", odd_array(rng))


@recipe("features")
def odd_features_npz(rng, place, secret):
    features_folder(place)
    ids = io.BytesIO()
    np.save(ids, np.array(IDS))
    return written(place / "a.npz", npz_of(features=odd_array(rng), ids=ids.getvalue()))


@recipe("features")
def features_bomb(rng, place, secret):
    features_folder(place)
    return written(place / "a.npz", zip_of(b"features.npy", zeros(1 << 30), 1 << 30))


@recipe("features")
def features_elsewhere(rng, place, secret):
    """The HDF5 file refers to values in other files."""
    features_folder(place)
    shape, target = (len(IDS), 4), str(secret / "a.h5")
    with h5py.File(place / "a.h5", "w") as file:
        file["ids"] = np.array(IDS, "S")
        match rng.randrange(6):
            case 0:
                file["features"] = h5py.ExternalLink(target, "/features")
            case 1:
                raw = rng.choice((str(secret / "a.bin"), "/etc/passwd"))
                file.create_dataset("features", shape, "f4", external=[(raw, 0, 96)])
            case 2:
                layout = h5py.VirtualLayout(shape, "f4")
                layout[:] = h5py.VirtualSource(target, "features", shape)
                file.create_virtual_dataset("features", layout)
            case 3:
                layout = h5py.VirtualLayout(shape, "f4", maxshape=(None, 4))
                source = h5py.VirtualSource(target, "features", shape, maxshape=(None, 4))
                layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
                file.create_virtual_dataset("features", layout)
            case 4:
                file["features"], file["loop"] = h5py.SoftLink("/loop"), h5py.SoftLink("/features")
            case 5:
                file["features"] = file["/"]
    return place / "a.h5"


@recipe("features")
def odd_features_h5(rng, place, secret):
    features_folder(place)
    with h5py.File(place / "a.h5", "w") as file:
        file["ids"] = IDS
        match rng.randrange(7):
            case 0:
                file.create_dataset("features", (6,), h5py.vlen_dtype(np.float32))
            case 1:
                file.create_dataset("features", (6,), h5py.ref_dtype)
            case 2:
                file["features"] = np.zeros((6, 4), [("x", "f4")])
            case 3:
                file.create_dataset("features", (6, 1 << 40), "f4", chunks=(1, 1024))
            case 4:
                file.create_dataset(
                    "features", (6, 1 << 26), "f4", chunks=(6, 1 << 22), compression=9
                )
            case 5:
                file["features"] = np.zeros((6, 4), np.complex64)
            case 6:
                file["features"] = np.full((6, 4), np.nan, np.float16)
    return place / "a.h5"


@recipe("features", refused=False)
def flipped_features_h5(rng, place, secret):
    features_folder(place)
    stored = io.BytesIO()
    with h5py.File(stored, "w", libver=rng.choice(("earliest", "latest"))) as file:
        file["ids"] = IDS
        x = np.ones((6, 4), np.float32)
        file.create_dataset("features", data=x, chunks=(2, 4), compression="gzip")
    data = flipped(rng, stored.getvalue(), 2)
    return written(place / "a.h5", cut(rng, data) if rng.random() < 0.3 else data)


@recipe("features")
def crashing_features_h5(rng, place, secret):
    """The HDF5 library crashes on this file."""
    features_folder(place)
    stored = HERE / "tfds_builders/video_features/crash.h5.gz"
    return written(place / "a.h5", gzip.decompress(stored.read_bytes()))


@recipe("features")
def odd_ids(rng, place, secret):
    features_folder(place)
    np.save(place / "a.npy", np.ones((6, 4), np.float32))
    path = place / "a.ids.txt"
    match rng.randrange(4):
        case 0:
            sparse(path, 1 << 40)
        case 1:
            path.write_bytes(b"\xff\xfe\n" * 6)
        case 2:
            path.write_text("\n".join(IDS[:-1]))
        case 3:
            os.mkfifo(path)
    return path


# --- Folders of videos, with lists


def videos_folder(place: pathlib.Path) -> None:
    """Four actions with a train video and a test video each."""
    for action in ("run", "hop", "spin", "walk"):
        for split in ("train", "test"):
            (place / split / action).mkdir(parents=True)
            (place / split / action / "0.mp4").write_bytes(video("mp4"))


@recipe("folder")
def odd_videos_csv(rng, place, secret):
    videos_folder(place)
    path, row = place / "videos.csv", "train/run/0.mp4,run\n"
    texts = (
        f'path,label\n{row}train/hop/0.mp4,"{FORGED}"\n',
        f"path,label\n{secret}/a.mp4,run\n",
        "path,label\n../secret/a.mp4,run\n",
        f"path,label\n{row}{row}",
        "path,label\n" + "a" * 140_000 + ",run\n",
        'path,label\n"train/run/0.mp4,run\n',
        "path,label\n\xff,run\n",
        "path;label\n",
        "\0",
        "",
    )
    match rng.randrange(4):
        case 0:
            os.mkfifo(path)
        case 1:
            sparse(path, 1 << 40)
        case _:
            path.write_bytes(rng.choice(texts).encode("latin-1"))
    return path


@recipe("folder")
def odd_splits_json(rng, place, secret):
    videos_folder(place)
    path = place / "splits.json"
    texts = (
        "[" * 100_000, '{"1":' * 100_000, "{}", "[]", "null", '{"1": []}', '{"1": {"seen": 7}}',
        '{"1": {"seen": ["run"], "other": ["hop"]}}', '{"1": {"seen": ["\\ud800"], "unseen": ["run"]}}',
        '{"1": {"seen": ["run", "run"], "unseen": ["hop", "spin"]}}',
        '{"1": {"seen": ["run"], "unseen": ["run"]}}', "\xff",
        json.dumps({FORGED: {"seen": [FORGED], "unseen": ["run"]}}),
    )  # fmt: skip
    match rng.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case _:
            path.write_bytes(rng.choice(texts).encode("latin-1"))
    return path


@recipe("folder")
def odd_unseen_txt(rng, place, secret):
    videos_folder(place)
    path = place / "unseen.txt"
    match rng.randrange(5):
        case 0:
            path.symlink_to("/dev/zero")
        case 1:
            sparse(path, 1 << 40)
        case _:
            texts = (b"run\nrun\n", b"RUN\nhop\n", b"\xff", FORGED.encode(), b"", b"a" * 10_000_000)
            path.write_bytes(rng.choice(texts))
    return path


@recipe("folder")
def classes_in_two_spellings(rng, place, secret):
    videos_folder(place)
    (place / "train/Run").mkdir()
    (place / "train/Run/1.mp4").write_bytes(video("mp4"))
    (place / "unseen.txt").write_text(rng.choice(("run\nhop\n", "Run\nhop\n")))
    return place


@recipe("folder")
def odd_folder_names(rng, place, secret):
    videos_folder(place)
    match rng.randrange(4):
        case 0:
            (place / f"train/{FORGED}").mkdir()
            (place / f"train/{FORGED}/0.mp4").write_bytes(video("mp4"))
        case 1:
            (place / "train/run/loop").symlink_to(place)
        case 2:
            (place / "train/run/1.mp4").symlink_to(place / "nowhere")
        case 3:
            os.mkfifo(place / "train/run/1.mp4")
    return place


@recipe("folder", refused=False)
def odd_videos_in_a_folder(rng, place, secret):
    videos_folder(place)
    (place / f"train/run/{FORGED}.mp4").write_bytes(b"broken")
    (place / f"{FORGED}.mp4").write_bytes(video("mp4"))
    (place / f"{FORGED}.txt").write_bytes(b"")
    (place / "unseen.txt").write_text("run\nhop\n")
    return place


# --- Archives


def tar_of(place: pathlib.Path, rng: random.Random, *members: tarfile.TarInfo) -> pathlib.Path:
    suffix, mode = rng.choice(((".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz")))
    with tarfile.open(place / f"a{suffix}", mode) as archive:
        archive.addfile(tarfile.TarInfo("ok.mp4"))
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    return place / f"a{suffix}"


@recipe("archive")
def unsafe_name(rng, place, secret):
    name = rng.choice(("../secret/b.mp4", "/tmp/b.mp4", "a/../../b.mp4", "..\\b.mp4", "C:\\b.mp4"))
    if rng.random() < 0.5:
        return tar_of(place, rng, tarfile.TarInfo(name))
    data = zip_of(name.encode(), b"x", 1, binascii.crc32(b"x"), method=0)
    return written(place / "a.zip", data)


@recipe("archive")
def link_or_device(rng, place, secret):
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    member = tarfile.TarInfo("b.mp4")
    member.type, member.linkname = rng.choice(kinds), rng.choice(("/etc/passwd", f"{secret}/a.mp4"))
    return tar_of(place, rng, member)


@recipe("archive")
def link_in_a_zip(rng, place, secret):
    with zipfile.ZipFile(place / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("b.mp4")
        info.external_attr = rng.choice((0o120777, 0o020666, 0o010666)) << 16
        archive.writestr(info, "/etc/passwd")
    return place / "a.zip"


@recipe("archive")
def bomb(rng, place, secret):
    size = 1 << 30
    match rng.randrange(3):
        case 0:
            return written(place / "a.zip", zip_of(b"a.mp4", zeros(size), size))
        case 1:
            inner = zip_of(b"a.mp4", zeros(size), size)
            with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("b.zip", inner)
            return place / "a.zip"
        case _:
            member = tarfile.TarInfo("a.mp4")
            member.size = size
            head = gzip.compress(member.tobuf())
            body = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + zeros(size) + struct.pack("<LL", 0, size)
            return written(place / "a.tar.gz", head + body)


@recipe("archive")
def odd_zip(rng, place, secret):
    contents = (
        huge_directory(),
        zip_of(b"a.mp4", b"x" * 99, 99, method=99),
        zip_of(b"a.mp4", b"x" * 99, 99, method=0, flags=1),
        zip_of(b"a.mp4", b"x" * 99, 5, method=0),
        zip_of(FORGED.encode() + b".mp4", b"x" * 99, 99, crc=1, method=0),
        b"PK\5\6" + bytes(12),
    )
    return written(place / "a.zip", rng.choice(contents))


@recipe("archive")
def odd_tar(rng, place, secret):
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.XHDTYPE, 64 << 20
    negative = bytearray(tarfile.TarInfo("a.mp4").tobuf())
    negative[124:136] = b"\xff" * 12
    # The dictionary of an .xz: 4 GB. Its header has a checksum.
    packed = bytearray(lzma.compress(bytes(2048)))
    packed[16] = 40
    packed[20:24] = struct.pack("<L", binascii.crc32(packed[12:20]))
    contents = (
        ("a.tgz", gzip.compress(long.tobuf() + bytes(64 << 20), 1)),
        ("a.tar", bytes(negative) + bytes(1024)),
        ("a.tar.xz", bytes(packed)[:-9]),
        ("a.tar.bz2", b"BZh9" + rng.randbytes(99)),
        ("a.rar", b"Rar!\x1a\x07\x00" + rng.randbytes(200)),
        ("a.rar", b"Rar!\x1a\x07\x01\x00" + rng.randbytes(200)),
    )
    name, data = rng.choice(contents)
    return written(place / name, data)


@recipe("archive", refused=False)
def flipped_archive(rng, place, secret):
    stored, kind = io.BytesIO(), rng.choice(("zip", "tar", "tgz"))
    if kind == "zip":
        with zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.mp4", video("mp4"))
    else:
        with tarfile.open(fileobj=stored, mode="w:gz" if kind == "tgz" else "w") as archive:
            member = tarfile.TarInfo("a.mp4")
            member.size = len(video("mp4"))
            archive.addfile(member, io.BytesIO(video("mp4")))
    data = flipped(rng, stored.getvalue())
    return written(place / f"a.{kind}", cut(rng, data) if rng.random() < 0.3 else data)
