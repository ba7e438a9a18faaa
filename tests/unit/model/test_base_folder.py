"""What a folder lacks to be a base is seen in its names, and in the first bytes of its files."""

import json
import shutil
import struct
import subprocess
import sys

import pytest

from trainer.config.model import ModelConfig, ModelKind
from trainer.model.base_folder import Needs, folder_lacks
from trainer.model.on_disk import model_problems

INDEX = "model.safetensors.index.json"


def write_tensors(file, name):
    header = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


@pytest.fixture
def whole(tmp_path):
    """Return a folder of a model in two shards."""
    folder = tmp_path / "models" / "llama"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    for number in (1, 2):
        write_tensors(folder / f"model-{number}-of-2.safetensors", f"t{number}")
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {f"t{number}": f"model-{number}-of-2.safetensors" for number in (1, 2)}})
    )
    return folder


ALL = Needs()


def states(folder, needs=ALL):
    return " / ".join(lack.state for lack in folder_lacks(folder, needs))


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(folder):
    file = folder / "model-2-of-2.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def writes(name, text):
    return lambda folder: (folder / name).write_text(text)


def becomes_an_adapter(folder):
    without("config.json")(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def goes_inside(folder):
    shutil.move(folder, folder.parent / "other")
    folder.mkdir()
    shutil.move(folder.parent / "other", folder / "main")


SHARDS = ("model-1-of-2.safetensors", "model-2-of-2.safetensors")
CASES = {
    "no weights": (without(INDEX, *SHARDS), "has no weights (model.safetensors"),
    "half of the shards": (
        without(SHARDS[1]),
        f"has 1 of the 2 files of weights that {INDEX} lists ({SHARDS[1]} is",
    ),
    "no index": (without(INDEX), f"has shards of weights ({', '.join(SHARDS)}), but no {INDEX}"),
    "an empty index": (writes(INDEX, "{}"), f"has an {INDEX} that lists no weights"),
    "a shard that is cut": (cut, f"has {SHARDS[1]} of "),
    "a page in its place": (
        writes(SHARDS[0], "<html>" * 9),
        "with another beginning than a safetensors file has",
    ),
    "a pointer": (
        writes(SHARDS[0], "version https://git-lfs.github.com/spec/v1\n"),
        "only as a pointer of git lfs",
    ),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer"),
    "neither": (without(INDEX, *SHARDS, "tokenizer.json"), ") / has no tokenizer"),
    "settings of a tokenizer": (
        lambda folder: (folder / "tokenizer.json").rename(folder / "tokenizer_config.json"),
        "has no tokenizer",
    ),
    "no config": (without("config.json"), "has no config.json"),
    "a broken config": (writes("config.json", "{"), "has a config.json that is no JSON"),
    "another config": (writes("config.json", "[]"), "has a config.json that names no model_type"),
    "an adapter": (becomes_an_adapter, "is an adapter of org/base, and no model alone"),
    "a folder above": (goes_inside, "has no config.json, which is in a folder of it"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_folder_lacks_is_named(whole, case):
    assert states(whole) == ""
    change, said = CASES[case]
    change(whole)
    assert said in states(whole)


def test_only_what_is_read_is_asked_for(whole):
    without(INDEX, *SHARDS, "tokenizer.json")(whole)
    assert states(whole, Needs(tokenizer=False, weights=False)) == ""
    assert "weights" not in states(whole, Needs(tokenizer=True, weights=False))


def test_older_weights_and_a_tokenizer_of_bytes_are_enough(whole):
    without(INDEX, *SHARDS, "tokenizer.json")(whole)
    (whole / "pytorch_model.bin").write_bytes(b"PK")
    (whole / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert states(whole) == ""


def problems(path, **options):
    return [one.sentence for one in model_problems(ModelConfig(path=str(path), **options), ALL)]


def test_a_fix_is_with_it(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert problems(whole) == []
    file = whole / SHARDS[0]
    assert problems(file)[0].endswith(f"but {file} is a file. Set model.path={whole}.")
    assert "Did you mean models/llama?" in problems("models/lama")[0]
    assert "Did you mean meta-llama/Llama-3.1-8B?" in problems("meta-llama/Llama-3.1-8b")[0]
    assert "Did you mean model=smollm2_135m?" in problems("smollm2_135")[0]
    run = tmp_path / "runs" / "first"
    (run / "checkpoints").mkdir(parents=True)
    assert (
        f"is the directory of a run. Write it as a model: palimpsest export run_dir={run}" in problems(run)[0]
    )
    without("tokenizer.json")(whole)
    assert problems(whole, tokenizer=str(tmp_path / "models")) == [
        "`model.tokenizer` (or `model.path`, where no tokenizer is given) must name a folder or a Hugging Face model "
        f"with a tokenizer, but is '{tmp_path}/models' instead: the folder has no tokenizer (tokenizer.json, "
        "tokenizer.model). Check the name, or download the model first."
    ]


def test_random_weights_take_a_folder_or_file_without_weights(whole, tmp_path):
    without(INDEX, *SHARDS)(whole)
    assert problems(whole, kind=ModelKind.random) == []
    assert "has no tokenizer" in problems(whole / "config.json", kind=ModelKind.random)[0]
    assert problems(whole / "config.json", kind=ModelKind.random, tokenizer=str(whole)) == []


def test_a_name_of_the_hub_is_taken_from_the_cache_without_a_network(whole, tmp_path, monkeypatch):
    """Tests have no network: what the cache does not hold whole is refused."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    said = problems("org/name")[0]
    assert (
        "'org/name' is neither: there is no such folder, and it is not in the cache and the hub cannot"
        in said
    )
    kept = tmp_path / "hub" / "models--org--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    shutil.copytree(whole, kept / "snapshots" / "abc")
    assert problems("org/name") == []
    assert problems("org/base", tokenizer="org/name")[0].startswith("`model.path`")
    without(SHARDS[0])(kept / "snapshots" / "abc")
    assert "what is in the cache has 1 of the 2 files of weights" in problems("org/name")[0]
    assert "the hub cannot be reached" in problems("meta-llama/Llama-3.1-8B")[0], (
        "a shape that ships is no model"
    )


def test_looking_loads_no_torch():
    none = "import sys\nfor name in ('torch', 'transformers'):\n    sys.modules[name] = None\n"
    code = f"{none}import trainer.model.on_disk"
    subprocess.run([sys.executable, "-c", code], check=True)
