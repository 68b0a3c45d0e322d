"""An HTML page of videos and the actions found in them; `coco-jax predict --html` calls it."""

from collections.abc import Sequence

from coco_jax.data import video as videos
from coco_jax.data.video import VideoError
from coco_jax.evaluation import html
from coco_jax.evaluation.html import Element, Segment, element

MAX_FRAMES = 60  # videos with frames; with more, the page would be larger than 2 MB
BARS = 5  # actions of each video


class VideoPage:
    """A page that grows by a video at a time."""

    def __init__(self) -> None:
        self.parts: list[Element] = []

    def add(
        self,
        name: str,
        video: videos.Video,
        actions: Sequence[tuple[str, float]] = (),
        segments: Sequence[Segment] = (),
        duration: float = 0.0,
        none: str | None = None,
    ) -> None:
        """Adds a video.

        Args:
          name: its heading.
          video: its file or bytes, for frames; of the first `MAX_FRAMES` videos.
          actions: with scores in [0, 1], best first; the first `BARS` are shown.
          segments: its timeline.
          duration: in seconds, for the timeline.
          none: the action of segments without a colour.
        """
        parts: list[Element] = []
        if len(self.parts) < MAX_FRAMES:
            try:
                parts.append(html.frames(video, name))
            except VideoError as error:
                parts.append(element("p", f"No frames: {error}", class_="soft"))
        if actions:
            parts.append(html.bars(actions[:BARS], actions[0][0], "Best actions and their scores"))
        if segments:
            parts.append(html.timeline(segments, duration, none))
        self._add(name, *parts)

    def add_error(self, name: str, reason: str) -> None:
        """Adds a video that could not be read."""
        self._add(name, element("p", f"Not read: {reason}"))

    def _add(self, name: str, *parts: Element) -> None:
        anchor = f"video-{len(self.parts) + 1}"
        self.parts.append(element("section", element("h2", name, id=anchor), *parts, class_="clip"))

    def text(self) -> str:
        """The page."""
        return html.page("Actions in videos", *self.parts)
