"""The commands that the documentation shows: each is checked, and those that can be are run.

`make test` runs the pages whose commands take seconds, `make doc_commands` also the others.
"""

import contextlib
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import coco_jax
from coco_jax.config import default, flatten
from coco_jax.data import samples
from coco_jax.errors import UserError
from coco_jax.recognition.feature_recognizer import FeatureRecognizer
from coco_jax.recognition.parts import Parts, TextEncoder, unit
from tests.helpers import doc_commands
from tests.helpers.rankers import COLOURS, coloured
from tests.helpers.runs import ROOT, result

COMMANDS = doc_commands.of_pages()
PAGES = sorted({command.page for command in COMMANDS})
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
WRONG = (SystemExit, ValueError, UserError)


@pytest.mark.parametrize("page", PAGES)
def test_names_flags_and_values_of_all_commands_exist(page, capsys):
    wrong = []
    for command in COMMANDS:
        if command.page == page:
            try:
                doc_commands.check(command.text, command.in_text)
            except WRONG as error:
                wrong.append(f"{command}\n    {error} {capsys.readouterr().err}")
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def known_flags():
    return doc_commands.flags_of_commands()


def is_flag(text: str, known_flags) -> bool:
    """Whether a command has this flag, and accepts its value; words in capitals stand for a value."""
    name, _, value = text.removeprefix("--").partition("=")
    if name.startswith("config."):
        return name.removeprefix("config.") in flatten(default().to_dict())
    parsed = False
    for flag in known_flags.get(name, known_flags.get(name.removeprefix("no"), ())):
        with contextlib.suppress(ValueError):
            if value and not value.isupper():
                flag.parser.parse(value)
            parsed = True
    return parsed


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("launch")])
def test_flags_in_sentences_are_flags_of_a_command(page, known_flags):
    wrong = [
        f"{page}:{line}: {flag}"
        for line, code in doc_commands.flags_in_sentences((ROOT / page).read_text())
        for flag in doc_commands.split(code)
        if not is_flag(flag, known_flags)
    ]
    assert not wrong
    assert not any(is_flag(flag, known_flags) for flag in ("--topp", "--top=x", "--config.sed"))


@pytest.mark.parametrize(
    "command, said",
    [
        ('coco-jax predict a.mp4 --actoins="a, b"', "Unknown command line flag 'actoins'"),
        ("coco-jax predict a.mp4 --top=0", "not a positive integer"),
        ("coco-jax train --config=dmeo", "neither a file nor a config of the package"),
        (
            "coco-jax train --config=demo --config.optimizer.stesp=3",
            "no field config.optimizer.stesp",
        ),
        ("coco-jax train --config=demo --config.optimizer.steps=-3", "must be from"),
        ("coco-jax train --config=demo --config.sweep.ablation=\"('ful',)\"", "ablation"),
        ("coco-jax train --config=zero_shot_clip_b16:k500_zsar", "k500_zsar"),
        ("coco-jax train --config=demo more", "is not a flag"),
        ("coco-jax predcit a.mp4", "no command predcit"),
        ("coco-jax index find INDEX", "is no action"),
        ("coco-jax compare A", "1 words"),
        ("coco-jax data build motion", "no dataset motion"),
        ("coco-jax data build actionhub/stater", "no config stater"),
        ("coco-jax sweep --config=demo --search=model.tua=log:0.1:1", "model.tua"),
        ("coco-jax export pretrained --format=onxx --output=x", "onxx"),
        ("python -m coco_jax.mian --config=demo", "no file coco_jax/mian.py"),
        ("python -m coco_jax.main --config=demo --wrokdir=x", "wrokdir"),
        ("python -m benchmarks.timeline --clisp=FOLDER", "no flag --clisp"),
        ("python -m pytest tests/predcit_test.py -k label", "no file tests/predcit_test.py"),
        ('pip install "coco_jax[zero-shot,trian]"', "no extra trian"),
        ("make motoin", "motoin"),
        ("launch/local.sh --proceses=2 -- --config=demo", "proceses"),
        ("launch/local.sh --processes=2 -- --config=demo --modee=train", "modee"),
    ],
)
def test_wrong_commands_are_found(command, said, capsys):
    with pytest.raises(WRONG) as caught:
        doc_commands.check(command)
    assert said in f"{caught.value} {capsys.readouterr().err}"


PAGE = """Text with `coco-jax predict
--timeline`, and `make demo`, but `coco_jax.load()`.

    $ coco-jax predict "a b.mp4" \\
        --top=3   # the best
    a.mp4
       45.7%  make believe
    X="--config=demo"
    JAX_PLATFORMS=cpu python -m coco_jax.main $X && make test

    predict.load("coco-jax predict")

```sh
pip install .
```
"""


