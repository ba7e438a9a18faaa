"""Whether a chat template is Jinja that compiles, found without transformers, which loads torch."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser


class _Generation(Extension):
    """The tag around what a model writes, which transformers gives to templates."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands in the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@cache
def _environment() -> Environment:
    return Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"])


def why_no_jinja(text: str, file: str) -> str | None:
    """Return what is said, behind its key, of a chat template that does not compile; None where it does."""
    try:
        _environment().compile(text)
    except TemplateSyntaxError as error:
        return no_jinja(error, file)
    return None


def no_jinja(error: TemplateSyntaxError, file: str) -> str:
    """Return what is said, behind its key, of an error in a chat template.

    Args:
        file: The file, or the folder of the tokenizer, that the template is from.
    """
    reason = (error.message or "it does not compile").rstrip(".")
    where = f"{file}, line {error.lineno},"
    return f"must be valid Jinja, but {where} is not: {reason}. Mend it there, or give another file."
