"""What every rank of the tests needs, imported once; ranks are forked from the process that did."""

from trainer.model.lean import import_models, import_peft

import_models()
import_peft()

from transformers.models.llama import modeling_llama  # noqa: E402, F401

from trainer.dist import mesh  # noqa: E402, F401
from trainer.run import session, training  # noqa: E402, F401
