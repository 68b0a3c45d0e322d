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


def test_fifo_is_an_error_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for read in (lambda file: inputs.read_actions(None, file), inputs.read_descriptions):
        with pytest.raises(UserError, match="not a regular file"):
            read(str(tmp_path / "fifo"))


def test_deeply_nested_descriptions_are_an_error(tmp_path):
    (tmp_path / "d.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"--descriptions=.*d.json: maximum recursion"):
        inputs.read_descriptions(str(tmp_path / "d.json"))
