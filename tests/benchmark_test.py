"""The benchmark's claim, small: descriptions carry the transfer, and nothing else does."""

from tests import runs

CHANCE = 1 / 6  # of the classes held out for validation


def train(data_dir, workdir, steps, *flags):
    """The demo's model after a part of its training, on validation classes."""
    done = runs.call(
        *runs.command(
            runs.ROOT / "configs/demo.py", workdir, f"--config.data.dir={data_dir}",
            "--config.protocol=validation", "--config.sweep.ablation=('label+desc',)",
            f"--config.optimizer.steps={steps}", *flags,
        )
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return runs.result(workdir / "label+desc/split1/seed0")


def test_descriptions_transfer(data_dir, tmp_path):
    told = train(data_dir, tmp_path, 350)
    assert told["top1"] > 2.5 * CHANCE and told["generalised"]["seen"] > 0.3
    assert sum(map(sum, told["confusion"])) == told["unseen_videos"] == 240


def test_shuffled_descriptions_do_not(data_dir, tmp_path):
    """Each class told as another is: seen classes are learned as well, unseen ones are guessed."""
    shuffled = train(data_dir, tmp_path, 250, "--config.text.shuffle=True")
    assert shuffled["top1"] < 1.5 * CHANCE and shuffled["generalised"]["seen"] > 0.3
