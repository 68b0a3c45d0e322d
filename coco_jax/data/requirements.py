"""The files to download by hand before a dataset can be built; used by errors and builders."""

from typing import NamedTuple


class Requirement(NamedTuple):
    """Files to download, their size, and where to put them; FOLDER is the builder's --manual_dir."""

    fetch: str
    size: str
    put: str


# Every dataset that tfds_builders/ can build; None if nothing has to be downloaded.
REQUIREMENTS: dict[str, Requirement | None] = {
    "motion_zsar": None,
    "actionhub": Requirement(
        fetch="descriptions of the actions: ActionHub if you have it, or public captions (VATEX, "
        "ActivityNet Captions), or your own; no public download of ActionHub is known",
        size="up to 0.5 GB (3.6 million rows)",
        put="FOLDER/*.jsonl, *.csv, *.json or ACTION.txt; tfds_builders/actionhub/README.md",
    ),
    "actionhub/motion": None,
    "actionhub/starter": None,
    "kinetics_prototypes": None,
    "kinetics_zsar": Requirement(
        fetch="Kinetics-400 train, Kinetics-600 val and test (.tar.gz shards), with their annotation "
        "CSVs: https://github.com/cvdfoundation/kinetics-dataset",
        # Kinetics-600: FiftyOne's dataset zoo; Kinetics-400: estimated, with the same size per video.
        size="about 370 GB (240,000 videos) + 43 GB + 88 GB; the built dataset takes as much again",
        put="FOLDER/k400/train, FOLDER/k600/val, FOLDER/k600/test; CSVs as FOLDER/k400/train.csv, "
        "FOLDER/k600/val.csv, FOLDER/k600/test.csv",
    ),
    "ucf101_zsar": Requirement(
        fetch="nothing, the command downloads it; or UCF101.rar from "
        "https://www.crcv.ucf.edu/data/UCF101.php",
        size="7 GB (13,320 videos); the built dataset takes as much again",
        put="FOLDER/UCF101.rar or FOLDER/UCF-101 if you have it; otherwise leave out --manual_dir",
    ),
    "hmdb51_zsar": Requirement(
        fetch="hmdb51_org.rar and test_train_splits.rar: "
        "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/",
        size="2 GB (6,766 videos); the built dataset takes as much again",
        put="FOLDER/hmdb51_org.rar, FOLDER/test_train_splits.rar (or both extracted)",
    ),
    "mveb": Requirement(
        fetch="nothing, the command downloads the files from Hugging Face; or copy test-*.parquet of "
        "the data set (tfds_builders/mveb/README.md) from another machine",
        size="that of 1,530 (hmdb51) to 11,190 videos (kinetics700); the built dataset takes as much",
        put="FOLDER/test-*.parquet if you have them; otherwise leave out --manual_dir",
    ),
    "video_folder": Requirement(
        fetch="nothing: these are your own videos",
        size="the size of your videos",
        put="FOLDER/ACTION/video.mp4, and in FOLDER/unseen.txt the actions not to train on",
    ),
    "video_features": Requirement(
        fetch="nothing: these are features that you extracted",
        size="the size of your features",
        put="FOLDER/features.npz (arrays features, ids) and FOLDER/videos.csv (video_id,label)",
    ),
}


# Configs of actionhub whose file the builder downloads begin with one of these.
PUBLISHED = ("er_", "ez_clip_", "stdd_")


def requirement(name: str) -> Requirement | None:
    """The requirement of `name` or `name/config`; None if nothing has to be downloaded.

    Raises:
      KeyError: no builder makes such a dataset.
    """
    if name.startswith(tuple(f"actionhub/{prefix}" for prefix in PUBLISHED)):
        return None
    return REQUIREMENTS[name] if name in REQUIREMENTS else REQUIREMENTS[name.partition("/")[0]]
