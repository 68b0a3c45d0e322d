"""Exports of the pretrained recogniser, on a real clip (minutes)."""

import numpy as np
import pytest

import coco_jax
from coco_jax.recognition import export
from tests.recognition.export_test import ranked_by_runner, rows_of

pytestmark = pytest.mark.faults
ACTIONS = ["arm wrestling", "cleaning pool", "juggling", "playing chess"]


@pytest.mark.parametrize("format", export.FORMATS)
def test_i3d_gives_the_same_rows_and_the_runner_the_ranking_of_predict(format, clips, tmp_path):
    recognizer, video = coco_jax.load(), clips / "arm_wrestling.mp4"
    export.export(recognizer, recognizer.embed_actions(ACTIONS), format, tmp_path)
    stack = np.stack(list(recognizer.clip_reader(2).read_views(video)))
    wanted_BW = recognizer.rows(recognizer.embed_clips(stack))
    found_BW = rows_of(tmp_path, stack)
    print(f"{format}: largest difference {np.abs(found_BW - wanted_BW).max():.1e}")
    np.testing.assert_allclose(found_BW, wanted_BW, atol=1e-4)
    (ranking,) = recognizer.rank([video], ACTIONS)
    found = ranked_by_runner(tmp_path, video)
    assert found == {name: pytest.approx(score, abs=5e-3) for name, score in ranking}
