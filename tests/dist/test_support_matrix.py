"""Every cell that the support matrix in docs/models.md calls tested is trained here, two ranks, one recipe a row.

Some cells, every stage among them, in the default suite; all of them with `-m slow`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.house.test_tables import MATRIX

TESTED = [(row["recipe"], int(row["ZeRO"])) for row in MATRIX if row["sdpa"] == "tested"]
NUM_STEPS = 3


def overrides_of(folder: Path, recipe: str, stage: int) -> list[str]:
    pairs = (f"data.sources.pairs.path={folder / 'pairs.jsonl'}", "data.sources.pairs.as_chat=false")
    by_recipe = {
        "continued_pretrain": ["data=text", f"data.sources.corpus.path={folder / 'text.jsonl'}"],
        "full_finetune": ["data=chat", f"data.sources.chat.path={folder / 'chat.jsonl'}"],
        "lora": ["data=chat", f"data.sources.chat.path={folder / 'chat.jsonl'}", "tune.r=8"],
        "qlora": ["data=chat", f"data.sources.chat.path={folder / 'chat.jsonl'}", "tune.r=8"],
        "dpo": ["data=preference", *pairs],
        "preference_lora": ["data=preference", *pairs, "tune.r=8"],
        "reward": ["data=preference", *pairs],
        "reward_lora": ["data=preference", *pairs, "tune.r=8"],
    }
    return [
        f"recipe={recipe}",
        f"zero=zero{stage}",
        "model=tiny",
        *by_recipe[recipe],
        "data.seq_len=64",
        "data.validation_frac=0.1",
        f"data.cache_dir={folder / 'cache'}",
        "train.global_batch_tokens=512",
        f"train.micro_batch_size={4 if stage == 0 else 2}",
        "model.checkpoint_layers=0",
        "train.max_epochs=null",
        f"train.max_steps={NUM_STEPS}",
        "optim.lr=1e-3",
        f"run_dir={folder / f'{recipe}-{stage}'}",
    ]


def write_sources(folder: Path) -> None:
    texts = [{"text": f"Document {i} says " + "so and so " * (3 + i % 7)} for i in range(120)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} plus {i}?"},
                {"role": "assistant", "content": f"It is {2 * i}."},
            ]
        }
        for i in range(120)
    ]
    pairs = [
        {"prompt": f"{i} plus {i}?", "chosen": f"It is {2 * i}.", "rejected": f"{i} or {i % 7}"}
        for i in range(120)
    ]
    for name, rows in (("text", texts), ("chat", chats), ("pairs", pairs)):
        body = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(body, encoding="utf-8")


def train_all(mesh: Any, folder: str, cells: list[list[Any]]) -> None:
    from trainer.command.fitting import fitted_here
    from trainer.config.store import compose_config
    from trainer.run import training

    for recipe, stage in TESTED:
        config = compose_config(overrides_of(Path(folder), recipe, stage))
        config = fitted_here(config, mesh.num_ranks, says=False)
        Path(config.run_dir).mkdir(parents=True, exist_ok=True)
        assert training.run_training(config).value == "finished"


@pytest.mark.slow
def test_recipes_train_at_the_stages_that_the_matrix_calls_tested(pool: Any, tmp_path: Path) -> None:
    """A failure in one cell only points at that recipe's data or that stage's engine."""
    from trainer.command.prepare import prepare_data
    from trainer.config.store import compose_config

    assert len(TESTED) == 32
    write_sources(tmp_path)
    for recipe in {recipe for recipe, _ in TESTED}:
        prepare_data(compose_config(overrides_of(tmp_path, recipe, 1)))
    pool(2).run(train_all, folder=str(tmp_path), cells=[list(cell) for cell in TESTED])
    for recipe, stage in TESTED:
        lines = (tmp_path / f"{recipe}-{stage}" / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        losses = [record["loss"] for record in records if "loss" in record]
        assert len(losses) == NUM_STEPS and losses[-1] < losses[0], (recipe, stage, losses)
        assert sum("eval_mean" in record for record in records) == 2
