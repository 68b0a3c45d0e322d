"""The commands that the documentation shows: each is checked, and most are run."""

import contextlib

import pytest

from coco_jax.config import default, flatten
from coco_jax.errors import UserError
from tests.helpers import doc_commands
from tests.helpers.runs import ROOT

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
