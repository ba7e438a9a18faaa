"""What the files of a distillation's teacher say against a configuration; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.command.counted import config_json
from trainer.command.model_rules import context_of
from trainer.config.objective import ObjectiveKind
from trainer.config.rule import Problem, must, problem, said
from trainer.config.schema import RunConfig
from trainer.config.teacher import KEY, of_teacher, teacher_model
from trainer.errors import TrainerError
from trainer.forecast.shapes import language_part
from trainer.model.base_folder import Needs
from trainer.model.on_disk import model_problems

TOP = "objective.distill.top"


def teacher_problems(config: RunConfig, needs: Needs) -> Iterator[Problem]:
    """Yield what of the teacher is not here, and every rule that its config.json breaks; none of another objective.

    Args:
        needs: What the command reads of the teacher.
    """
    options = config.objective.distill
    if config.objective.kind is not ObjectiveKind.distill or not options.teacher:
        return
    model = teacher_model(options, config.model)
    lacking = [said(KEY, of_teacher(one.sentence)) for one in model_problems(model, needs)]
    yield from lacking
    if lacking:
        return
    try:
        theirs = config_json(model)[0]
        own = config_json(config.model)[0]
    except TrainerError:  # told of the student, or when it is loaded
        return
    sizes = [language_part(one).get("vocab_size") for one in (theirs, own)]
    least = min((size for size in sizes if isinstance(size, int)), default=options.top)
    if options.top > least:
        rule = f"at most the vocabulary that teacher and student share ({least:,})"
        yield must(TOP, rule, options.top, f"Set {TOP}=64.")
    context = context_of(theirs)
    if context is not None and config.data.seq_len > context:
        yield problem(
            KEY,
            f"must be a model made for inputs of data.seq_len={config.data.seq_len} tokens, but {options.teacher} is "
            f"for {context} instead. Set data.seq_len={context} at most, or name another teacher.",
        )