def test_commands_are_found_in_blocks_and_in_sentences():
    found = [(c.line, c.text, c.in_text) for c in doc_commands.find("page.md", PAGE)]
    assert found == [
        (4, 'coco-jax predict "a b.mp4" --top=3   # the best', False),
        (9, "python -m coco_jax.main --config=demo", False),
        (9, "make test", False),
        (14, "pip install .", False),
        (1, "coco-jax predict --timeline", True),
        (2, "make demo", True),
    ]
    assert doc_commands.split(found[0][1]) == ["coco-jax", "predict", "a b.mp4", "--top=3"]
    assert doc_commands.split("coco-jax train --config=CONFIG [--config.FIELD=VALUE ...]") == [
        "coco-jax", "train", "--config=demo", "--config.seed=3", "...",
    ]  # fmt: skip


# Commands that are checked but not run here, by a regular expression for the whole command: the test
# that runs such a command on small data, or the reason why there is none.
NOT_RUN = {
    r"(\.venv/bin/)?pip .*": "tests/clean_install.sh",
    r"make .*": "it installs, or takes minutes; what it runs are commands of pages, or tests",
    r"(gcloud|docker) .*": "it needs a cloud",
    r"launch/(?!local).*": "tests/launch_test.py",
    r"launch/local.*": "tests/main_test.py",
    r"(/usr/bin/time|python -m benchmarks\.|python -m tests\.|\.venv/bin/python -c).*": "a measurement",
    r"python -m tfds_builders\.actionhub\.check_corpus .*": (
        "tests/tfds_builders/actionhub/check_corpus_test.py"
    ),
    r"python -m coco_jax\.main .*": "tests/main_test.py",
    r"(coco-jax|python -m coco_jax\.)\s?compile .*": "tests/compile_test.py",
    r"coco-jax train --config=(k400_zsar|demo|CONFIG) .*": "tests/main_test.py",
    r"coco-jax train --config=k400_zsar": "tests/configs_test.py",
    r"coco-jax train --config=zero_shot.*": "tests/evaluation/frozen_test.py",
    r"coco-jax sweep .*": "tests/sweep_test.py",
    r"coco-jax predict --towers=.*": "tests/recognition/towers_test.py",
    r"coco-jax serve .*": "tests/serving/serve_test.py",
    r"curl .*": "tests/serving/app_test.py",
    r"coco-jax index build .*Flink.*": "tests/recognition/index_test.py",
    r".* --beam_pipeline_options=.*": "tests/tfds_builders/common/builder_test.py",
    r".* ucf101_zsar/.*": "tests/tfds_builders/ucf101_zsar/ucf101_zsar_dataset_builder_test.py",
    r".* hmdb51_zsar/.*": "tests/tfds_builders/hmdb51_zsar/hmdb51_zsar_dataset_builder_test.py",
    r".* kinetics_zsar/.*": "tests/tfds_builders/kinetics_zsar/kinetics_zsar_dataset_builder_test.py",
    r".* mveb/.*": "tests/tfds_builders/mveb/mveb_dataset_builder_test.py",
    r".* motion_zsar .*|.* actionhub/motion .*": "conftest.py",
    r".* kinetics_prototypes .*": (
        "tests/tfds_builders/kinetics_prototypes/kinetics_prototypes_dataset_builder_test.py"
    ),
    r"python .* actionhub/(starter|manual) .*": (
        "tests/tfds_builders/actionhub/actionhub_dataset_builder_test.py"
    ),
    r".* actionhub/(ez_clip_k400|ucf101_zsar) .*": "tests/tfds_builders/actionhub/benchmarks_test.py",
    r".* actionhub/captions .*": "tests/tfds_builders/actionhub/captions_test.py",
}  # fmt: skip
ACTIONS = ("juggling", "archery", "fencing", "pouring coffee")
# What the commands of the pages write.
QUICK_PAGES = {
    "README.md": ("results.csv", "recognised.png"),
    "docs/predict.md": ("results.jsonl", "recognised.png"),
    "docs/index_search.md": ("INDEX/index.json",),
    "docs/export.md": ("FOLDER/video.onnx", "FOLDER/actions.safetensors"),
    "docs/datasets.md": ("data/video_folder/jpeg",),
    "tfds_builders/video_folder/README.md": ("data/video_folder/video",),
    "tfds_builders/video_features/README.md": ("data/video_features",),
}
LONG_PAGES = ("docs/own_data.md", "docs/protocols.md", "docs/report.md")
# More flags for `coco-jax train`.
SHORT = ("--config.optimizer.steps=3", "--config.sweep.ablation=('full',)")


def not_run(command: doc_commands.Command) -> str:
    """Why a command is not run here; empty if it is."""
    return next((why for form, why in NOT_RUN.items() if re.fullmatch(form, command.text)), "")


def complete(page: str) -> list[doc_commands.Command]:
    """The commands of a page that are run."""
    return [c for c in COMMANDS if c.page == page and not c.in_text and not not_run(c)]


