"""The arms of the forgetting experiment: what each run is asked for beyond what all have in common.

The order is the order in which they are run, all seeds and shifts of an arm before the next: an experiment that is
stopped anywhere has whole arms, the most telling ones first. A method with two rates encloses a loss that the others
reach, so that all can be compared where they have learnt the same.
"""

from __future__ import annotations

from dataclasses import dataclass

KL = "replay.kl.beta=1"
LOSING = ["replay.choice=losing", "replay.choice_every=20", "replay.choice_of=8"]
LORA = ["tune=lora", "tune.r=64"]
LORA_RATE = 5.0
"""Times the rate of full fine-tuning."""


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    method: str
    """Arms of a method differ in their rate alone."""
    rate: float = 1.0
    """Times the learning rate of the experiment."""
    replay: str | None = None
    """`texts` or `chats`, sampled from the base; `general`, text of others."""
    ratio: float = 0.0
    words: tuple[str, ...] = ()
    sweeps: bool = False
    """Its checkpoints are kept until they are averaged and interpolated with the base: arms that cost no training."""

    @property
    def name(self) -> str:
        """Return what tables call it."""
        return self.method if self.rate == 1 else f"{self.method}, {self.rate:g} x rate"

    @property
    def real_rate(self) -> float:
        """Return the rate that it trains with, over that of the experiment."""
        return self.rate * (LORA_RATE if "tune=lora" in self.words else 1.0)


def _self(ratio: float, *words: str, what: str = "texts", more: str = "", rate: float = 1.0) -> Arm:
    name = f"{'chats' if what == 'chats' else 'self'} {100 * ratio:g} %{more}"
    return Arm(name, rate, what, ratio, words)


def _decay(strength: float, rate: float = 1.0) -> Arm:
    """Return a pull by which, of a way that no gradient renews, exp(-strength) is left at the end of the run.

    The mean of a cosine from 1 to 0.1 is 0.55 of the peak. {steps} and {lr} are known to the experiment.
    """
    return Arm(f"base decay {strength:g}", rate, words=(f"optim.base_decay={{decay:{strength}}}",))


ARMS: tuple[Arm, ...] = (
    # What everything is compared with: the curve of drift against learning without anything done about it.
    Arm("none", sweeps=True),
    Arm("none", 2.0),
    Arm("none", 0.5),
    # Little replay, and what makes it count more.
    _self(0.05, KL, more=" + KL"),
    _self(0.05, KL, *LOSING, more=" + KL, losing"),
    _self(0.05),
    _decay(1.0),
    _self(0.25),
    _self(0.01, KL, more=" + KL"),
    _self(0.05, KL, what="chats", more=" + KL"),
    _self(0.05, KL, more=" + KL", rate=2.0),
    _self(0.05, KL, "replay.loss_weight=4", more=" + KL, weight 4"),
    # The other ends of what those lie between.
    _decay(3.0),
    _decay(1.0, rate=2.0),
    _self(0.10, KL, more=" + KL"),
    _self(0.25, rate=2.0),
    Arm("none", 0.25),
    Arm("LoRA", words=tuple(LORA)),
    Arm("LoRA", 0.5, words=tuple(LORA)),
    _self(0.05, KL, *LORA, more=" + KL, LoRA"),
    _self(0.05, *LOSING, more=", losing"),
    _self(0.01, KL, *LOSING, more=" + KL, losing"),
    # Each one more dose, or each one thing alone.
    _self(0.05, "replay.loss_weight=4", more=", weight 4"),
    _self(0.05, "replay.kl.beta=0.3", more=" + KL 0.3"),
    _self(0.05, "replay.kl.beta=3", more=" + KL 3"),
    _self(0.01, KL, "replay.loss_weight=10", more=" + KL, weight 10"),
    _self(0.10),
    _self(0.01),
    _decay(0.3),
    Arm("general 5 %", replay="general", ratio=0.05),
    Arm("LoRA, base decay 1", words=(*LORA, "optim.base_decay={decay:1.0}")),
)
ALPHAS = "0.4:1:0.2"
"""Of what is swept: base + alpha (tuned - base)."""
AVERAGED = 3
"""Checkpoints whose mean is an arm of its own (LAWA, arXiv:2209.14981): the last ones."""


def filled(words: tuple[str, ...], num_steps: int, peak: float, mean_factor: float) -> list[str]:
    """Return words with `{decay:S}` as the base decay of strength S: S over the sum of all learning rates."""
    found = []
    for word in words:
        before, mark, rest = word.partition("{decay:")
        if mark:
            strength = float(rest.removesuffix("}"))
            word = f"{before}{strength / (num_steps * peak * mean_factor):.6g}"
        found.append(word)
    return found
