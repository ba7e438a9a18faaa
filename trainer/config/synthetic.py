"""Config section of `palimpsest data`: rows that are made from rows, by a model or without one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from trainer.config.generate import SampleEngine

BUILT_IN = ("exact", "number", "choice", "regex")
"""Verifiers that need no code of a person's own."""


class DistractorChoice(Enum):
    """Where the documents beside the oracle come from."""

    bm25 = "bm25"
    """Those of the corpus that share most with the question."""
    random = "random"
    """Any of the corpus, by the seed."""
    given = "given"
    """Those of the row."""


class QuoteSource(Enum):
    """Where the reasoning with its quotations comes from."""

    extract = "extract"
    """The sentence of the oracle that shares most with the answer; no model."""
    row = "row"
    """The row's own reasoning, which quotes between the markers."""
    model = "model"
    """The model writes it, told the answer and the oracle."""


class WithoutOracle(Enum):
    """What is learnt where the context lacks the oracle."""

    quote = "quote"
    """The same reasoning and answer, as RAFT has it."""
    answer = "answer"
    """The answer alone."""


class SampledRows(Enum):
    """What is written of sampled answers."""

    best = "best"
    """The best answer of each prompt, as a conversation."""
    pairs = "pairs"
    """The best and the worst answer of each prompt, as a pair."""
    rates = "rates"
    """Every prompt with the share of its answers that passed."""


class RevisedRows(Enum):
    """What is written of revisions."""

    rows = "rows"
    """The revision as a conversation."""
    pairs = "pairs"
    """The revision, chosen, and the first answer, rejected."""


@dataclass
class RaftConfig:
    """`palimpsest data raft`: a question, documents of which at most one helps, and an answer that quotes that one."""

    question_column: str = "question"
    """Column of the question."""
    answer_column: str = "answer"
    """Column of the answer."""
    document_column: str = "document"
    """Column of the oracle: the document that answers, a text or a list of paragraphs."""
    reasoning_column: str | None = None
    """Column of reasoning. quote=row: it quotes the oracle between the markers; quote=extract: it follows the quotation
    and helps to choose it. Null: there is none."""
    distractors_column: str | None = None
    """distractors=given: column of a list of documents."""
    corpus: str | None = None
    """File of documents that distractors are taken from; null: the oracles of all rows."""
    corpus_column: str = "document"
    """Column of the documents in that file."""
    distractors: DistractorChoice = DistractorChoice.bm25
    """Which documents stand beside the oracle: those that resemble the question (bm25), any, or the row's own."""
    num_distractors: int = 4
    """Documents beside the oracle, and all there are without it. Range: 1 or more."""
    min_distractors: int | None = None
    """Where their number varies from row to row, the least of it; num_distractors is the most. Null: it does not."""
    oracle_share: float = 0.8
    """Chance of a row to have the oracle among its documents. Range: [0, 1]."""
    without_oracle: WithoutOracle = WithoutOracle.quote
    """What rows without it learn: the quotation and the answer, as published, or the answer alone."""
    quote: QuoteSource = QuoteSource.extract
    """Where quotations come from. Each must stand in the oracle word for word, else its row is dropped."""
    tries: int = 4
    """quote=model: how often it may write reasoning for a row before the row is dropped. Range: 1 or more."""
    quote_begin: str = "##begin_quote##"
    """Mark before a quotation."""
    quote_end: str = "##end_quote##"
    """Mark behind a quotation."""
    answer_mark: str = "Answer:"
    """Words before the answer, on a line of its own."""
    prompt: str = "{documents}\n\nQuestion: {question}"
    """What the user says."""
    min_leak_chars: int = 4
    """Distractors with the answer in them are left out; shorter answers, such as yes, are in any text and not looked
    for. 0 or more. [characters]"""
    near_identical: float = 0.8
    """Distractors are left out that share so much of their word triples with the oracle, counted by the shorter of
    both. Range: (0, 1]."""


