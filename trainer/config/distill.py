"""Config section for learning from a teacher that is another model."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from trainer.config.many import many


class DivergenceKind(Enum):
    """How far the student is from its teacher."""

    forward = "forward"
    """KL(teacher || student): the student covers all that the teacher finds likely."""
    reverse = "reverse"
    """KL(student || teacher): the student keeps to what the teacher finds likely."""
    jsd = "jsd"
    """Generalised Jensen-Shannon: both to their mixture, in which the teacher has the share `jsd_beta`
    (arXiv:2306.13649, equation 1)."""


class CachePrecision(Enum):
    """What a kept log-probability is stored in."""

    fp16 = "fp16"
    """2 bytes."""
    fp32 = "fp32"
    """4 bytes."""


@dataclass
class OnPolicyConfig:
    """Rounds in which the student answers prompts of the data, and learns from the teacher on its own answers."""

    share: float = 0.0
    """Share of the prompts that the student answers; the others are learnt with the answers that the data has. 0: off,
    1: all. The lambda of GKD (arXiv:2306.13649, algorithm 1), drawn for each prompt. Range: [0, 1]."""
    steps_per_round: int = 1
    """Optimizer steps of a round: the student, as it is before the first, answers the prompts of them all. At 1 every
    step learns from answers of the very weights that it changes."""
    max_new_tokens: int = 512
    """Longest answer in tokens; one that does not end by then is learnt as far as it goes. A prompt leaves it at most
    what data.seq_len does."""
    temperature: float = 1.0
    """Divides the student's logits where it samples; 1 samples its own distribution. The divergence has
    objective.distill.temperature."""
    batch_size: int = 16
    """Prompts that a rank answers at once."""

    @property
    def is_on(self) -> bool:
        """Tell whether the student answers anything."""
        return self.share > 0

    @property
    def told(self) -> str:
        """Return in words when it answers what."""
        often = "step" if self.steps_per_round == 1 else many(self.steps_per_round, "step")
        what = "all prompts" if self.share == 1 else f"{self.share:.4g} of the prompts"
        return f"before every {often} the student answers {what} of {'it' if often == 'step' else 'them'}"


@dataclass
class DistillConfig:
    """Learning from a teacher, token by token; read by objective=distill alone."""

    teacher: str = ""
    """Model that is learnt from: an option of the group `model`, such as smollm2_135m, a folder, or a Hugging Face
    name. It has the student's tokenizer. It runs in zero.dtype, with model.attention and model.trust_remote_code."""
    teacher_revision: str | None = None
    """Git revision of a Hugging Face teacher; quote it."""
    top: int = 64
    """Most likely next tokens that are kept of a position; the rest is one outcome more."""
    divergence: DivergenceKind = DivergenceKind.forward
    """How far the student is from its teacher."""
    jsd_beta: float = 0.5
    """With divergence=jsd: the teacher's share of the mixture. Without a mixture, at 0 and at 1, it is forward and
    reverse, as in TRL."""
    temperature: float = 1.0
    """Divides the logits of both; the divergence counts its square, so that gradients keep their size
    (arXiv:1503.02531)."""
    weight: float = 1.0
    """What the mean divergence over distilled tokens counts in the loss."""
    cross_entropy: float = 0.0
    """What the mean cross-entropy over distilled tokens counts in the loss."""
    cached: bool = True
    """Ask the teacher once, before the first step, and keep what it says in data.cache_dir; false: it stays beside the
    student and is asked in every step."""
    precision: CachePrecision = CachePrecision.fp16
    """What log-probabilities are kept in, 2 or 4 bytes; the id beside each takes 4."""
    shard_teacher: bool | None = None
    """Spread the teacher over all ranks (ZeRO-3) while it is asked; false: all of it on each; null: as zero.stage has
    the student."""
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)

    def told(self, has_text: bool) -> str:
        """Return what `loss` is made of, with its units, as it is told at the start of a run.

        Args:
            has_text: Whether sources with another role than target are learnt beside them.
        """
        names = {
            DivergenceKind.forward: "KL(teacher || student)",
            DivergenceKind.reverse: "KL(student || teacher)",
            DivergenceKind.jsd: f"generalised JSD, jsd_beta {self.jsd_beta:g}",
        }
        at = "" if self.temperature == 1 else f" at temperature {self.temperature:g}, times its square"
        parts = [f"{self.weight:g} x divergence ({names[self.divergence]}{at}; nats a distilled token)"]
        if self.cross_entropy:
            parts.append(f"{self.cross_entropy:g} x cross_entropy (of the same tokens, nats a token)")
        if has_text:
            parts.append("the cross-entropy of other sources (nats a token)")
        told = f"Distillation from {self.teacher}. `loss` is what is minimised: {', plus '.join(parts)}."
        if self.on_policy.is_on:
            told += (
                f" On-policy: {self.on_policy.told}, each in at most {self.on_policy.max_new_tokens:,} tokens at "
                f"temperature {self.on_policy.temperature:g}."
            )
        return told
