"""What is printed of names from outside cannot move the cursor, forge a line or fail to encode."""

import pytest

from coco_jax import errors
from coco_jax.printing import printable


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("rope skipping", "rope skipping"),
        ("a\x1b[31mred\x1b[0m", r"a\x1b[31mred\x1b[0m"),
        ("a\ncoco_jax.predict: all is well", r"a\ncoco_jax.predict: all is well"),
        ("\r\t\b\x7f\x9b", r"\r\t\x08\x7f\x9b"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\ud800.mp4", r"\ud800.mp4"),
        ("跳绳, ß, नमस्ते, 👩\u200d👧, می\u200cخواهم", "跳绳, ß, नमस्ते, 👩\u200d👧, می\u200cخواهم"),
        ("", ""),
    ],
)
def test_control_characters_are_escaped_and_letters_stay(text, want):
    got = printable(text)
    assert got == want and len(got.splitlines()) <= 1
    got.encode()


def test_error_with_a_forged_line_is_printed_as_one_line(capsys):
    with pytest.raises(SystemExit) as ended, errors.reported("program"):
        raise errors.UserError("a\nprogram: done\x1b[2J.mp4: not a video")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "program: a\\nprogram: done\\x1b[2J.mp4: not a video\n"


def test_each_argument_of_an_error_is_one_line(capsys):
    with pytest.raises(SystemExit), errors.reported("program"):
        raise errors.UserError("dataset 'x' is missing", "  Fetch: a\nb", "  Size: 1 GB")
    assert capsys.readouterr().err.splitlines() == [
        "program: dataset 'x' is missing",
        r"  Fetch: a\nb",
        "  Size: 1 GB",
    ]
