"""What tests of losses of preferences have in common: rows, configurations with texts to replay beside, and steps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.dist.session import config_of

NUM_STEPS = 4
FP32 = 2e-6
"""Relative; as for other losses of whole documents."""
BETA = 0.3
KEPT = ("loss", "pair_loss", "answer_loss", "loss/text", "nll_chosen")
WORDS = "abc defg hij klmno pq"


def said(rng: Any, low: int, high: int) -> str:
    """Return a text of low to high - 1 letters and spaces."""
    return "".join(rng.choice(list(WORDS), int(rng.integers(low, high))))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_texts(folder: Path, rng: Any) -> None:
    """Write texts to replay."""
    write_rows(folder / "text.jsonl", [{"text": said(rng, 10, 40)} for _ in range(60)])


def config_beside_texts(
    workspace: str, data: str, run_dir: str | Path, format_: str, file: str, *overrides: str
) -> Any:
    """Return a configuration of preferences, with texts to replay beside them."""
    words = [
        f"data.sources.chat.format={format_}",
        "data.sources.chat.columns.loss_mask=null",
        f"data.sources.chat.path={data}/{file}",
        "data.sources.text.format=text",
        "data.sources.text.columns.loss_mask=null",
        "data.sources.text.packing=best_fit",
        f"data.sources.text.path={data}/text.jsonl",
        "data.sources.text.role=replay",
        "replay.ratio=0.3",
        "objective.kind=preference",
        "data.values=[label]",
        f"data.cache_dir={data}/cache",
        f"train.max_steps={NUM_STEPS}",
    ]
    return config_of(workspace, run_dir, *words, *overrides)


def config_for(workspace: str, data: str, run_dir: str | Path, *overrides: str) -> Any:
    """Return a configuration of pairs."""
    return config_beside_texts(workspace, data, run_dir, "preference", "pairs.jsonl", *overrides)


def lone_pairs(rng: Any, count: int) -> Iterator[dict[str, Any]]:
    """Yield pairs of which no two fit a pack of 64 tokens as two documents each."""
    for _ in range(count):
        prompt, chosen, rejected = (
            "".join(rng.choice(list("abcdefghij klmnop"), rng.integers(*at)))
            for at in ((8, 11), (8, 17), (8, 17))
        )
        yield {"prompt": f"x{prompt}?", "chosen": f"{chosen}.", "rejected": f"{rejected}!"}


def made_pairs(rng: Any) -> list[dict[str, Any]]:
    """Return pairs of short answers."""
    return [
        {
            "prompt": said(rng, 2, 9) + "?",
            "chosen": said(rng, 1, 16) + ".",
            "rejected": said(rng, 1, 12) + "!",
        }
        for _ in range(60)
    ]


def make_data(mesh: Any, workspace: str, data: str) -> None:
    """Write pairs and texts, and prepare them."""
    from trainer.command.prepare import prepare_data

    rng = np.random.default_rng(5)
    write_rows(Path(data) / "pairs.jsonl", made_pairs(rng))
    write_texts(Path(data), rng)
    for share in ("null", "false"):  # for what cannot share prompts, too
        words = ["objective.preference.loss=orpo", f"data.share_prompts={share}"]
        prepare_data(config_for(workspace, data, Path(data) / "unused", *words))


def tokens_of(model: Any, document: tuple[list[int], list[int]], over: str = "answer") -> Any:
    """Return the log-probabilities of what is learnt of a document alone, float64."""
    tokens, labels = (torch.tensor(found) for found in document)
    log_probs = torch.log_softmax(model(input_ids=tokens[None], use_cache=False).logits[0].double(), -1)[:-1]
    found = log_probs.gather(1, tokens[1:, None])[:, 0]
    return found if over == "prompt_and_answer" else found[labels[:-1] != -100]


def references_of(model: str | Path, session: Any) -> Any:
    """Return what says the sums of log-probabilities by the model of a folder, each piece of a pack alone."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    stores = [store.train for store in session.stores.values()]

    def read(refs: Any) -> Any:
        sums = []
        for ref in refs:
            pack, start = stores[ref.source].pack(ref.pack), 0
            before: list[int] = []
            for length, seen in zip(pack.lengths, pack.prefixes or [0] * len(pack.lengths), strict=True):
                part = slice(start, start + length)
                tokens = [*before[:seen], *pack.tokens[part].tolist()]
                learnt = np.where(pack.supervised[part], pack.tokens[part], -100)
                with torch.no_grad():
                    document = (tokens, [-100] * seen + [*learnt[1:].tolist(), -100])
                    sums.append(float(tokens_of(base, document).sum()))
                before, start = before if seen else tokens, start + length
        return np.array(sums)

    return read


def take_steps(session: Any, objective: Any, num_steps: int = NUM_STEPS) -> list[dict[str, float]]:
    """Take steps of a session and return what each reports."""
    from trainer.mix.loader import TrainLoader
    from trainer.optim.schedule import lr_factor
    from trainer.run.step import train_step

    config = session.config
    loader = TrainLoader(
        list(session.stores),
        [store.train for store in session.stores.values()],
        session.mixing().plan,
        session.mesh.data,
        config.train.micro_batch_size,
        session.pad_id,
        objective.attach,
    )
    records = []
    for step in range(num_steps):
        session.policy.engine.set_lr(config.optim.lr * lr_factor(step, num_steps, config.schedule))
        result = train_step(session.policy, objective, loader.read(step), stop=lambda: False)
        assert result.is_sound
        found = {mean.name: mean.of(result.sums) for mean in result.means}
        kept = {key: found[key] for key in KEPT if key in found}
        records.append(kept | {"grad_norm": result.grad_norm, "all": found})
    loader.close()
    return records


def overrides_of(name: str, beta: float = BETA, **options: Any) -> list[str]:
    """Return the words that ask for a loss."""
    given = {"loss": name, "beta": beta, "text_weight": 0.5, **options}
    return [f"objective.preference.{key}={value}" for key, value in given.items()]


def objective_of(session: Any) -> Any:
    """Return what a run of the session minimises, with its own reference."""
    from trainer.objective.build import build_objective
    from trainer.run.references import build_references

    units = [store.train.unit for store in session.stores.values()]
    references = build_references(session, session.mixing())
    names, options = list(session.stores), session.config.objective
    if references is None:
        return build_objective(options, names, units)
    return build_objective(options, names, units, None, references.train.of, references.mismatched)
