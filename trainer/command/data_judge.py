"""`palimpsest data judge`: which of two answers a model prefers, asked in both orders."""

from __future__ import annotations

from trainer.command.data_model import named_model
from trainer.command.data_verbs import DataRecipe, MakePart, deciding
from trainer.config.schema import RunConfig
from trainer.synthetic.given_rows import read_given
from trainer.synthetic.order_bias import SECTION, OrderedJudge, read_two
from trainer.synthetic.principles import read_principles
from trainer.synthetic.told import judge_lines

PART = 8
"""Rows of a part: a question is a forward pass, a part is synced to disk."""


def judge_recipe(config: RunConfig) -> DataRecipe:
    """Read rows and principles, and name the model.

    Raises:
        TrainerError: They cannot be read, or there is no such model.
    """
    options, judge = config.synthetic, config.synthetic.judge
    given = read_given("synthetic.input", options.input or "", options.id_column, options.max_rows)
    rows = [read_two(row, options) for row in given]
    principles = (
        [] if judge.principles is None else read_principles(f"{SECTION}.principles", judge.principles)
    )
    model = named_model(config, samples=False)
    digests = {"input": given.digest, "principles": [one.critique for one in principles], **model.decides}

    def open_model() -> MakePart:
        provenance = {"verb": "judge", "model": model.digest, "seed": options.seed}
        texts = [one.critique for one in principles]
        maker = OrderedJudge(options, model.letters().letters, provenance, texts)
        return lambda part, number: maker.make([rows[row] for row in part], number)

    return DataRecipe(
        deciding(options, judge, digests, samples=False),
        len(rows),
        PART,
        open_model,
        lambda notes, _: judge_lines(notes, judge.first_is_better),
    )
