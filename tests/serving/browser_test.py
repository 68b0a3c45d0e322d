"""The report and the page of the server in a real browser."""

import json
import pathlib

import pytest

from coco_jax.evaluation import report
from coco_jax.serving.answers import Limits
from coco_jax.serving.app import make_app
from tests.evaluation.report_test import NAMES, write_experiment
from tests.helpers import browser
from tests.helpers.rankers import ColourRanker, coloured
from tests.helpers.uploads import running

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(browser.executable() is None, reason="no Chromium is installed"),
]


@pytest.fixture(scope="module")
def page():
    with browser.opened() as opened:
        yield opened


def column(page, table: int, place: int) -> list[str]:
    cells = f"[...document.querySelectorAll('table.sortable')[{table}].tBodies[0].rows]"
    return page.run(
        f"{cells}.map(row => row.cells[{place}].dataset.value ?? row.cells[{place}].textContent)"
    )


def test_report_is_sorted_with_mouse_and_keyboard(page, tmp_path):
    write_experiment(tmp_path, NAMES)
    path = tmp_path / "report.html"
    path.write_text(report.draw([tmp_path]))
    page.open(path.as_uri())
    head = "document.querySelectorAll('table.sortable')[1].tHead.rows[0].cells[1]"
    page.run(f"{head}.querySelector('button').click()")
    values = [float(value) if value else None for value in column(page, 1, 1)]
    numbers = [value for value in values if value is not None]
    assert numbers == sorted(numbers) and len(numbers) > 2
    assert values[len(numbers) :] == [None] * (len(values) - len(numbers))  # missing ones are last
    assert page.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    page.run(f"{head}.querySelector('button').focus()")
    page.press("Enter")
    assert page.run(f"{head}.getAttribute('aria-sort')") == "descending"
    assert [float(v) for v in column(page, 1, 1) if v] == numbers[::-1]
    names = "document.querySelectorAll('table.sortable')[1].tHead.rows[0].cells[0]"
    page.run(f"{names}.querySelector('button').click()")
    found = column(page, 1, 0)
    assert found == sorted(found) and set(found) <= set(NAMES) and len(found) > 2
    assert page.run(f"{head}.hasAttribute('aria-sort')") is False
    assert page.problems == []
    assert all(a.startswith(("file:", "data:", "about:")) for a in page.addresses)


@pytest.mark.parametrize("dark", [False, True])
def test_report_can_be_read_in_light_and_dark(page, tmp_path, dark):
    """Contrast of at least 4.5 between text and page (WCAG 2.2, 1.4.3)."""
    write_experiment(tmp_path, NAMES)
    path = tmp_path / "report.html"
    path.write_text(report.draw([tmp_path]))
    page.open(path.as_uri(), dark=dark)
    colors = json.loads(
        page.run(
            """(() => { const style = getComputedStyle(document.documentElement);
            return JSON.stringify(Object.fromEntries(["--text", "--soft", "--mark", "--page"].map(
              name => [name, style.getPropertyValue(name).trim()]))); })()"""
        )
    )

    def luminance(color: str) -> float:
        shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    background = luminance(colors["--page"])
    assert (background < 0.2) == dark
    for name in ("--text", "--soft", "--mark"):
        high, low = sorted([luminance(colors[name]), background], reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_page_of_the_server_answers_and_scores_again(page, tmp_path):
    clip = tmp_path / "holiday.mp4"
    clip.write_bytes(coloured(("red", 2), ("green", 6)))
    page.problems.clear()
    page.addresses.clear()
    limits = Limits(duration=30)
    with running(make_app(ColourRanker(), limits)) as port:
        page.open(f"http://127.0.0.1:{port}/")
        answer_with(page, clip, "red, green, blue")
        page.wait("document.querySelector('.answer')")
        assert page.run("document.querySelector('.answer h2').textContent") == "holiday.mp4: green"
        assert page.run("document.querySelectorAll('.answer .frames img').length") == 6
        shown = page.run(
            "[...document.querySelectorAll('.answer .bars tr')].map(r => r.cells[0].textContent)"
        )
        assert shown == ["green", "red", "blue"]
        buttons = "[...document.querySelectorAll('button')]"
        page.wait(f"{buttons}.some(b => b.textContent.includes('Score again') && b.offsetParent)")
        box = "[...document.querySelectorAll('label')].find(l => /of green/.test(l.textContent))"
        type_into(page, f"{box}.querySelector('textarea')", "A green field. ")
        press_button(page, "Score again")
        # The answer has the caption without the space at its end.
        page.wait(f"{box}.querySelector('textarea').value === 'A green field.'")
        assert page.run("document.querySelector('.answer h2').textContent") == "holiday.mp4: green"
        page.picture(pathlib.Path(tmp_path / "page.png"))
    assert page.problems == []
    own = (f"http://127.0.0.1:{port}/", "data:", "blob:", "about:", "file:")
    assert all(address.startswith(own) for address in page.addresses)


def answer_with(page, clip: pathlib.Path, actions: str) -> None:
    """Chooses a file, types actions, and presses the button."""
    page.wait("document.querySelector('input[type=file]')")
    page.choose_file("input[type=file]", clip)
    page.wait(f"document.body.innerText.includes({clip.stem!r})")
    type_into(page, "document.querySelector('textarea')", actions)
    press_button(page, "Name the action")


def type_into(page, box: str, text: str) -> None:
    page.run(
        f"""(() => {{ const box = {box}; box.value = {text!r};
        box.dispatchEvent(new Event("input", {{bubbles: true}})); }})()"""
    )


def press_button(page, name: str) -> None:
    page.run(
        f"[...document.querySelectorAll('button')].find(b => b.textContent.includes({name!r})).click()"
    )
