"""Both rewards falling is said once, in nats, and nothing else is."""

import pytest

from trainer.config.preference import PreferenceConfig, PreferenceLoss
from trainer.objective.preference.falling import FallingRewards


def said(rewards, loss=PreferenceLoss.dpo, **options):
    watch = FallingRewards(PreferenceConfig(loss=loss, **options))
    names = ("log_prob_chosen_token", "log_prob_rejected_token")
    if PreferenceConfig(loss=loss).needs_reference:
        names = ("reward_chosen", "reward_rejected")
    return [watch.look(dict(zip(names, line, strict=True))) for line in rewards]


FALLING = [(-0.1, -0.2), (-0.2, -0.4), (-0.3, -0.7), (-0.5, -1.0), (-0.6, -1.2)]


def test_both_rewards_that_fall_for_three_lines_are_said_once():
    first, second, third, *rest = said(FALLING)
    assert (first, second, rest) == (None, None, [None, None])
    assert third == (
        "Both answers become less likely, chosen ones by 3 nats an answer and rejected ones by 7, for 3 log lines: "
        "the loss falls while the model unlearns what it should say. objective.preference.nll_weight=1 keeps chosen "
        "answers likely (RPO); a lower optim.lr helps too."
    )
    assert said(FALLING, nll_weight=1.0)[2].endswith("Lower optim.lr.")


@pytest.mark.parametrize(
    "rewards",
    [
        [(0.1 * n, -0.2 * n) for n in range(6)],
        [(-0.1 * n, 0.2 * n) for n in range(6)],
        [(-0.1, -0.2), (-0.2, -0.3), (-0.15, -0.3), (-0.2, -0.4), (-0.1, -0.4)],
        [(-0.1, -0.2)] * 6,
    ],
    ids=["chosen rise", "rejected rise", "to and fro", "stand"],
)
def test_other_courses_are_not(rewards):
    assert said(rewards) == [None] * len(rewards)


def test_without_a_reference_the_first_line_is_what_is_compared_with():
    """Lines are of other pairs each, so that a little less is nothing."""
    lines = [(-2.0, -2.0), (-2.1, -2.2), (-2.2, -2.4), (-2.3, -2.6)]
    assert [line is None for line in said(lines, PreferenceLoss.orpo)] == [True, True, True, False]
    assert "0.25 nats a token" in said(lines, PreferenceLoss.orpo)[3]
    assert said([(-2.0 - 0.01 * n, -2.0) for n in range(5)], PreferenceLoss.orpo) == [None] * 5


def test_lines_without_pairs_are_passed_by():
    watch = FallingRewards(PreferenceConfig())
    assert watch.look({"loss": 1.0}) is None
