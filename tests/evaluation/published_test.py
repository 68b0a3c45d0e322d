"""The checksums of published class lists against the lists themselves."""

import json
import pathlib

import pytest

from coco_jax.evaluation import published

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared" / "annotations"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real class lists: {REAL} is absent")

# The unseen classes of TruZe (arXiv 2107.13029), written as in github.com/kini5gowda/TruZe, ZSL.txt.
TRUZE = """
Apply Lipstick, Balance Beam, Billiards, Blow Dry Hair, Fencing, Field Hockey Penalty, Front Crawl,
Hammering, Handstand Pushups, Handstand Walking, Horse Race, Ice Dancing, Jumping Jack, Military Parade,
Mixing, Nunchucks, Parallel Bars, Pizza Tossing, Playing Daf, Playing Dhol, Playing Sitar, Playing Tabla,
Pommel Horse, Rafting, Rowing, Still Rings, Sumo Wrestling, Table Tennis Shot, Uneven Bars, Wall Pushups,
YoYo;
Chew, Climb Stairs, Draw Sword, Fall Floor, Fencing, Flic Flac, Handstand, Hit, Jump, Kick, Pick, Pour,
Run, Sit, Shoot Gun, Smile, Stand, Sword Exercise, Talk, Turn, Walk, Wave
"""
TRUZE_UCF101, TRUZE_HMDB51 = (
    [" ".join(name.split()) for name in part.split(",")] for part in TRUZE.split(";")
)


def lines(name: str) -> list[str]:
    return (REAL / name).read_text().splitlines()


def lists() -> dict[str, list[str]]:
    """Every list of the table, from the published files; those of TruZe from the names above."""
    found = {
        **{f"Kinetics-{n}": lines(f"kinetics/label_map_k{n}.txt") for n in (400, 600, 700)},
        "UCF101": lines("ucf101/label_map.txt"),
        "HMDB51": lines("hmdb51/label_map.txt"),
    }
    kinetics = REAL / "kinetics"
    names = [
        row["word"] for row in json.loads((kinetics / "classes620_label_defn.json").read_text())
    ]
    found["Kinetics-ZSAR, all new classes"] = names[400:]
    for kind, file in (("test", "tst"), ("validation", "val")):
        indices = json.loads((kinetics / f"{file}_class_idxs.json").read_text())
        for split, chosen in enumerate(indices, 1):
            found[f"Kinetics-ZSAR split {split}, {kind} classes"] = [names[i] for i in chosen]
    for dataset, unseen in (("UCF101", TRUZE_UCF101), ("HMDB51", TRUZE_HMDB51)):
        keys = {published.normal_sha256([name]) for name in unseen}
        seen = [name for name in found[dataset] if published.normal_sha256([name]) not in keys]
        assert len(seen) + len(unseen) == len(found[dataset])
        found[f"TruZe {dataset}, unseen classes"] = unseen
        found[f"TruZe {dataset}, seen classes"] = seen
    return found


@real
def test_table_has_the_checksums_of_the_published_lists():
    wanted = lists()
    assert {row.name: (row.classes, row.sha256) for row in published.table()} == {
        name: (len(names), published.normal_sha256(names)) for name, names in wanted.items()
    }
    counts = {name: len(names) for name, names in wanted.items()}
    assert counts["Kinetics-ZSAR, all new classes"] == 220
    assert counts["Kinetics-ZSAR split 1, test classes"] == 160
    assert (
        counts["TruZe UCF101, unseen classes"] == 31 and counts["TruZe HMDB51, seen classes"] == 29
    )


@real
def test_a_list_is_found_in_any_order_and_spelling_and_only_if_it_is_complete():
    names = lines("ucf101/label_map.txt")
    assert published.find(names) == ["UCF101"]
    assert published.find([f"{name[:1].lower()}{name[1:]}" for name in reversed(names)]) == [
        "UCF101"
    ]
    assert published.find(names[1:]) == []
    assert published.find([*names[1:], "juggling"]) == []
    assert published.find([*names[1:], names[1]]) == []


def test_every_row_has_a_source_and_a_checksum_of_its_own():
    rows = published.table()
    assert len({row.sha256 for row in rows}) == len(rows) >= 16
    assert all(len(row.sha256) == 64 and row.source.startswith("github.com/") for row in rows)


def test_lists_with_one_class_spelled_differently_have_the_same_normal_checksum():
    assert published.normal_sha256(["PushUps", "a"]) == published.normal_sha256(["a", "push up"])
    assert published.ordered_sha256(["PushUps"]) != published.ordered_sha256(["push up"])
