"""What every rank of the tests needs, imported once; ranks are forked from the process that did."""

import gc

from trainer.dist.mesh import import_deepspeed
from trainer.model.lean import import_models, import_peft

import_models()
import_peft()
import_deepspeed()

import deepspeed.module_inject.auto_ep_layer  # noqa: E402, F401
import numpy.ma  # noqa: E402, F401
import omegaconf._impl  # noqa: E402, F401
from transformers.models.llama import modeling_llama  # noqa: E402, F401

from trainer.dist import mesh  # noqa: E402, F401
from trainer.engine import flat, initialize, lane, partitioned  # noqa: E402, F401
from trainer.run import session, training  # noqa: E402, F401

initialize.import_parts()

# What is here stays. A collection in a rank would touch all of it, and so copy it: half of the time of its start.
gc.collect()
gc.freeze()
