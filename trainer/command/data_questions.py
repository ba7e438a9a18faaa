"""`palimpsest data questions`: questions and answers to parts of documents."""

from __future__ import annotations

from trainer.command.data_model import named_model
from trainer.command.data_verbs import DataRecipe, MakePart, deciding
from trainer.config.generate import SampleEngine
from trainer.config.schema import RunConfig
from trainer.errors import ConfigError
from trainer.synthetic.chunk_questions import SECTION, QuestionWriter, chunks_of, near_duplicates_out
from trainer.synthetic.given_rows import read_given
from trainer.synthetic.told import question_lines


def questions_recipe(config: RunConfig) -> DataRecipe:
    """Read documents and name the model.

    Raises:
        TrainerError: They cannot be read, or there is no such model.
    """
    options, questions = config.synthetic, config.synthetic.questions
    if options.engine is SampleEngine.vllm:
        raise ConfigError(
            "`synthetic.engine` must be auto or transformers for `palimpsest data questions`, which reads "
            "probabilities in between, but is vllm instead. Leave it out."
        )
    given = read_given("synthetic.input", options.input or "", options.id_column, options.max_rows)
    chunks = [
        chunk
        for row in given
        for chunk in chunks_of(
            row.id, row.text(f"{SECTION}.document_column", questions.document_column), questions.chunk_chars
        )
    ]
    model = named_model(config, samples=False)

    def open_model() -> MakePart:
        provenance = {"verb": "questions", "model": model.digest, "seed": options.seed}
        maker = QuestionWriter(options, model.asked(), model.letters().letters, provenance)
        return lambda part, number: maker.make([chunks[place] for place in part], number)

    return DataRecipe(
        deciding(options, questions, {"input": given.digest, **model.decides}, samples=True),
        len(chunks),
        model.at_once,
        open_model,
        lambda notes, num_rows: question_lines(notes, num_rows, len(chunks)),
        lambda: near_duplicates_out(questions.near_identical),
    )
