"""Lines about what takes long: none where it does not."""

from trainer.metrics.long_work import EVERY_S, LongWork


def test_what_is_over_soon_says_nothing_and_what_is_not_says_how_far_it_is():
    said, times_s = [], [0.0, 1.0, EVERY_S - 1, 20.0, 21.0, 50.0]
    pace = LongWork(100, said.append, lambda: times_s.pop(0))
    for done in (10, 12, 25, 26, 100):
        pace.at(done, f"Part {done}")
    assert said == ["Part 25: 0m20s so far, about 1m00s left.", "Part 100: 0m50s so far."]


def test_nothing_is_foreseen_before_anything_is_done():
    said, now_s = [], 0.0
    pace = LongWork(100, said.append, lambda: now_s)
    now_s = 30
    pace.at(0, "Part 0")
    assert said == ["Part 0: 0m30s so far."]
