"""`palimpsest data sample`: answers to prompts, scored by a verifier or a reward model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from trainer.command.data_model import named_model
from trainer.command.data_verbs import DataRecipe, MakePart, deciding
from trainer.config.model import ModelConfig
from trainer.config.schema import RunConfig
from trainer.runtime.seal import file_digest
from trainer.synthetic.best_answers import SECTION, AnswersMaker, Worth, read_prompt
from trainer.synthetic.given_rows import read_given
from trainer.synthetic.told import answer_lines
from trainer.synthetic.verifier_process import VerifierProcess
from trainer.synthetic.worth import Scorer, by_reward_model, by_verifier

OF_MODELS = (".json", ".safetensors", ".bin", ".jinja", ".model")


def sample_recipe(config: RunConfig, stack: ExitStack) -> DataRecipe:
    """Read prompts, start the verifier, and name the model.

    Args:
        stack: Ends the verifier's process.
    Raises:
        TrainerError: They cannot be read, started or found.
    """
    options, sample = config.synthetic, config.synthetic.sample
    given = read_given("synthetic.input", options.input or "", options.id_column, options.max_rows)
    prompts = [read_prompt(row, options) for row in given]
    digests: dict[str, object] = {"input": given.digest}
    worth: Callable[[], Worth]
    if sample.verifier is not None:
        verifier = VerifierProcess(sample.verifier, sample.pattern, sample.timeout_s)
        stack.callback(verifier.close)
        digests["verifier_digest"] = verifier.digest
        worth = lambda: by_verifier(verifier)  # noqa: E731
    else:
        folder = Path(sample.reward_model or "").expanduser()
        digests["reward_model"] = _folder_digest(folder)
        size = config.evaluate.micro_batch_size
        worth = lambda: by_reward_model(_scorer(folder, config.model.trust_remote_code, size))  # noqa: E731
    model = named_model(config)

    def open_model() -> MakePart:
        provenance = {"verb": "sample", "model": model.digest, "seed": options.seed}
        provenance["verifier"] = sample.verifier or digests["reward_model"]
        judges = worth()
        maker = AnswersMaker(options, model.asked(), judges, provenance)
        return lambda part, number: maker.make([prompts[row] for row in part], number)

    return DataRecipe(
        deciding(options, sample, {**digests, **model.decides}, samples=True),
        len(prompts),
        model.at_once,
        open_model,
        lambda notes, num_rows: answer_lines(notes, sample, num_rows),
    )


def _folder_digest(folder: Path) -> Sequence[str]:
    files = sorted(file for file in folder.glob("*") if file.suffix in OF_MODELS) if folder.is_dir() else []
    return [f"{file.name}:{file_digest(file)}" for file in files]


def _scorer(folder: Path, trust_remote_code: bool, size: int) -> Scorer:
    from trainer.errors import ModelError
    from trainer.export.folder import load_scorer
    from trainer.model.cache import context_length
    from trainer.model.tokenizer import configured_tokenizer

    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ModelError(
            f"`{SECTION}.reward_model` must be the folder of an exported reward model, but {folder} holds none. Export "
            "it first: palimpsest export RUN"
        )
    model = load_scorer(folder, trust_remote_code)
    tokenizer = configured_tokenizer(ModelConfig(trust_remote_code=trust_remote_code), str(folder))
    return Scorer(model, tokenizer, context_length(model.config), size)
