"""Lists that users write: classes twice, other spellings of a class, and hostile files."""

import json
import os

import pytest

from coco_jax.errors import UserError
from tfds_builders.common import user_lists

CLASSES = ["Push-ups", "hop", "push up", "run"]


def splits(folder, classes=CLASSES):
    return user_lists.class_splits(folder, classes, "video_folder")


def write(folder, seen, unseen):
    (folder / "splits.json").write_text(json.dumps({"1": {"seen": seen, "unseen": unseen}}))


@pytest.mark.parametrize("repeated", ["unseen.txt", "seen", "unseen"])
def test_class_that_is_listed_twice_is_an_error(tmp_path, repeated):
    """In training it caused an IndexError."""
    if repeated == "unseen.txt":
        (tmp_path / "unseen.txt").write_text("run\nrun\n")
    else:
        named = {"seen": ["hop"], "unseen": ["run"]}
        named[repeated] *= 2
        write(tmp_path, **named)
    with pytest.raises(UserError, match=r"split 1: \w+ class '(run|hop)' is listed twice"):
        splits(tmp_path)


@pytest.mark.parametrize("form", ["unseen.txt", "splits.json", "random"])
def test_class_that_is_seen_in_one_spelling_and_unseen_in_another_is_an_error(tmp_path, form):
    message = (
        r"split 1: '(Push-ups|push up)' is seen and '(Push-ups|push up)' is unseen, but they name"
    )
    if form == "unseen.txt":
        (tmp_path / "unseen.txt").write_text("push up\nrun\n")
    elif form == "splits.json":
        write(tmp_path, ["Push-ups", "hop"], ["push up"])
    else:
        message = message.replace("split 1", r"split \d")
    with pytest.raises(UserError, match=message):
        splits(tmp_path)
    write(tmp_path, ["hop"], ["push up", "Push-ups"])  # on the same side both may be
    assert splits(tmp_path)["1"]["unseen"] == ["push up", "Push-ups"]


def test_names_without_letters_are_compared_as_they_are(tmp_path):
    write(tmp_path, ["!!"], ["??"])
    assert splits(tmp_path, ["!!", "??"])["1"]["seen"] == ["!!"]


def test_one_unseen_class_is_reported_in_one_line(tmp_path, capsys):
    (tmp_path / "unseen.txt").write_text("run\n")
    assert splits(tmp_path)["1"]["unseen"] == ["run"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "with one unseen class, 'run', its zero-shot accuracy is always 100 %" in line
    (tmp_path / "unseen.txt").write_text("run\nhop\n")
    splits(tmp_path)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", user_lists.LISTS)
@pytest.mark.parametrize("kind", ["fifo", "folder", "broken link", "latin-1", "nested", "large"])
def test_list_that_is_no_utf8_file_is_a_one_line_error(tmp_path, name, kind):
    path = tmp_path / name
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "broken link":
            path.symlink_to(tmp_path / "absent")
        case "latin-1":
            path.write_bytes(b"path,label\na.mp4,caf\xe9\n")
        case "nested":
            path.write_text("[" * 100_000)
        case "large":  # without blocks on the disk
            with path.open("wb") as stream:
                stream.truncate(1 << 40)
    with pytest.raises(UserError, match=str(path)) as error:
        if name == "videos.csv":
            user_lists.read_videos(user_lists.given(tmp_path, name), "path")
        else:
            splits(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"1": {"seen": ["a"], "other": ["b"]}}', "seen or unseen is missing"),
        ('{"1": {"seen": ["\\ud800"], "unseen": ["run"]}}', "half a surrogate pair"),
        ('{"1": {"seen": ["\\u001b[31m"], "unseen": ["run"]}}', r"'\\x1b\[31m' has no video"),
    ],
)
def test_error_in_the_text_of_splits_json_is_reported(tmp_path, text, message):
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(UserError, match=message):
        splits(tmp_path)


@pytest.mark.parametrize("label", ["a\nb", "\x1b[31ma", "a\u2028b", "a" * 1001])
def test_label_that_would_not_be_one_line_is_an_error(tmp_path, label):
    """TFDS stores the names of classes as lines: a line break would shift all later labels."""
    (tmp_path / "videos.csv").write_text(f'path,label\n0.mp4,run\n1.mp4,"{label}"\n')
    with pytest.raises(UserError, match=r"videos.csv:\d+: the label .* has control characters"):
        user_lists.read_videos(tmp_path / "videos.csv", "path")


def test_number_of_videos_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(user_lists, "MAX_ROWS", 2)
    path = tmp_path / "videos.csv"
    path.write_text("path,label\n1,a\n2,a\n")
    assert len(user_lists.read_videos(path, "path")) == 2
    path.write_text("path,label\n1,a\n2,a\n3,a\n")
    with pytest.raises(UserError, match="more than 2 videos"):
        user_lists.read_videos(path, "path")
