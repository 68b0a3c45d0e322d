"""Matches the names of actions to the classes of a benchmark, regardless of spelling.

Kinetics writes "push up", UCF101 "PushUps", HMDB51 "pushup"; `normal` gives all three the same key.
Classes that Kinetics-600 renamed are in the table `RENAMED`. Does not import TensorFlow.
"""

import collections
import functools
import re
import threading
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import snowballstemmer

# The 12 classes of Kinetics-400 that Kinetics-600 has under another name: old name, new name.
# The new names are those of the 600 that are not among the 620 (400 + 220 new) classes of
# classes620_label_defn.json, which uses the old names (github.com/DeLightCMU/ElaborativeRehearsal
# at e3130fd). The old names are those of the label map of Kinetics-400
# (github.com/open-mmlab/mmaction2 at 4d6c9347, tools/data). `normal` does not apply this table,
# because Kinetics-700 has both classes "baby waking up" and "waking up".
RENAMED = {
    "baby waking up": "waking up",
    "balloon blowing": "inflating balloons",
    "changing wheel": "changing wheel (not on bike)",
    "cooking sausages": "cooking sausages (not on barbeque)",
    "dying hair": "dyeing hair",
    "garbage collecting": "person collecting garbage",
    "hugging": "hugging (not baby)",
    "making bed": "making the bed",
    "opening bottle": "opening bottle (not wine)",
    "passing American football (not in game)": "passing american football (not in game)",
    "throwing ball": "throwing ball (not baseball or American football)",
    "tying tie": "tying necktie",
}

_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W\d_]+|\d+")
_QUALIFIER = re.compile(r"\s*\([^()]*\)\s*$")
_ARTICLES = {"a", "an", "the"}
_APOSTROPHES = re.compile("['’ʼ`]")


class Match(NamedTuple):
    """The result of `match`; actions and classes are in the order in which they were given."""

    found: dict[str, str]  # action -> class
    unmatched_actions: list[str]
    unmatched_classes: list[str]
    ambiguous: dict[str, list[str]]  # action -> the classes that match it; not in `found`


def normal(name: str) -> str:
    """The key of a name; different spellings of a name have the same key.

    The key does not depend on case, underscores, hyphens, spaces, CamelCase, punctuation, articles,
    plurals and the endings of verbs: "HandStandPushups" and "hand-stand push-up" have the same key,
    and so do "ride_bike" and "riding a bike". It depends on the words, including those in brackets,
    and on their order.
    """
    text = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", name))
    words = _WORD.findall(_CAMEL.sub(" ", text).casefold())
    kept = [word for word in words if word not in _ARTICLES] or words
    # Joined without spaces, so that "pull ups" equals "pullup", and "hand stand" equals "handstand".
    return "".join(map(_stem, kept))


class Classes:
    """The classes of a benchmark, with indices to look up an action."""

    def __init__(self, classes: Iterable[str]):
        self.classes = list(dict.fromkeys(classes))
        self._same = set(self.classes)
        self._letters, self._exact, self._bare = (collections.defaultdict(list) for _ in range(3))
        for name in self.classes:
            self._letters[_letters(name)].append(name)
            self._exact[normal(name)].append(name)
            if _bare(name) != name:
                self._bare[normal(_bare(name))].append(name)

    def hits(self, action: str) -> list[str]:
        """The classes that an action may name, by the first of these rules that finds any.

        1. The same spelling. 2. The same letters and digits. 3. The same key. 4. The other name of
        a class that was renamed. 5. The same key without the brackets at the end of one of the two
        names: "curling" matches "curling (sport)", but "pass (in game)" does not match "pass (not in
        game)".
        """
        key, without = normal(action), _bare(action)
        if not key:
            return []
        if action in self._same:
            return [action]
        others = [hit for other in _renamed().get(key, ()) for hit in self._exact.get(other, ())]
        bare = self._bare.get(key) if without == action else self._exact.get(normal(without))
        # By letters first: "PUSHUPS" cannot be split into words.
        return self._letters.get(_letters(action)) or self._exact.get(key) or others or bare or []


def match(actions: Iterable[str], classes: Iterable[str]) -> Match:
    """Finds the class that each action names; an action that matches several classes is ambiguous."""
    known = Classes(classes)
    found: dict[str, str] = {}
    unmatched: list[str] = []
    ambiguous: dict[str, list[str]] = {}
    for action in dict.fromkeys(actions):
        hits = known.hits(action)
        if not hits:
            unmatched.append(action)
        elif len(hits) == 1:
            found[action] = hits[0]
        else:
            ambiguous[action] = hits
    taken = set(found.values())
    return Match(found, unmatched, [name for name in known.classes if name not in taken], ambiguous)


def _letters(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(filter(str.isalnum, text))


def _bare(name: str) -> str:
    """A name without the brackets at its end; the name itself if the rest would be empty."""
    return _QUALIFIER.sub("", name) or name


@functools.cache
def _renamed() -> dict[str, list[str]]:
    """Maps the key of each old name to that of its new name, and the reverse."""
    other = collections.defaultdict(list)
    for old, new in RENAMED.items():
        if normal(old) != normal(new):
            other[normal(old)].append(normal(new))
            other[normal(new)].append(normal(old))
    return other


_STEMMER_LOCK = threading.Lock()  # a stemmer keeps the word that it works on


@functools.cache
def _stemmer() -> snowballstemmer.stemmer:
    return snowballstemmer.stemmer("english")


@functools.lru_cache(maxsize=1 << 14)
def _stem(word: str) -> str:
    if not (word.isascii() and word.isalpha()):
        return word  # digits and words beyond ASCII have no English endings
    with _STEMMER_LOCK:
        return _stemmer().stemWord(word)
