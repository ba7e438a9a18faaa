"""`palimpsest data raft`: questions among documents, answers that quote the one that helps."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.command.data_verbs import MODEL_FREE_PART, DataRecipe, MakePart, deciding
from trainer.config.schema import RunConfig
from trainer.config.synthetic import DistractorChoice, QuoteSource
from trainer.synthetic.distractors import DistractorPool
from trainer.synthetic.given_rows import read_given
from trainer.synthetic.raft import SECTION, RaftMaker, RaftQuestion, Writer, read_question
from trainer.synthetic.told import raft_lines


def raft_recipe(config: RunConfig) -> DataRecipe:
    """Read questions and documents.

    Raises:
        DataError: They cannot be read, lack a column, or are too few for the distractors of a row.
    """
    options, raft = config.synthetic, config.synthetic.raft
    given = read_given("synthetic.input", options.input or "", options.id_column, options.max_rows)
    questions = [read_question(row, raft) for row in given]
    digests = {"input": given.digest}
    pool: DistractorPool | None = None
    if raft.corpus is not None:
        corpus = read_given(f"{SECTION}.corpus", raft.corpus)
        digests["corpus"] = corpus.digest
        documents = [row.text(f"{SECTION}.corpus_column", raft.corpus_column) for row in corpus]
        pool = DistractorPool(filter(None, documents), raft)
    elif raft.distractors is not DistractorChoice.given:
        pool = DistractorPool(filter(None, (one.oracle for one in questions)), raft)
    writes = raft.quote is QuoteSource.model
    provenance = {"verb": "raft", "model": None, "seed": options.seed}
    if not writes:
        maker = RaftMaker(options, pool, provenance)
        return DataRecipe(
            deciding(options, raft, digests, samples=False),
            len(questions),
            MODEL_FREE_PART,
            lambda: _part(maker, questions),
            lambda notes, _: raft_lines(notes),
        )
    from trainer.command.data_model import named_model

    model = named_model(config)

    def open_model() -> MakePart:
        asked = model.asked()

        def write(requests: Sequence[str], number: int) -> list[list[str]]:
            turns = [[{"role": "user", "content": request}] for request in requests]
            found = asked.answers(turns, raft.tries, number)
            return [[one.text for one in said if not one.is_cut] if said else [] for said in found]

        writer: Writer = write
        return _part(RaftMaker(options, pool, {**provenance, "model": model.digest}, writer), questions)

    return DataRecipe(
        deciding(options, raft, {**digests, **model.decides}, samples=True),
        len(questions),
        model.at_once,
        open_model,
        lambda notes, _: raft_lines(notes),
    )


def _part(maker: RaftMaker, questions: Sequence[RaftQuestion]) -> MakePart:
    return lambda rows, number: maker.make([questions[row] for row in rows], number)
