"""Draws docs/images/motion.png: frames of four rendered actions of motion_zsar."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from tfds_builders.motion_zsar import language, render

NAMES = ("duet", "hop")  # words in the names of the actions shown


def main() -> None:
    """Writes the picture beside this file."""
    actions = [a for a in language.ACTIONS if any(word in a.name for word in NAMES)][:4]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for row, action in enumerate(actions):
        frames = render.clip(action, 7)
        shown = frames[np.linspace(0, len(frames) - 1, 10).round().astype(int)]
        axes = figure.add_subplot(len(actions), 1, row + 1)
        axes.imshow(np.concatenate(shown, axis=1))
        axes.set_title(action.name, fontsize=10, loc="left")
        axes.axis("off")
    figure.savefig(pathlib.Path(__file__).with_name("motion.png"), dpi=90)


if __name__ == "__main__":
    main()
