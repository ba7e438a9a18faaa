"""`palimpsest data revise`: answers revised by a critique from a file of principles."""

from __future__ import annotations

from dataclasses import astuple

from trainer.command.data_model import named_model
from trainer.command.data_verbs import DataRecipe, MakePart, deciding
from trainer.config.schema import RunConfig
from trainer.synthetic.given_rows import read_given
from trainer.synthetic.principles import read_principles
from trainer.synthetic.revised import SECTION, AnswerReviser, read_to_revise
from trainer.synthetic.told import revised_lines


def revise_recipe(config: RunConfig) -> DataRecipe:
    """Read prompts, answers and principles, and name the model.

    Raises:
        TrainerError: They cannot be read, or there is no such model.
    """
    options, revise = config.synthetic, config.synthetic.revise
    principles = read_principles(f"{SECTION}.principles", revise.principles or "")
    given = read_given("synthetic.input", options.input or "", options.id_column, options.max_rows)
    rows = [read_to_revise(row, options) for row in given]
    model = named_model(config)

    def open_model() -> MakePart:
        provenance = {"verb": "revise", "model": model.digest, "seed": options.seed}
        maker = AnswerReviser(options, model.asked(), principles, provenance)
        return lambda part, number: maker.make([rows[row] for row in part], number)

    told = [list(astuple(one)) for one in principles]
    return DataRecipe(
        deciding(options, revise, {"input": given.digest, "principles": told, **model.decides}, samples=True),
        len(rows),
        model.at_once,
        open_model,
        lambda notes, num_rows: revised_lines(notes, num_rows),
    )
