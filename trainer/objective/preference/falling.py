"""The known way in which a loss of pairs goes wrong: both answers become less likely, the rejected one only faster.

Its loss falls and its margin grows meanwhile, so that nobody sees it who does not look at both rewards. Source: Pal et
al. 2024 (arXiv:2402.13228); Rafailov et al. 2024 (arXiv:2404.12358).
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config.preference import OF_MEANS, PreferenceConfig

IN_A_ROW = 3
"""Log lines in which it must be so: one may be of few pairs."""
NOTED = 0.05
"""Nats a token below the first log line, for losses without a reference, whose lines are of other pairs each."""


class FallingRewards:
    """Looks at every log line and says it once."""

    def __init__(self, options: PreferenceConfig) -> None:
        """Begin before the first line."""
        self._options = options
        self._first: tuple[float, float] | None = None
        self._before = 0.0
        self._num_seen = 0
        self._is_said = False

    def look(self, record: Mapping[str, float]) -> str | None:
        """Return the sentence at the line where it is time to say it; None at all others.

        Args:
            record: Means of the objective since the last line, by name.
        """
        falls = self._falls(record)
        if falls is None or self._is_said:
            return None
        chosen, rejected = falls
        is_falling = chosen < min(self._before, 0.0) and rejected < 0
        self._num_seen = self._num_seen + 1 if is_falling else 0
        self._before = chosen
        if self._num_seen < IN_A_ROW:
            return None
        self._is_said = True
        unit = "a token" if self._is_by_token else "an answer"
        fix = (
            "Lower optim.lr."
            if self._options.chosen_nll_weight
            else "objective.preference.nll_weight=1 keeps chosen answers likely (RPO); a lower optim.lr helps too."
        )
        return (
            f"Both answers become less likely, chosen ones by {-chosen:.3g} nats {unit} and rejected ones by "
            f"{-rejected:.3g}, for {IN_A_ROW} log lines: the loss falls while the model unlearns what it should say. "
            f"{fix}"
        )

    @property
    def _is_by_token(self) -> bool:
        return self._options.loss in OF_MEANS or not self._options.needs_reference

    def _falls(self, record: Mapping[str, float]) -> tuple[float, float] | None:
        """Return in nats how much likelier chosen and rejected answers are than before training."""
        if self._options.needs_reference:
            names, unit = ("reward_chosen", "reward_rejected"), self._options.chosen_beta
        else:
            names, unit = ("log_prob_chosen_token", "log_prob_rejected_token"), 1.0
        if not all(name in record for name in names):
            return None
        now = (record[names[0]] / unit, record[names[1]] / unit)
        if self._options.needs_reference:
            return now
        if self._first is None:
            self._first = now
        return now[0] - self._first[0] + NOTED, now[1] - self._first[1] + NOTED
