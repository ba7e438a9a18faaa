"""Rules about the numbers that stores keep for tokens. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.config.data import DataConfig, TokenValue
from trainer.config.rule import Problem, must, problem


def value_problems(data: DataConfig, read: Sequence[TokenValue]) -> Iterator[Problem]:
    """Yield every broken rule.

    Args:
        read: The numbers that the objective reads: those are kept, and no others, which would do nothing.
    """
    if sorted(value.value for value in data.values) != sorted(value.value for value in read):
        wanted = f"[{','.join(value.value for value in read)}]"
        shown = f"[{','.join(value.value for value in data.values)}]"
        rule = f"{wanted}, the numbers of tokens that the objective reads"
        yield problem("data.values", f"must be {rule}, but is {shown} instead. Set data.values={wanted}.")
    for name, source in data.sources.items():
        for value in (TokenValue.weight, TokenValue.margin):
            column = getattr(source.columns, value.value)
            if column is not None and value not in data.values:
                yield must(
                    f"data.sources.{name}.columns.{value.value}",
                    f"null unless data.values holds {value.value}",
                    column,
                    f"Remove it; data.sources.{name}.columns.ignore=[{column}] leaves it unread.",
                )
