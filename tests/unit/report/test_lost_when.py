"""When kinds of text were lost: the words for a course, and the page."""

import json

import pytest

from tests.helpers.run_files import write_run
from trainer.report.lost_when import KindPoint, kind_points, when_in_words
from trainer.report.page import build_page
from trainer.report.record import read_run

LOSS, GAIN, SAME, NONE = (0.1, 0.05, 0.2), (-0.1, -0.2, -0.05), (0.01, -0.05, 0.05), (0.3, None, None)


@pytest.mark.parametrize(
    ("course", "said"),
    [
        ([SAME, SAME], "no change seen at any evaluation"),
        ([LOSS, LOSS], "lost since step 10"),
        ([SAME, LOSS, LOSS], "lost since step 20"),
        ([LOSS, SAME, LOSS], "lost since step 30, lost first at step 10"),
        ([LOSS, GAIN], "gained since step 20, lost first at step 10"),
        ([SAME, LOSS, SAME], "lost at step 20 alone"),
        ([LOSS, LOSS, SAME], "lost at step 10, back after step 20"),
        ([NONE, NONE], "not known: too few documents for an interval"),
        ([GAIN], "gained since step 10"),
    ],
)
def test_a_course_is_said_in_words(course, said):
    points = [KindPoint(10 * number, *one) for number, one in enumerate(course, start=1)]
    assert when_in_words(points) == said


def test_an_interval_that_touches_zero_is_no_loss():
    assert KindPoint(1, 0.1, 0.0, 0.2).side == 0 == KindPoint(1, -0.1, -0.2, 0.0).side


def test_what_nobody_would_notice_is_no_loss_though_it_is_sure():
    """Within 0.01 nats on both sides, as the first screen counts: rises of 0.0002 to 0.0004 would be lost else."""
    assert KindPoint(1, 3e-4, 2e-4, 4e-4).side == 0 == KindPoint(1, -3e-4, -0.01, -2e-4).side
    assert KindPoint(1, 6e-3, 2e-3, 0.011).side == 1 == -KindPoint(1, -6e-3, -0.011, -2e-3).side


def with_rows(tmp_path, rows):
    run_dir = write_run(tmp_path / "run")
    with (run_dir / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return run_dir


def row(step, name, rise, low, high):
    return {"step": step, f"probe/{name}": rise, f"probe_low/{name}": low, f"probe_high/{name}": high}


def test_the_page_draws_what_lost_most_and_lists_all(tmp_path):
    rows = [
        row(step, "German", rise, rise - 0.02, rise + 0.02)
        for step, rise in ((20, 0.01), (40, 0.05), (60, 0.09))
    ]
    rows += [{"step": step, "probe/<few>": 0.5} for step in (20, 40, 60)]
    rows += [row(60, "German", 0.07, 0.04, 0.1)]  # step 60 was taken again by a later attempt
    run = read_run(with_rows(tmp_path, rows))
    assert kind_points(run, "German")[-1] == KindPoint(60, 0.07, 0.04, 0.1)
    page = build_page(run)
    assert "lost since step 40" in page and "&lt;few&gt;" in page and "<few>" not in page
    assert "+0.070 (step 60)" in page and "+0.040 to +0.100" in page
    assert "by chance" not in page, "of one kind"


def test_a_run_whose_probes_were_read_at_its_ends_has_no_such_section(tmp_path):
    assert "When kinds of text" not in build_page(read_run(write_run(tmp_path / "run")))
