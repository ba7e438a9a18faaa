"""Safetensors export from a stream: whole folder or none, read back tensor by tensor."""

import json

import pytest
import torch
from safetensors.torch import load_file

from trainer.errors import CheckpointError, SelfCheckError
from trainer.export import weights
from trainer.export.earlier import files_in, why_not_replaced
from trainer.export.weights import export_weights, tensor_digest


def stream(num=5):
    for index in range(num):
        yield f"layer.{index}.weight", torch.full((10, 10), float(index) + 1 / 3)
    yield "counter", torch.tensor([3])


def write_rest(folder):
    (folder / "config.json").write_text("{}")


def load(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {}
    for file in sorted(set(index["weight_map"].values())):
        tensors |= load_file(folder / file)
    assert sorted(tensors) == sorted(index["weight_map"])
    return tensors, index


@pytest.mark.parametrize("max_shard_bytes", [1, 450, 10**9])
def test_tensors_come_back_cast_and_sharded(tmp_path, max_shard_bytes):
    count = export_weights(stream(), tmp_path / "out", "bfloat16", max_shard_bytes, write_rest)
    tensors, index = load(tmp_path / "out")
    assert count == len(tensors) == 6
    for name, tensor in stream():
        expected = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        assert torch.equal(tensors[name], expected)
    files = set(index["weight_map"].values())
    assert len(files) == {1: 6, 450: 3, 10**9: 1}[max_shard_bytes]
    assert all(f"-of-{len(files):05d}" in file for file in files)
    assert index["metadata"]["total_size"] == 5 * 200 + 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_tensors_that_must_be_exact_are_float32_among_narrow_ones(tmp_path):
    tensors = {"bias": torch.tensor([14.001, 14.002]), "weight": torch.tensor([14.001, 14.002])}
    export_weights(iter(tensors.items()), tmp_path / "out", "bfloat16", 10**9, write_rest, exact={"bias"})
    found, _ = load(tmp_path / "out")
    assert torch.equal(found["bias"], tensors["bias"]) and found["weight"].dtype == torch.bfloat16


def test_an_earlier_export_is_replaced_and_anything_else_is_not(tmp_path):
    for num in (5, 2):
        export_weights(stream(num), tmp_path / "out", "float32", 450, write_rest)
    assert len(load(tmp_path / "out")[0]) == 3
    mine = tmp_path / "mine" / "notes.md"
    mine.parent.mkdir()
    mine.write_text("words")
    with pytest.raises(CheckpointError, match=r"`export\.output_dir` must be a new folder"):
        export_weights(stream(), tmp_path / "mine", "float32", 450, write_rest)
    assert mine.read_text() == "words"


@pytest.mark.parametrize(
    "there",
    [
        ["adapter_config.json", "config.yaml", "checkpoints/step-00000003/manifest.json"],
        ["model.safetensors.index.json", "model-00001-of-00001.safetensors", "config.json"],
    ],
    ids=["run", "base"],
)
def test_a_run_and_a_base_are_no_exports(tmp_path, there):
    """A run of LoRA has an adapter_config.json and a sharded base an index: both were replaced whole."""
    for name in there:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("theirs")
    (tmp_path / "link").symlink_to("out")
    for place in ("out", "link", "out/../out"):
        with pytest.raises(
            CheckpointError, match=r"must be a new folder or an earlier export, but .* holds "
        ):
            export_weights(stream(), tmp_path / place, "float32", 10**9, write_rest)
    assert files_in(tmp_path / "out") == sorted(there)


@pytest.mark.parametrize("mine", ["notes.md", "drafts/chapter.txt", "mine.gguf", "link"])
def test_an_export_with_anything_of_somebody_else_in_it_stays(tmp_path, mine):
    out = tmp_path / "out"
    export_weights(stream(2), out, "float32", 10**9, write_rest)
    (out / "model-q8_0.gguf").touch()  # ours
    (out / "README.md").touch()
    assert why_not_replaced(out) is None
    (out / mine).parent.mkdir(exist_ok=True)
    (out / mine).symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match=f"holds {mine}, which no export wrote"):
        export_weights(stream(), out, "float32", 10**9, write_rest)
    assert len(load(out)[0]) == 3 and (out / mine).is_symlink()


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (OSError(28, "No space"), "No space left on device. Free space or choose another folder."),
        (OSError(30, "Read-only"), "Read-only file system. Choose another folder."),
        (RuntimeError("broken"), ""),
    ],
)
def test_a_failure_leaves_no_folder_and_the_earlier_export(tmp_path, problem, said):
    export_weights(stream(2), tmp_path / "out", "float32", 10**9, write_rest)

    def fail(folder):
        raise problem

    with pytest.raises((CheckpointError, RuntimeError)) as caught:
        export_weights(stream(), tmp_path / "out", "float32", 10**9, fail)
    assert f" failed: {said}" in str(caught.value) or isinstance(problem, RuntimeError)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert len(load(tmp_path / "out")[0]) == 3


def test_a_folder_that_came_while_tensors_were_written_is_left_alone(tmp_path):
    def came(folder):
        write_rest(folder)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("words")

    with pytest.raises(CheckpointError, match=r"`export\.output_dir` must be a new folder"):
        export_weights(stream(), tmp_path / "out", "float32", 10**9, came)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_an_export_through_a_link_is_written_where_the_link_leads(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large" / "disk")
    for num in (5, 2):
        export_weights(stream(num), tmp_path / "out", "float32", 10**9, write_rest)
    assert (tmp_path / "out").is_symlink() and len(load(tmp_path / "large" / "disk")[0]) == 3


def test_a_file_that_does_not_hold_what_was_meant_is_not_published(tmp_path, monkeypatch):
    save_file = weights.save_file

    def faulty(tensors, path, metadata):
        tensors = dict(tensors)
        name = next(iter(tensors))
        tensors[name] = tensors[name] + 1
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(weights, "save_file", faulty)
    with pytest.raises(SelfCheckError, match=r"layer\.0\.weight must equal the trained one"):
        export_weights(stream(), tmp_path / "out", "float32", 10**9, write_rest)
    assert not list(tmp_path.iterdir())


def test_digests_are_of_values():
    tensor = torch.arange(12.0).reshape(3, 4)
    assert tensor_digest(tensor.t()) == tensor_digest(tensor.t().contiguous())
    assert tensor_digest(tensor) != tensor_digest(tensor.t())
    assert tensor_digest(tensor.bfloat16()) != tensor_digest(tensor)


@pytest.mark.parametrize(
    ("asked", "trained", "written"),
    [
        ("auto", "bf16", "bfloat16"),
        ("auto", "fp32", "float32"),
        ("bfloat16", "fp32", "bfloat16"),
        ("float32", "bf16", "float32"),
    ],
)
def test_an_export_is_in_what_was_trained_unless_asked_otherwise(asked, trained, written):
    assert weights.export_dtype(asked, trained) == written


def test_tensors_without_a_dimension_and_without_elements_are_exported(tmp_path):
    tensors = {"scale": torch.tensor(2.5), "count": torch.tensor(7), "nothing": torch.zeros(0, 3)}
    assert export_weights(iter(tensors.items()), tmp_path / "out", "float32", 10**9, write_rest) == 3
    found, _ = load(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