def test_each_command_is_run_or_has_a_reason():
    for page in PAGES:
        if page not in (*QUICK_PAGES, *LONG_PAGES):
            assert not complete(page), f"neither run nor in NOT_RUN: {complete(page)[0]}"
    for form, why in NOT_RUN.items():
        assert any(re.fullmatch(form, c.text) for c in COMMANDS), (
            f"no page has such a command: {form}"
        )
        assert " " in why or (ROOT / why).is_file(), why


class RandomTexts(TextEncoder):
    """Embeds each text as a vector of its own."""

    def __init__(self):
        self.map_UW = None

    def unmapped(self, texts, batch=64):
        x_NW = [np.random.default_rng(list(text.encode())).normal(size=768) for text in texts]
        return unit(np.stack(x_NW).astype(np.float32))


@pytest.fixture(scope="module")
def stand_in():
    """The pretrained recogniser with quick functions in place of I3D and the text encoder."""
    kernel = np.random.default_rng(0).normal(size=(224 * 3, 1024)).astype(np.float32)

    def embed(params, clips):
        means = jnp.asarray(clips).astype(jnp.float32).mean((1, 2)).reshape((-1, 224 * 3))
        return jax.nn.relu((means / 127.5 - 1) @ kernel)

    parts = Parts.published("minilm_to_mpnet")
    parts = parts._replace(unmapped_labels_AU=None, encoder=RandomTexts)
    recognizer = coco_jax.PretrainedRecognizer(parts=parts)
    recognizer._embed = embed
    return recognizer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files that the commands of the pages name."""
    folder = tmp_path_factory.mktemp("files")
    colours = list(COLOURS)
    for name in ("a.mp4", "b.mp4", "b.mkv", "new.mp4", "clips/deep/c.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(coloured(("red", 3), ("blue", 1)))
    (folder / "long.mp4").write_bytes(coloured(("green", 4), ("red", 4)))
    pictures = [Image.new("RGB", (48, 32), colour) for colour in colours]
    pictures[0].save(folder / "b.gif", save_all=True, append_images=pictures[1:], duration=500)
    for k, action in enumerate(ACTIONS):
        (folder / "videos" / action).mkdir(parents=True)
        for n in range(3):
            video = coloured((colours[k % 3], 1 + k / 10), (colours[n], 1))
            (folder / "videos" / action / f"{n}.mp4").write_bytes(video)
    texts = [
        f"{action},somebody is {action} in a {where}"
        for action in ACTIONS
        for where in ("park", "hall")
    ]
    (folder / "own/texts").mkdir(parents=True)
    (folder / "own/texts/descriptions.csv").write_text("\n".join(["action,description", *texts]))
    (folder / "own/unseen.txt").write_text("\n".join(ACTIONS[-2:]))
    return folder


@pytest.fixture
def run_page(files, stand_in, tmp_path, monkeypatch, capsys):
    """Runs the commands of a page in their order: `run_page(page)`; gives what they print.

    The working folder is a copy of `files`, and FOLDER is a folder of videos, unless the page writes it.
    """
    folder, load = tmp_path / "here", coco_jax.load
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(coco_jax, "load", lambda w=None, t=None: load(w, t) if w or t else stand_in)
    monkeypatch.setattr(FeatureRecognizer, "source", stand_in)
    monkeypatch.setattr(samples, "fetch", lambda: [folder / "long.mp4"])

    def run(page: str) -> str:
        if page == "tfds_builders/video_features/README.md":
            shutil.copytree("videos", "VIDEOS")
        elif page != "docs/export.md":
            shutil.copytree("videos", "FOLDER", dirs_exist_ok=True)
        printed = ""
        for command in complete(page):
            code = doc_commands.run(command.text, *(SHORT if " train " in command.text else ()))
            out, err = capsys.readouterr()
            assert code == 0, f"{command}\n{out}{err}"
            printed += out
        return printed

    return run


@pytest.mark.parametrize("page", QUICK_PAGES)
def test_commands_of_a_page_run_to_their_end(page, run_page):
    printed = run_page(page)
    assert printed
    for name in QUICK_PAGES[page]:
        assert os.path.exists(name), name


@pytest.mark.doc_commands
def test_own_data_are_trained_on_reported_certified_and_compared(run_page, tmp_path):
    printed = run_page("docs/own_data.md")
    assert all(action in printed.partition("new.mp4")[2] for action in ACTIONS[-2:])
    run = tmp_path / "here/runs/own/full/split1/seed0"
    assert set(result(run)["unseen_classes"]) == set(ACTIONS[-2:])
    for name in ("RUN", "A", "B"):
        os.symlink(run, name)
    os.symlink("own", "runs/motion")
    printed = run_page("docs/protocols.md")
    assert '"right"' in printed and '"wrong"' not in printed
    run_page("docs/report.md")
    pages = tmp_path / "here"
    assert "full" in (pages / "report.html").read_text()
    assert "a.mp4" in (pages / "answers.html").read_text()
