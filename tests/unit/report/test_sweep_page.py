"""The page of a sweep: what it says, and what a browser shows of it."""

import math
import re
from xml.etree import ElementTree

import pytest

from tests.helpers.browser import check_figures, look_at
from trainer.report.number import compact, shown
from trainer.report.scale import chosen_scale, measured_scale
from trainer.report.sweep import PointRow, SweepFacts, sweep_page

FACTS = SweepFacts("rates", "/shared/rates", "eval_mean", False, True)


def row(number, objective, **params):
    error = "" if objective is not None else "ValueError: <shapes> differ"
    state = "failed (1)" if error else "finished"
    return PointRow(f"{number:03}_point", params, objective, state, 100, error)


def grid():
    """Return 12 points over four parameters, numbers and words, one failed and one far off."""
    rates, ratios, models = ("1e-05", "0.0001", "0.001"), ("0", "0.05"), ("tiny", "llama3_1_8b_instruct")
    rows = []
    for rate in rates:
        for ratio in ratios:
            for model in models:
                objective = 2 + abs(math.log10(float(rate)) + 4) + float(ratio) + (model == "tiny")
                params = {
                    "optim.lr": rate,
                    "replay.ratio": ratio,
                    "model": model,
                    "train.max_steps": str(100),
                }
                rows.append(row(len(rows) + 1, objective, **params))
    rows[3] = row(4, None, **rows[3].params)
    rows[0] = row(1, 80.0, **rows[0].params)
    return rows


def figures(page):
    return [ElementTree.fromstring(drawn) for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_several_parameters_are_parallel_coordinates_and_a_figure_each():
    page = sweep_page(FACTS, grid())
    assert "Best: optim.lr = 0.0001, replay.ratio = 0, model = llama3_1_8b_instruct" in page
    drawn = figures(page)
    # max_steps is the same in all points, and has no axis.
    assert len(drawn) == 4
    parallel = drawn[0]
    groups = [group.get("class") for group in parallel.iter("g")]
    assert sorted(groups) == ["s1"] * 10 + ["s2 best", "s6 failed"]
    assert groups[-1] == "s2 best", "the best is drawn over the others"
    assert len([path for path in parallel.iter("path") if path.get("d").count("L") == 2]) == 1, (
        "failed: no objective"
    )
    words = [text.text for text in parallel.iter("text")]
    assert {"lr", "ratio", "model", "eval_mean", "log", "0.05"} <= set(words)
    assert all(len(list(figure.iter("circle"))) == 11 for figure in drawn[1:])


def test_one_parameter_is_a_curve_of_the_objective():
    page = sweep_page(FACTS, [row(n, abs(n - 3), **{"optim.lr": f"{n}e-5"}) for n in range(1, 6)])
    (drawn,) = figures(page)
    assert len(list(drawn.iter("path"))) == 1 and len(list(drawn.iter("circle"))) == 5
    assert "eval_mean against optim.lr" in page


def test_what_failed_is_said_and_text_is_escaped():
    page = sweep_page(FACTS, grid())
    assert "004_point: ValueError: &lt;shapes&gt; differ" in page and "<shapes>" not in page


@pytest.mark.parametrize("rows", [[], [row(1, None, seed="0"), row(2, None, seed="1")]])
def test_without_an_objective_there_is_a_page_that_says_so(rows):
    page = sweep_page(FACTS, rows)
    assert "No point has finished with an objective." in page and "nothing to draw" in page


def test_the_first_point_to_finish_is_in_the_table_and_no_figure_of_its_own():
    page = sweep_page(FACTS, [row(1, 2.5, seed="0"), row(2, None, seed="1")])
    assert "Best: seed = 0" in page and "nothing to draw before two points have finished" in page
    assert not figures(page)


def test_higher_is_better_where_it_is():
    facts = SweepFacts("rates", "x", "tokens_per_s", True, False)
    page = sweep_page(facts, [row(1, 100.0, seed="0"), row(2, 300.0, seed="1")])
    assert "Best: seed = 1, with tokens_per_s 300." in page and "best of each run" in page


@pytest.mark.parametrize(
    ("values", "places", "is_log"),
    [
        (["1", "2", "5"], [0, 0.25, 1], False),
        (["1e-5", "1e-3", "1e-4"], [0, 1, 0.5], True),
        (["b", "a", "c"], [0, 0.5, 1], False),
        (["0", "0.01", "1"], [0, 0.5, 1], False),
        (["3", "3"], [0.5, 0.5], False),
        (["1", "fast"], [0, 1], False),
    ],
    ids=["even", "powers", "words", "too close to name", "one value", "mixed"],
)
def test_a_chosen_value_stands_where_a_person_looks_for_it(values, places, is_log):
    scale = chosen_scale(values)
    assert [scale.places[value] for value in values] == pytest.approx(places)
    assert scale.is_log == is_log


def test_measured_values_keep_their_distances():
    scale = measured_scale({"a": 2.0, "b": 2.01, "c": 3.0})
    assert scale.places == pytest.approx({"a": 0, "b": 0.01, "c": 1})
    assert [label for _, label in scale.ticks] == ["2", "2.5", "3"] or len(scale.ticks) >= 3
    log = measured_scale({"a": 3.0, "b": 300.0})
    assert log.is_log and [label for _, label in log.ticks] == ["3", "10", "30", "100", "300"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(1e-5, "1e\u22125"), (0.01, "0.01"), (12345.0, "1.234e4"), (-0.5, "\u22120.5"), (3.0, "3")],
)
def test_settings_are_short(number, text):
    assert compact(number) == text


@pytest.mark.parametrize(("value", "text"), [("'a b'", "a b"), ("5.176340e-05", "5.176e-5"), ("7", "7")])
def test_values_of_overrides_are_shown_as_they_can_be_typed(value, text):
    assert shown(value) == text


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_a_word_over_another(width, dark, tmp_path):
    seen = look_at(sweep_page(FACTS, grid()), width, tmp_path, dark)
    assert seen.scroll_width <= width, "the page scrolls sideways"
    assert seen.scripts == 0 and not seen.requests and not seen.console
    assert (seen.background == "rgb(255, 255, 255)") != dark
    check_figures(seen, at_least=4)
