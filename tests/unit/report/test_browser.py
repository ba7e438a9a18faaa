"""The page in a real browser, as wide as a laptop and as a phone. A failure here is one a reader would see."""

import pytest

from tests.helpers.browser import check_figures, look_at
from tests.helpers.run_files import forgetting, write_run
from trainer.report.page import build_page
from trainer.report.record import read_run

LONG = "customer_support_conversations_of_the_year_2026_without_names"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    hostile = "<script>console.error('in')</script>"
    return {
        "plain": build_page(read_run(write_run(folder / "plain"))),
        "hostile": build_page(read_run(write_run(folder / "hostile", (hostile, LONG)))),
    }


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_shows_everything_and_asks_for_nothing(pages, width, tmp_path):
    seen = look_at(pages["plain"], width, tmp_path)
    assert seen.width == width
    assert seen.scroll_width <= width, "the page scrolls sideways"
    assert "It got better at manuals_de, but it lost on wikitext and general; of " in seen.text
    for one in forgetting()["sets"]:
        assert one["name"] in seen.text
    assert seen.scripts == 0 and not seen.requests and not seen.console
    check_figures(seen)


@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_and_long_names_are_text_and_break_no_layout(pages, width, tmp_path):
    seen = look_at(pages["hostile"], width, tmp_path)
    assert "<script>console.error('in')</script>" in seen.text and LONG in seen.text
    assert seen.scripts == 0 and not seen.requests and not seen.console
    assert seen.scroll_width <= width
    check_figures(seen)


def test_the_page_follows_a_dark_screen(pages, tmp_path):
    light = look_at(pages["plain"], 600, tmp_path)
    dark = look_at(pages["plain"], 600, tmp_path, dark=True)
    assert light.background == "rgb(255, 255, 255)" and dark.background == "rgb(20, 24, 28)"


def test_the_browser_would_tell_of_a_request_a_script_and_a_wide_page(tmp_path):
    """Otherwise the tests above could not fail."""
    page = (
        "<!doctype html><script>console.error('wrong')</script><div style='width:900px'>x</div>"
        "<img src='http://127.0.0.1:65533/picture.png'>"
    )
    seen = look_at(page, 390, tmp_path)
    assert seen.scripts == 1 and seen.scroll_width > 390
    assert any("wrong" in line for line in seen.console)
    assert seen.requests or any("picture" in line for line in seen.console)
