"""Renders the clips of motion_zsar: bodies that move along a path in a manner.

The action determines the path and the manner. Everything else (shapes, colours, background, speed,
direction, camera shake, distractors, length) is random and independent of the path and the manner.
"""

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from tfds_builders.motion_zsar import language

SIZE = 64  # height and width of a frame, in pixels
FPS = 16  # frames per second


def clip(action: language.Action, index: int) -> UInt8[np.ndarray, "T 64 64 3"]:
    """Renders a clip of an action.

    Args:
      action: the action.
      index: index of the clip; the same arguments give the same clip.

    Returns:
      18 to 30 RGB frames of uint8, at `FPS` frames per second.
    """
    seed = [language.SEED, *action.name.encode(), index]
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(18, 31))
    lead, tail = rng.uniform(0, 0.12, 2)
    progress_T = np.clip((np.linspace(0, 1, frames) - lead) / (1 - lead - tail), 0, 1)

    shake_T2 = np.cumsum(rng.normal(0, 0.5, (frames, 2)), 0)
    shake_T2 = (shake_T2 - shake_T2.mean(0)).clip(-2, 2) * 2 / SIZE * rng.uniform(0, 1)
    ticks = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1  # -1 .. 1, y downward
    # x and y are a row and a column that broadcast, which makes drawing faster.
    x_THW = (ticks[None, None, :] + shake_T2[:, 0, None, None]).astype(np.float32)
    y_THW = (ticks[None, :, None] + shake_T2[:, 1, None, None]).astype(np.float32)

    # Bodies are lighter than the background, as in a scene that is lit for them.
    ground = rng.uniform(0.05, 0.4, 3)
    image_THWC = _background(rng, ground, x_THW, y_THW)
    for _ in range(rng.integers(0, 3)):  # distractors: small, faint, and still or slow
        start, drift = rng.uniform(-0.9, 0.9, 2), rng.normal(0, 0.15, 2) * (rng.random() < 0.3)
        at_T2 = start + np.linspace(0, 1, frames)[:, None] * drift
        mask_THW = _body(rng, x_THW, y_THW, at_T2, np.full(frames, 0.1), np.zeros(frames))
        image_THWC = _paint(image_THWC, 0.6 * mask_THW, rng.uniform(0.2, 0.7, 3))

    size_T, angle_T, shown_T = _manner(rng, action.manner, progress_T)
    for at_T2 in _paths(rng, action.path, progress_T):
        turned_T = angle_T + rng.uniform(0, 2 * np.pi)
        mask_THW = (
            _body(rng, x_THW, y_THW, at_T2, size_T, turned_T)
            * shown_T.astype(np.float32)[:, None, None]
        )
        image_THWC = _paint(image_THWC, mask_THW, _light_colour(rng))
    noise = rng.standard_normal(image_THWC.shape, np.float32) * np.float32(rng.uniform(0, 0.02))
    return np.clip((image_THWC + noise) * 255, 0, 255).astype(np.uint8)


def _paths(
    rng: np.random.Generator, path: str, t: Float[np.ndarray, " T"]
) -> list[Float[np.ndarray, "T 2"]]:
    """Returns the positions (x, y) of each body at the times `t` (0 to 1), in half image widths."""
    way = rng.choice([-1.0, 1.0])
    far, off = rng.uniform(0.65, 0.85), rng.uniform(-0.45, 0.45)
    pace = t ** rng.uniform(0.8, 1.3)
    still = np.full_like(t, off)
    match path:
        case "slide":
            return [np.stack([way * far * (2 * pace - 1), still], -1)]
        case "rise":
            return [np.stack([still, far * (1 - 2 * pace)], -1)]
        case "fall":
            return [np.stack([still, far * (2 * pace - 1)], -1)]
        case "circle":
            angle = rng.uniform(0, 2 * np.pi) + way * 2 * np.pi * rng.uniform(1.0, 1.6) * t
            centre, radius = rng.uniform(-0.15, 0.15, 2), rng.uniform(0.45, 0.6)
            return [centre + radius * np.stack([np.cos(angle), np.sin(angle)], -1)]
        case "zigzag":
            wave = 2 * np.abs(2 * ((t * rng.uniform(2, 3.2) + rng.random()) % 1) - 1) - 1
            height = rng.uniform(0.35, 0.5)
            return [np.stack([way * far * (2 * t - 1), 0.4 * off + height * wave], -1)]
        case "bounce":
            hops = np.abs(np.sin(np.pi * rng.uniform(2, 3.3) * t))
            floor, height = rng.uniform(0.5, 0.75), rng.uniform(0.7, 1.1)
            return [np.stack([still + 0.15 * way * t, floor - height * hops], -1)]
        case "meet":
            apart = 0.16 + rng.uniform(0.5, 0.65) * np.abs(1 - 2 * t)
            angle = rng.uniform(0, 2 * np.pi)
            arm = np.stack([apart * np.cos(angle), apart * np.sin(angle)], -1)
        case "orbit":
            angle = rng.uniform(0, 2 * np.pi) + way * 2 * np.pi * rng.uniform(0.8, 1.4) * t
            arm = rng.uniform(0.38, 0.5) * np.stack([np.cos(angle), np.sin(angle)], -1)
        case _:
            raise ValueError(f"unknown path {path!r}; use one of {', '.join(language.PATHS)}")
    centre = rng.uniform(-0.15, 0.15, 2)
    return [centre + arm, centre - arm]


