"""Config section for replay: how much older data a run mixes in, and how that share moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from trainer.config.generate import GenerateConfig


class Shift(Enum):
    """How far the new data is from what the base model was trained on."""

    weak = "weak"
    """0.05 of the supervised tokens."""
    strong = "strong"
    """0.25: another language or kind of text."""


class RatioSchedule(Enum):
    """How the replay ratio moves over the run. Evidence for anything but `constant` is thin."""

    constant = "constant"
    """The same ratio all along."""
    linear = "linear"
    """To `end_ratio` on a line."""
    cosine = "cosine"
    """To `end_ratio` on half a cosine."""
    front_loaded = "front_loaded"
    """Twice the ratio for `front_frac` of the run."""
    piecewise = "piecewise"
    """As `points` say."""


class RatioController(Enum):
    """Whether the ratio answers to what is forgotten."""

    none = "none"
    """It does not."""
    hold = "hold"
    """It rises when held-out loss or the KL to the base does, and falls again."""


class ReplayChoice(Enum):
    """Which packs of the replay sources come next. Evidence for anything but `uniform` is thin."""

    uniform = "uniform"
    """Those of a seeded permutation."""
    losing = "losing"
    """Those whose loss has risen most over the base's."""


@dataclass
class ReplayKlConfig:
    """Hold the model to its base on replay: beta times KL(base || model) is added to the loss there.

    Before the first step the base runs once over the replay packs that the run can draw, and its most likely
    next tokens are kept in data.cache_dir: 6 x `top` bytes for every supervised token of them.
    """

    beta: float = 0.0
    """What a nat of KL weighs against a nat of cross-entropy of the same replay token. 0: off."""
    top: int = 64
    """Most likely next tokens of the base that are kept at a position; all others count as one outcome."""


@dataclass
class ReplayConfig:
    """Replay of older data. A ratio is a share of all supervised tokens, in [0, 1)."""

    ratio: float | None = None
    """Share of the sources with role=replay. null: from `shift`, else from the sources' weights, else 0.05."""
    shift: Shift | None = None
    """`weak`: 0.05, `strong` (another language or kind of text): 0.25, unless a ratio is given.
    Source: Ibrahim et al. 2024 (arXiv:2403.08763)."""
    additive: bool = False
    """False keeps the run's length, so replay takes the place of target tokens; true makes it longer."""
    schedule: RatioSchedule = RatioSchedule.constant
    """How the ratio moves."""
    end_ratio: float | None = None
    """linear and cosine: the ratio at the end of the run."""
    front_frac: float = 0.1
    """front_loaded: share of the run, from its start, with twice the ratio (the stability gap, Guo et al. 2025)."""
    points: list[Any] = field(default_factory=list)
    """piecewise: [share of the run's tokens, ratio from there on], shares rising from 0."""
    controller: RatioController = RatioController.none
    """`hold` moves the ratio after every evaluation so that held-out loss stays near the base model's."""
    epsilon: float = 0.05
    """hold: allowed rise of the mean held-out loss of `watch` over the base, in nats."""
    epsilon_kl: float | None = None
    """hold: allowed mean KL(base || model) on the fixed conversations, in nats a token, taken at every evaluation; the
    ratio answers to the worse of it and the loss. null: it does not count."""
    watch: list[str] = field(default_factory=list)
    """hold: sources whose held-out loss counts. Empty: all with role=probe, else all with role=replay."""
    min_ratio: float = 0.01
    """hold: lowest ratio."""
    max_ratio: float = 0.5
    """hold: highest ratio."""
    max_change: float = 0.02
    """hold: largest change of the ratio at one evaluation."""
    choice: ReplayChoice = ReplayChoice.uniform
    """`losing` scores the next packs of the permutation every `choice_every` steps and draws those first whose loss has
    risen most since the base. Shares stay exact, and no pack comes again before its pool is exhausted.
    Source: choosing by what is being forgotten (Aljundi et al. 2019, arXiv:1908.04742)."""
    choice_every: int = 100
    """losing: optimizer steps between choices. The first of them draw in the permutation's order."""
    choice_of: int = 4
    """losing: packs that are scored, a forward pass each, for every one that is expected until the next choice."""
    loss_weight: float = 1.0
    """What a supervised replay token counts in the loss and in the count that divides it: with 5, 2 % of the tokens
    pull about as 10 % do. It multiplies kl.beta too. Losses by source are reported as they are. Range: more than 0."""
    kl: ReplayKlConfig = field(default_factory=ReplayKlConfig)
    """KL to the base model on replay tokens."""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    """`palimpsest replay generate`: samples of the base model, for when its own data cannot be had."""

    def chooses_in(self, num_steps: int) -> bool:
        """Tell whether a run of so many steps ever chooses: first after `choice_every`, for the step after the next."""
        return self.choice is ReplayChoice.losing and self.choice_every + 1 < num_steps
