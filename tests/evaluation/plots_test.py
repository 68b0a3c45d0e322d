"""The picture of videos with the actions found in them."""

import warnings

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from coco_jax.data import video as videos
from coco_jax.evaluation import plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, also after they were saved."""
    made = []

    class Recorded(matplotlib.figure.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(plots, "Figure", Recorded)
    return made


def write_video(path, height, width):
    frames = np.random.default_rng(0).integers(0, 256, (16, height, width, 3), dtype=np.uint8)
    path.write_bytes(videos.encode(frames, 8))
    return str(path)


def test_picture_has_one_row_for_each_video_whose_frames_fill_the_strip(tmp_path, figures):
    wide = write_video(tmp_path / "wide.mp4", 36, 64)
    tall = write_video(tmp_path / "tall.mp4", 64, 36)
    ranked = [(f"action {k}", 0.9 / 2**k) for k in range(8)]
    path = plots.recognised([(wide, ranked), (tall, ranked[:2])], tmp_path / "a.png")
    (figure,) = figures
    frames = [axes for axes in figure.axes if axes.images]
    bars = [axes for axes in figure.axes if not axes.images]
    assert [len(axes.patches) for axes in bars] == [5, 2]
    widths = [axes.images[0].get_array().shape[1] for axes in frames]
    assert widths[0] == pytest.approx(4 * 293, rel=0.03)  # four frames of 165 x 293 pixels
    assert widths[1] == pytest.approx(12 * 165, rel=0.03)  # twelve of 293 x 165
    image = Image.open(path)
    assert image.size == (round(figure.get_figwidth() * 150), round(figure.get_figheight() * 150))
    assert np.asarray(image.convert("L")).std() > 10  # not empty


def test_texts_lie_in_the_picture_and_do_not_overlap(tmp_path, figures):
    """Names of any length and with any characters, on scores from 0 to 1."""
    name = "W" * 200
    video = write_video(tmp_path / ("$x_1$ \u65e5 " + "n" * 150 + ".mp4"), 36, 64)
    ranked = [("a person " * 30, 1.0), ("$\\frac{$ _^\n", 0.5), ("\u65e5\ud800", 0.0), (name, 0.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.recognised([(video, ranked), (video, ranked)], tmp_path / "a.png")
    (figure,) = figures
    warnings.simplefilter("ignore")  # of the glyphs, when the texts are measured again
    names = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    boxes = [*names, *(text.get_window_extent() for text in figure.texts)]
    assert len(boxes) == 2 * (1 + 2 * 4)
    for k, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])
    strip = max(axes.bbox.x1 for axes in figure.axes if axes.images)
    assert min(box.x0 for box in names) > strip


def test_only_the_first_videos_of_many_are_drawn(tmp_path, figures, monkeypatch, capsys):
    monkeypatch.setattr(plots, "MAX_VIDEOS", 2)
    video = write_video(tmp_path / "a.mp4", 36, 64)
    plots.recognised([(video, [("a", 1.0)])] * 3, tmp_path / "a.png")
    assert len([axes for axes in figures[0].axes if not axes.images]) == 2
    assert "shows the first 2 of 3 videos" in capsys.readouterr().err
