"""Actions, names and descriptions of motion_zsar.

An action combines a *path* with a *manner* (`fall` + `spin`). Its name is an invented word that says
little about it, as "krumping" does to readers who do not know the dance; the descriptions say what
happens. Everything is generated from fixed seeds, so the corpus is always the same.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator

SEED = 2401_11654

PATHS: dict[str, tuple[str, ...]] = {
    "slide": (
        "sliding sideways",
        "gliding across the screen",
        "crossing from one side to the other",
        "passing by horizontally",
        "travelling straight across",
        "moving from edge to edge",
        "drifting along a level line",
        "going across in a straight line",
    ),
    "rise": (
        "rising",
        "climbing to the top",
        "going up",
        "floating upward",
        "lifting off",
        "ascending straight up",
        "moving upward like a balloon",
        "soaring from bottom to top",
    ),
    "fall": (
        "falling",
        "dropping to the bottom",
        "going down",
        "sinking",
        "plunging downward",
        "descending straight down",
        "coming down like a stone",
        "tumbling from top to bottom",
    ),
    "circle": (
        "going round in a circle",
        "circling",
        "looping around the middle",
        "running a round lap",
        "following a ring",
        "tracing a circular track",
        "making a round trip",
        "wheeling about",
    ),
    "zigzag": (
        "zigzagging",
        "weaving up and down on the way across",
        "moving in a jagged line",
        "swerving back and forth",
        "following a saw-tooth path",
        "darting along sharp corners",
        "slaloming",
        "wriggling across",
    ),
    "bounce": (
        "bouncing",
        "hopping on the spot",
        "jumping again and again",
        "springing off the floor",
        "leaping up and landing repeatedly",
        "bobbing like a rubber ball",
        "skipping in place",
        "rebounding from the ground",
    ),
    "meet": (
        "meeting and parting",
        "running into each other",
        "colliding and backing off",
        "coming together, then separating",
        "bumping head-on",
        "touching and going back",
        "crashing and recoiling",
        "approaching one another and retreating",
    ),
    "orbit": (
        "orbiting each other",
        "turning around one another",
        "waltzing about a common centre",
        "revolving as a couple",
        "swinging round each other like twin stars",
        "dancing around a shared point",
        "going around as partners",
        "whirling as a duo",
    ),
}
MANNERS: dict[str, tuple[str, ...]] = {
    "grow": (
        "getting bigger", "growing", "swelling", "becoming larger and larger", "expanding",
        "inflating", "gaining size", "blowing up",
    ),
    "shrink": (
        "getting smaller", "shrinking", "dwindling", "becoming tinier and tinier", "contracting",
        "deflating", "losing size", "fading to a dot",
    ),
    "spin": (
        "spinning", "rotating fast", "twirling", "turning like a propeller", "pirouetting",
        "whirling like a top", "gyrating", "rolling over and over",
    ),
    "blink": (
        "blinking", "flashing on and off", "flickering", "vanishing and coming back",
        "winking like a beacon", "appearing and disappearing", "strobing", "twinkling",
    ),
    "steady": (
        "keeping its form", "staying the same all along", "without any change", "unaltered",
        "holding steady", "with constant looks", "remaining as it was", "calm and even",
    ),
}  # fmt: skip
PAIRED = frozenset({"meet", "orbit"})  # paths of two bodies

_COINED = (
    "tamble", "corvet", "pirlo", "quiddle", "harl", "zanner", "mooch", "fardel", "brisk", "oxter",
    "wimble", "dapse", "keld", "lunnet", "sprag", "thrum", "vennel", "yark", "bodkin", "clough",
    "eldin", "gimmer", "hask", "jorum", "knosp", "limber", "merle", "nidget", "orlop", "pleach",
    "quern", "rundle", "scrod", "trivet", "ullage", "voider", "whin", "xebec", "yapp", "zax",
)  # fmt: skip
_FAMILY = {"slide": "run", "zigzag": "run", "circle": "run", "rise": "hop", "fall": "hop",
           "bounce": "hop", "meet": "duet", "orbit": "duet"}  # fmt: skip
_ONE = (
    "a shape", "an object", "something", "a small figure", "a coloured piece", "one body",
    "a block", "a little thing", "the figure", "a cut-out",
)  # fmt: skip
_TWO = (
    "two shapes", "a pair of figures", "two objects", "both bodies", "two little things",
    "a couple of pieces", "two blocks", "two cut-outs",
)  # fmt: skip
_DETAILS = (
    "in front of a plain backdrop", "on a striped wall", "while the camera shakes a bit",
    "filmed at dusk", "seen from the front", "near some clutter", "in warm colours",
    "in a short clip", "for the second time today", "with nobody around", "on a checked floor",
    "under soft light", "recorded by hand", "as the day ends", "at its own pace",
)  # fmt: skip
_VAGUE = (
    "a short clip of something happening", "watch until the end", "you will not believe this",
    "an old favourite of mine", "test recording number two", "what a day", "just a video",
    "part three of the series", "nothing much to say about it", "my entry for the contest",
)  # fmt: skip
DESCRIPTIONS_PER_ACTION = 100
CLIPS_PER_ACTION = 40


@dataclasses.dataclass(frozen=True)
class Action:
    """An action.

    Attributes:
      name: label of the action.
      path: key of `PATHS`.
      manner: key of `MANNERS`.
    """

    name: str
    path: str
    manner: str


def _actions() -> tuple[tuple[Action, ...], tuple[Action, ...]]:
    rng = random.Random(SEED)
    pairs = list(itertools.product(PATHS, MANNERS))
    rng.shuffle(pairs)
    actions = [
        # Every other name has a second word, shared by several paths: a hint, as in real labels.
        Action(f"{coined} {_FAMILY[path]}" if i % 2 else coined, path, manner)
        for i, (coined, (path, manner)) in enumerate(zip(_COINED, pairs, strict=True))
    ]
    by_name = sorted(actions[:32], key=lambda a: a.name), sorted(actions[32:], key=lambda a: a.name)
    return tuple(by_name[0]), tuple(by_name[1])


ACTIONS, AUXILIARY = _actions()
"""The 32 actions that have videos, and the 8 that have descriptions only."""


def class_splits() -> dict[str, dict[str, list[str]]]:
    """Returns the three class splits, `{"1": {"seen": 24 names, "unseen": 8 names}, ...}`.

    Every path and every manner occurs in at least two seen actions, so unseen actions are new
    combinations of seen paths and manners. Two splits have at most half of the unseen actions in
    common.
    """
    rng = random.Random(SEED + 1)
    splits: list[set[str]] = []
    while len(splits) < 3:
        unseen = set(rng.sample([a.name for a in ACTIONS], 8))
        seen = [a for a in ACTIONS if a.name not in unseen]
        covered = all(sum(a.path == p for a in seen) >= 2 for p in PATHS) and all(
            sum(a.manner == m for a in seen) >= 2 for m in MANNERS
        )
        if covered and all(len(unseen & other) <= 4 for other in splits):
            splits.append(unseen)
    return {
        str(i + 1): {
            "seen": [a.name for a in ACTIONS if a.name not in unseen],
            "unseen": [a.name for a in ACTIONS if a.name in unseen],
        }
        for i, unseen in enumerate(splits)
    }


def video_id(action: Action, clip: int) -> str:
    """Returns the id of a clip, such as "harl_run_007".

    Args:
      action: the action.
      clip: index of the clip, from 0.
    """
    return f"{action.name.replace(' ', '_')}_{clip:03d}"


def describe(action: Action, rng: random.Random) -> str:
    """Generates a description of an action; about one in eight does not mention the motion.

    Args:
      action: the action.
      rng: random generator, which is advanced.
    """
    kind = rng.random()
    if kind < 0.12:
        return rng.choice(_VAGUE)
    subject = rng.choice(_TWO if action.path in PAIRED else _ONE)
    path, manner = rng.choice(PATHS[action.path]), rng.choice(MANNERS[action.manner])
    if kind < 0.18:
        text = f"{subject} {path}"
    elif kind < 0.24:
        text = f"{subject}, {manner}"
    else:
        text = rng.choice(
            (
                f"{subject} {path}, {manner}",
                f"{subject} {path} and {manner}",
                f"{manner}, {subject} {path}",
                f"{subject}, {manner}, {path}",
                f"{subject} {path} while {manner}",
                f"{path} and {manner}: {subject}",
            )
        )
    if rng.random() < 0.4:
        detail = rng.choice(_DETAILS)
        text = f"{text} {detail}" if rng.random() < 0.7 else f"{detail}, {text}"
    return text


def corpus() -> Iterator[dict[str, str]]:
    """Yields the rows of the description corpus: action, description, source, video_id.

    One in five descriptions has the id of a clip, train or test, as in a corpus collected from the
    web; an evaluation must leave out those of test clips. For all others, video_id is "".
    """
    for action in ACTIONS + AUXILIARY:
        rng = random.Random(f"{SEED}/{action.name}")
        for _ in range(DESCRIPTIONS_PER_ACTION):
            text = describe(action, rng)
            collected = action in ACTIONS and rng.random() < 0.2
            yield {
                "action": action.name,
                "description": text,
                "source": "video caption" if collected else "definition",
                "video_id": video_id(action, rng.randrange(CLIPS_PER_ACTION)) if collected else "",
            }