@dataclass
class SampleVerbConfig:
    """`palimpsest data sample`: answers to prompts, scored by what can verify them or by a reward model."""

    prompt_column: str = "prompt"
    """Column of the prompt: a text, or a list of turns of which those after the last of the user are left out."""
    reference_column: str | None = "answer"
    """Column of what an answer is compared with; null: the verifier needs none."""
    instruction: str = "{prompt}"
    """What the user says, for prompts that are texts."""
    num_answers: int = 8
    """Answers to each prompt. Range: 1 or more."""
    verifier: str | None = None
    """exact, number (as GSM8K ends, #### 42), choice (a letter), regex, or MODULE:FUNCTION of your own, which is given
    the prompt, the answer and the row; null: by reward_model."""
    pattern: str | None = None
    """regex: passes where it is found in the answer, {reference} standing for the row's; exact, number, choice: its
    first group is the part of the answer that is compared."""
    reward_model: str | None = None
    """Folder of an exported reward model."""
    timeout_s: float = 10.0
    """A verifier that has not answered by then is ended, and that answer has failed, which is no zero. [s]"""
    pass_at: float = 1.0
    """Score from which on an answer has passed, for a function that gives numbers."""
    write: SampledRows = SampledRows.best
    """Which rows are written."""
    min_rate: float = 0.0
    """rates: prompts of which a smaller share passed are left out. Range: [0, 1]."""
    max_rate: float = 1.0
    """rates: prompts of which a larger share passed are left out. Range: [0, 1]."""


@dataclass
class JudgeConfig:
    """`palimpsest data judge`: which of two answers a model prefers, asked in both orders."""

    prompt_column: str = "prompt"
    """Column of the prompt."""
    first_column: str = "chosen"
    """Column of one answer."""
    second_column: str = "rejected"
    """Column of the other."""
    first_is_better: bool = False
    """People preferred the first in every row: agreement with them is told."""
    question: str = (
        "Which of two answers to a request is better?\n\nRequest: {prompt}\n\nAnswer A: {a}\n\nAnswer B: {b}\n\n"
        "{principle}Reply with the letter of the better answer, A or B."
    )
    """What the judge is asked."""
    answer_begins: str = "The better answer is "
    """How its reply begins, up to the letter whose probability is read."""
    principles: str | None = None
    """File of principles, of which one is put into each question, by the seed; null: none."""
    min_margin: float = 0.0
    """Rows whose log-odds, averaged over both orders, are not above it are ties, and dropped. 0 or more. [nats]"""


@dataclass
class ReviseConfig:
    """`palimpsest data revise`: an answer, a critique of it by a principle, and a revision by the critique."""

    prompt_column: str = "prompt"
    """Column of the prompt."""
    answer_column: str | None = None
    """Column of the answer to revise; null: the model answers first."""
    principles: str | None = None
    """File of principles: YAML, a list of texts or of {critique, revision}; else a principle a line."""
    write: RevisedRows = RevisedRows.rows
    """Which rows are written."""


@dataclass
class QuestionsConfig:
    """`palimpsest data questions`: questions to parts of documents, and whether the part answers them."""

    document_column: str = "text"
    """Column of the document."""
    chunk_chars: int = 2000
    """Longest part of a document, cut between paragraphs, sentences or words. At least 100. [characters]"""
    per_chunk: int = 1
    """Questions to each part. Range: 1 or more."""
    min_answerable: float = 0.5
    """Least probability of yes when the model is asked whether the part answers the question. Range: [0, 1]."""
    near_identical: float = 0.8
    """Questions are left out that share so much of their word triples with an earlier one. Range: (0, 1]."""


@dataclass
class SyntheticConfig:
    """`palimpsest data VERB`: the rows it reads, the file it writes, and how a model is sampled for it."""

    input: str | None = None
    """Rows: files of any kind that `prepare` reads."""
    output: str | None = None
    """File to write, .jsonl; what was made with the same words is taken as it is, anything else that is there
    refused."""
    id_column: str | None = None
    """Column that names a row in the provenance of what is made of it; null: file and number of the row."""
    max_rows: int | None = None
    """Rows to read at most; null: all. At least 1."""
    seed: int = 0
    """Seed of every choice, together with the number of the row. 0 or more."""
    system: str | None = None
    """What the system turn says, where there is one; null: there is none."""
    max_new_tokens: int = 512
    """Longest text that is sampled; longer ones are cut. Range: 1 or more."""
    temperature: float = 1.0
    """Divides the logits. More than 0."""
    top_p: float = 1.0
    """Sample among the most likely tokens of this total probability; 1 is off. Range: (0, 1]."""
    engine: SampleEngine = SampleEngine.auto
    """What samples: vLLM on a GPU when it is installed, else transformers."""
    raft: RaftConfig = field(default_factory=RaftConfig)
    sample: SampleVerbConfig = field(default_factory=SampleVerbConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    revise: ReviseConfig = field(default_factory=ReviseConfig)
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
