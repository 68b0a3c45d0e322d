"""Descriptions of classes that other people published: where the files are, and what they contain.

The texts are not part of this project. A configuration of `actionhub` reads one file, which the user
placed or which is downloaded; checksums.tsv has the SHA-256 of each. docs/texts.md says more.
"""

from typing import NamedTuple

_ER = (
    "https://raw.githubusercontent.com/DeLightCMU/ElaborativeRehearsal/e3130fd/datasets/{}/"
    "classes{}_label_defn.json"
)
_EZ_CLIP = (
    "https://raw.githubusercontent.com/Shahzadnit/EZ-CLIP/2f4d622/GPT_discription/"
    "{}_gpt_Class_discription_new.csv"
)
_STDD = "https://raw.githubusercontent.com/Mia-YatingYu/MTP/8201647/label_db/classes_xprompt_{}.yml"


class Recipe(NamedTuple):
    """A published file of descriptions.

    Attributes:
      url: of the file, at a fixed commit.
      about: what it contains.
    """

    url: str
    about: str


def _recipes() -> dict[str, Recipe]:
    definitions = "Definitions of the classes of {}, from Elaborative Rehearsal (arXiv 2108.02833)."
    generated = "A description by GPT-3 of each class of {}, from EZ-CLIP (arXiv 2312.08010)."
    augmented = "Phrases by GPT-3.5 on objects and steps of {}, from STDD (arXiv 2412.09895)."
    found = {}
    for name, place, count, of in (
        ("er_kinetics", "Kinetics/zsl220", "620", "Kinetics-ZSAR"),
        ("er_ucf101", "UCF101", "", "UCF101"),
        ("er_hmdb51", "HMDB51", "", "HMDB51"),
    ):
        found[name] = Recipe(_ER.format(place, count), definitions.format(of))
    for name, file, of in (
        ("ez_clip_k400", "Kinetic_400", "Kinetics-400"),
        ("ez_clip_k600", "K_600", "Kinetics-600"),
        ("ez_clip_ucf101", "UCF_101", "UCF101"),
        ("ez_clip_hmdb51", "HMDB", "HMDB51"),
    ):
        found[name] = Recipe(_EZ_CLIP.format(file), generated.format(of))
    for name, of in (("k400", "Kinetics-400"), ("ucf101", "UCF101"), ("hmdb51", "HMDB51")):
        found[f"stdd_{name}"] = Recipe(_STDD.format(name), augmented.format(of))
    return found


RECIPES = _recipes()
