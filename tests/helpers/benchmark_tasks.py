"""A folder of benchmark tasks of every kind, as a person writes them: YAML files and JSON lines beside them."""

import json
from pathlib import Path

WORDS = [
    "tin",
    "hat",
    "mole",
    "corn",
    "pear",
    "ivy",
    "oak",
    "fern",
    "crow",
    "lamp",
    "rust",
    "salt",
    "moss",
    "kite",
]

CHOICE = """\
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: data/choice.jsonl, train: data/shots.jsonl}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "{{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
LETTERS = """\
task: local_letters
dataset_path: json
dataset_kwargs: {data_files: data/choice.jsonl}
output_type: multiple_choice
test_split: train
doc_to_text: "{{question}} A, B, C:"
doc_to_target: "{{answer}}"
doc_to_choice: [A, B, C]
target_delimiter: ""
"""
ANSWER = """\
task: local_answer
dataset_path: json
dataset_kwargs: {data_files: {test: data/answer.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n", "zz"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: as-is, filter: [{function: take_first}]}
  - {name: first-char, filter: [{function: regex, regex_pattern: "^(.)"}, {function: take_first}]}
"""
TEXT = """\
task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: data/text.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
GROUP = """\
group: local_group
task: [local_choice, local_letters]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
NAMES = ["local_choice", "local_letters", "local_answer", "local_text"]


def _sentence(seed: int, length: int) -> str:
    return " ".join(WORDS[(seed * 7 + 3 * i * (seed + 1)) % len(WORDS)] for i in range(length))


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tasks(folder: Path, answers: list[str] | None = None) -> Path:
    """Write the tasks under a folder and return it; `answers` are the right ones of local_answer."""
    for name, text in (
        ("choice", CHOICE),
        ("letters", LETTERS),
        ("answer", ANSWER),
        ("text", TEXT),
        ("group", GROUP),
    ):
        path = folder / "mine" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    data = folder / "mine" / "data"
    choices = [
        {
            "question": _sentence(i, 3 + i % 5),
            "choices": [_sentence(i + k, 1 + k) for k in range(3)],
            "answer": i % 3,
        }
        for i in range(7)
    ]
    write_lines(data / "choice.jsonl", choices)
    write_lines(data / "shots.jsonl", choices[:3])
    questions = [f"{_sentence(i, 2 + 3 * (i % 3))} \u00e9?" for i in range(5)]
    answers = answers or ["x"] * 5
    write_lines(
        data / "answer.jsonl", [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    )
    write_lines(data / "text.jsonl", [{"text": _sentence(i, 4 + 9 * i)} for i in range(4)])
    return folder
