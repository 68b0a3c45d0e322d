"""Opening datasets: ids of videos, joined datasets, and the error for an unknown dataset."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coco_jax.data.dataset import Dataset, Records, join, load, normal_id
from coco_jax.data.requirements import REQUIREMENTS
from coco_jax.errors import UserError

LETTERS = string.ascii_letters + string.digits + "_-"
YOUTUBE = st.text(LETTERS, min_size=11, max_size=11)
PLAIN = YOUTUBE.filter(lambda video: not video.startswith("v_"))
TIMES = st.integers(0, 999_999).map("{:06}".format)


@given(YOUTUBE | YOUTUBE.map(lambda video: "v_" + video[2:]), TIMES, TIMES)
def test_all_forms_of_a_video_id_have_the_same_normal_id(video, start, end):
    """ActivityNet writes v_ID, Kinetics and VATEX ID_START_END; files have folders and suffixes."""
    forms = (
        f"v_{video}", f"{video}_{start}_{end}", f"v_{video}_{start}_{end}", f"{video}.mp4",
        f"train/yoga/{video}_{start}_{end}.webm", f"C:\\videos\\v_{video}.AVI",
    )  # fmt: skip
    assert {normal_id(form) for form in forms} == {normal_id(video)}


@given(PLAIN, PLAIN)
def test_different_videos_have_different_normal_ids(one, two):
    assert (normal_id(one) == normal_id(two)) == (one == two)


def test_error_for_an_unknown_dataset_lists_the_existing_ones(tmp_path):
    with pytest.raises(UserError, match=r"'ucf101_zasr' does not exist; did you mean") as caught:
        load("ucf101_zasr", str(tmp_path))
    assert "\n" not in str(caught.value)
    assert all(name in str(caught.value) for name in REQUIREMENTS)


@pytest.mark.parametrize("overlap", ["keep", "drop"])
def test_joined_datasets_share_classes_in_any_spelling(overlap):
    """Kinetics has "push up" and UCF101 "push ups": with "drop" it is not trained on."""

    def fake(name: str, classes: tuple[str, ...], seen: tuple[str, ...]) -> Dataset:
        records = Records((), np.arange(len(classes)), classes, ("train",) * len(classes))
        return Dataset(name, classes, {"1": {"seen": seen, "unseen": classes}}, records)

    trained = fake("k/intra", ("archery", "push up", "yoga"), ("archery", "push up", "yoga"))
    tested = fake("u/cross", ("archery", "push ups", "biking"), ())
    joined = join(trained, tested, overlap)
    split = joined.class_splits["1"]
    assert split["unseen"] == ["u: archery", "u: push ups", "biking"]
    assert split["seen"] == (["yoga"] if overlap == "drop" else ["archery", "push up", "yoga"])
    assert joined.display_names(split["unseen"]) == list(tested.classes)
