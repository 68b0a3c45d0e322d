"""The corpus: descriptions of tested videos are removed."""

import pytest

from coco_jax.data.corpus import Corpus


@pytest.mark.parametrize("written", ["-aB_9xYz012", "v_-aB_9xYz012", "-aB_9xYz012_000010_000020"])
@pytest.mark.parametrize(
    "tested", ["-aB_9xYz012", "v_-aB_9xYz012.mp4", "-aB_9xYz012_000003_000013"]
)
def test_descriptions_of_a_tested_video_are_removed_in_every_form_of_its_id(written, tested):
    corpus = Corpus(
        {"yoga": ("a tested one", "another", "unknown"), "run": ("fast",)},
        {"yoga": (written, "v_0123456789a", ""), "run": ("0123456789b_000001_000011",)},
    )
    left, removed = corpus.without_videos([tested, ""])
    assert removed == 1
    assert left.texts == {"yoga": ("another", "unknown"), "run": ("fast",)}
    assert left.video_ids == {"yoga": ("v_0123456789a", ""), "run": ("0123456789b_000001_000011",)}
