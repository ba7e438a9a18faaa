"""What `palimpsest plan data` says: tables, sentences, the words to type, and all of it as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.config.data import Role
from trainer.config.many import many
from trainer.config.replay import Shift
from trainer.evaluate.compare import MIN_DOCUMENTS
from trainer.evaluate.probe_texts import PROSE
from trainer.evaluate.shift import (
    KNOWN_SHARE,
    STRONG_RATIO,
    DataShift,
    TextLoss,
    few_documents,
    judge_shift,
)
from trainer.evaluate.windows import WIDTH
from trainer.mix.ratio import RATIO_BY_SHIFT
from trainer.runtime.say import say

OWN_TEXT = (
    "data.sources.general.dataset=null data.sources.general.subset=null data.sources.general.path=FILES"
)


@dataclasses.dataclass(frozen=True, slots=True)
class DataPlanReport:
    """What the base says of sources and probes."""

    sources: dict[str, TextLoss]
    roles: dict[str, Role]
    probes: dict[str, TextLoss]
    general: TextLoss
    shared: list[tuple[str, str, int]]
    has_replay: bool
    is_chat: bool = False
    """Conversations are learnt, which the base has a template for: it is asked for such too."""

    @property
    def shifts(self) -> dict[str, DataShift]:
        """Return the shift of every source that is learnt."""
        return {
            name: judge_shift(loss, self.general)
            for name, loss in self.sources.items()
            if self.roles[name] is Role.target
        }

    @property
    def kind(self) -> Shift:
        """Return the strongest shift of all sources that are learnt."""
        is_strong = any(one.kind is Shift.strong for one in self.shifts.values())
        return Shift.strong if is_strong else Shift.weak

    @property
    def _ratio(self) -> str:
        return f"replay.ratio={RATIO_BY_SHIFT[self.kind]:g}"

    @property
    def words(self) -> str:
        """Return what is to be typed. A ratio goes before a shift, and replay=generated has one."""
        if self.has_replay:
            return self._ratio
        return f"replay={'generated' if self.is_chat else 'generated_text'} {self._ratio}"

    def print(self, console: Console) -> None:
        """Print the tables and what they come to."""
        say(console, f"What the base knows of the data, by windows of {WIDTH} tokens", "bold")
        console.print(self._table(self.sources, with_known=True), "")
        say(console, "Kinds of text to compare with", "bold")
        console.print(self._table(self.probes, with_known=False), "")
        for line in self.sentences():
            say(console, line)

    def _table(self, losses: dict[str, TextLoss], with_known: bool) -> Table:
        table = Table(box=None)
        table.add_column("source" if with_known else "text", overflow="fold")
        names = ["nats a token", "bits a byte", "95 % interval", "times general", "documents"]
        for name in names + (["known already"] if with_known else []):
            table.add_column(name, justify="right")
        for name, one in losses.items():
            interval = "none" if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"
            row = [name, f"{one.nats:.3f}", f"{one.bits_per_byte:.3f}", interval]
            row += [f"{one.bits_per_letter / self.general.bits_per_letter:.2f}", str(one.num_documents)]
            table.add_row(*row, *([str(one.known(self.general.bits_per_letter))] if with_known else []))
        return table

    def sentences(self) -> list[str]:
        """Return what the numbers say, and what to do."""
        said = []
        for name, shift in self.shifts.items():
            by = "" if shift.low is None or shift.high is None else f" ({shift.low:.2f} to {shift.high:.2f})"
            close = " It is close to the line between the two, or too few documents to tell." * shift.is_close
            said.append(
                f"{name}: a {shift.kind.value} shift. A letter of it costs the base {shift.ratio:.2f} times{by} what "
                f"one of general text does ({PROSE}); from {STRONG_RATIO:g} on it is strong.{close}"
            )
        for name in few_documents(list(self.sources.values())):
            said.append(f"{name} has no interval: it takes {MIN_DOCUMENTS} documents.")
        for name, loss in self.sources.items():
            known = loss.known(self.general.bits_per_letter)
            if known:
                said.append(
                    f"{name}: {known} of {many(loss.num_documents, 'document')} cost less than {KNOWN_SHARE:.0%} of "
                    "general text: the base knows them, or they are trivial. Little can be learnt of them."
                )
        for one, other, count in self.shared:
            said.append(
                f"{one} and {other} share {many(count, 'document')}: what is in both is drawn more often than either "
                "says."
            )
        return [*said, *self._advice()]

    def _advice(self) -> list[str]:
        if not self.shifts:
            return ["No source has role=target: nothing is learnt, so nothing shifts."]
        told = [
            f"Replay that this asks for: {100 * RATIO_BY_SHIFT[self.kind]:g} % of what is learnt (Ibrahim et al. 2024, "
            "who replay what the base was trained on)."
        ]
        if self.kind is Shift.weak:
            told.append(
                "After the weak shift that was measured here nothing was lost on maths without any replay, but "
                "conversations drifted (docs/forgetting.md)."
            )
        if self.has_replay:
            return [*told, f"Type: {self.words}"]
        return [
            *told,
            "Where the base's own data cannot be had: of what was tried here samples of the base itself kept most, and "
            "other general text little (docs/forgetting.md). Add to the words of this command, first for palimpsest "
            f"replay generate and then for palimpsest train: {self.words}",
            f"With text like the base's in files of yours, add instead: replay=general {OWN_TEXT} {self._ratio}",
        ]

    def to_plain(self) -> dict[str, Any]:
        """Return what is written as JSON."""
        shifts = self.shifts
        return {
            "window_tokens": WIDTH,
            "general": PROSE,
            "sources": {
                name: loss.to_plain()
                | {
                    "role": self.roles[name].value,
                    "known_documents": loss.known(self.general.bits_per_letter),
                    "shift": _plain(shifts[name]) if name in shifts else None,
                }
                for name, loss in self.sources.items()
            },
            "probes": {name: loss.to_plain() for name, loss in self.probes.items()},
            "shared_documents": [list(entry) for entry in self.shared],
            "shift": self.kind.value if shifts else None,
            "words": self.words if shifts else None,
        }


def _plain(shift: DataShift) -> dict[str, Any]:
    return dataclasses.asdict(shift) | {"kind": shift.kind.value}
