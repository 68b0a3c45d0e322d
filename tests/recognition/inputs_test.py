"""Reading candidate actions and descriptions."""

import json
import os

import pytest

from coco_jax.errors import UserError
from coco_jax.recognition import inputs


@pytest.mark.parametrize(
    ("listed", "file", "message"),
    [
        (None, None, "either --actions"),
        ("a", "b", "either --actions"),
        ("", None, "no actions to choose from"),
        ("  ", None, "no actions to choose from"),
        ("a,,b", None, "name is empty"),
        ("a, b,a", None, "listed twice: a"),
        (None, "/nowhere.txt", "/nowhere.txt"),
    ],
)
def test_invalid_candidates_are_an_error(listed, file, message):
    with pytest.raises(UserError, match=message):
        inputs.read_actions(listed, file)


def test_candidates_are_read_from_the_lines_of_a_file(tmp_path):
    (tmp_path / "actions.txt").write_text("juggling\n\n  rope skipping\n")
    assert inputs.read_actions(None, str(tmp_path / "actions.txt")) == [
        "juggling",
        "rope skipping",
    ]


def test_candidates_are_read_from_the_column_action_of_a_csv_file(tmp_path):
    path = tmp_path / "actions.csv"
    path.write_text("id,action\n1,juggling\n2,rope skipping\n")
    assert inputs.read_actions(None, str(path)) == ["juggling", "rope skipping"]
    path.write_text("id,name\n1,juggling\n")
    with pytest.raises(UserError, match="no column 'action'"):
        inputs.read_actions(None, str(path))


def test_names_that_differ_only_in_case_are_an_error():
    with pytest.raises(UserError, match="listed twice: Yoga, yoga"):
        inputs.read_actions("yoga, Yoga, run", None)


def test_descriptions_are_read_from_json_and_csv(tmp_path):
    want = {"juggling": ["balls in the air", "a clown, smiling"], "skipping": ["a rope"]}
    (tmp_path / "d.json").write_text(json.dumps(want))
    (tmp_path / "d.csv").write_text(
        'action,description\njuggling,balls in the air\njuggling,"a clown, smiling"\nskipping,a rope\n'
    )
    assert inputs.read_descriptions(str(tmp_path / "d.json")) == want
    assert inputs.read_descriptions(str(tmp_path / "d.csv")) == want


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.json", "[1, 2]"), ("d.json", "{"), ("d.json", '{"a": "b"}'), ("d.csv", "x,y\n1,2\n"),
     ("d.csv", "action,description\nonly one\n")],
)  # fmt: skip
def test_invalid_descriptions_are_an_error_with_the_file(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"--descriptions=.*{name}"):
        inputs.read_descriptions(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "large", "latin-1", "nested", "long"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "d.json", "d.csv"])
def test_file_that_is_no_list_is_a_one_line_error(tmp_path, name, kind):
    path = tmp_path / name
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "large":
            with path.open("wb") as stream:  # a terabyte without blocks on the disk
                stream.truncate(1 << 40)
        case "latin-1":
            path.write_bytes(b"action,description\nna\xefve,a text\n")
        case "nested":
            path.write_text("[" * 100_000)
        case "long":
            path.write_text('{"action": ["' + "a" * 200_000)
    read = inputs.read_descriptions if name[0] == "d" else lambda p: inputs.read_actions(None, p)
    with pytest.raises(UserError) as error:
        read(str(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ["\\ud800"]}', "half a surrogate pair"),
        ('{"\\udfff": ["x"]}', "half a surrogate pair"),
        (json.dumps({"a": ["x" * 100_001]}), "a caption has 100,001 characters, more than 100,000"),
    ],
)
def test_caption_that_no_tokenizer_can_read_is_an_error(tmp_path, text, message):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(UserError, match=message):
        inputs.read_descriptions(str(tmp_path / "d.json"))


def test_escaped_surrogate_pair_is_a_character(tmp_path):
    (tmp_path / "d.json").write_text('{"a": ["\\ud83d\\udc67"]}')
    assert inputs.read_descriptions(str(tmp_path / "d.json")) == {"a": ["👧"]}


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (["a" * 1001], "an action's name has 1,001 characters"),
        (["run", "\udcff"], "an action's name is not UTF-8 text"),  # bytes on a command line
        (range(200_001), "200,001 actions; give at most 200,000"),
    ],
)
def test_action_that_no_tokenizer_can_read_is_an_error(actions, message):
    with pytest.raises(UserError, match=message):
        inputs.check_actions(actions)


def test_a_hundred_thousand_actions_are_read_and_checked(tmp_path):
    """With a check of each pair this would take minutes."""
    names = [f"action {n}" for n in range(100_000)]
    (tmp_path / "a.txt").write_text("\n".join(names))
    assert inputs.read_actions(None, str(tmp_path / "a.txt")) == names