def _manner(
    rng: np.random.Generator, manner: str, t: Float[np.ndarray, " T"]
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Returns radius (half image widths), angle (radians) and opacity of the bodies at the times `t`."""
    size = np.full_like(t, rng.uniform(0.2, 0.26))
    angle, shown = np.zeros_like(t), np.ones_like(t)
    match manner:
        case "grow":
            size = size * (0.5 + 1.2 * t)
        case "shrink":
            size = size * (1.7 - 1.2 * t)
        case "spin":
            angle = rng.choice([-1.0, 1.0]) * 2 * np.pi * rng.uniform(1.3, 2.3) * t
        case "blink":
            shown = ((np.arange(t.size) / rng.uniform(4, 6.5) + rng.random()) % 1 < 0.55) * 1.0
        case "steady":
            pass
        case _:
            raise ValueError(f"unknown manner {manner!r}; use one of {', '.join(language.MANNERS)}")
    return size, angle, shown


def _body(rng, x_THW, y_THW, at_T2, size_T, angle_T) -> Float[np.ndarray, "T H W"]:
    """Returns the mask of a random shape; all shapes look different when rotated."""

    def column(x_T):
        return x_T.astype(np.float32)[:, None, None]

    dx, dy = x_THW - column(at_T2[:, 0]), y_THW - column(at_T2[:, 1])
    cos, sin, size = column(np.cos(angle_T)), column(np.sin(angle_T)), column(size_T)
    u, v = (cos * dx + sin * dy) / size, (cos * dy - sin * dx) / size
    match rng.integers(4):
        case 0:  # a bar
            shape = _box(u, v, 1.1, 0.42)
        case 1:  # a cross
            shape = np.minimum(_box(u, v, 1.1, 0.42), _box(u, v, 0.42, 1.1))
        case 2:  # a triangle
            shape = np.maximum(-v - 0.7, 0.87 * np.abs(u) + 0.5 * v - 0.55)
        case _:  # an L
            shape = np.minimum(_box(u + 0.5, v, 0.42, 1.1), _box(u, v - 0.7, 0.95, 0.4))
    return np.clip(0.5 - shape * size * SIZE / 2, 0, 1)


def _box(u, v, width: float, height: float):
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _background(rng, ground, x_THW, y_THW) -> Float[np.ndarray, "T H W 3"]:
    """Returns a plain, shaded, striped or checked background, which moves with the camera only."""
    angle, pitch = rng.uniform(0, 2 * np.pi), np.float32(rng.uniform(3, 9))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = cos * x_THW + sin * y_THW, cos * y_THW - sin * x_THW
    match rng.integers(4):
        case 0:
            pattern = np.zeros_like(along)
        case 1:
            pattern = along
        case 2:
            pattern = np.sin(pitch * along)
        case _:
            pattern = np.sign(np.sin(pitch * along) * np.sin(pitch * across))
    tint = np.float32(rng.normal(0, 0.05, 3))
    return np.float32(ground) + rearrange(pattern, "t h w -> t h w 1") * tint


def _light_colour(rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """Returns a light colour of any hue: one channel is at least 0.9 and the mean is high."""
    colour = rng.uniform(0.3, 1, 3)
    colour[rng.integers(3)] = rng.uniform(0.9, 1)
    return np.maximum(colour, colour + 0.62 - colour.mean()).clip(0, 1)


def _paint(image_THWC, mask_THW, colour):
    mask = rearrange(mask_THW, "t h w -> t h w 1")
    return image_THWC + mask * (np.float32(colour) - image_THWC)
