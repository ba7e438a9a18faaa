"""Models that also see: their language part is loaded alone, and written back into the whole."""

import contextlib

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.helpers.multimodal import KINDS, save_multimodal
from tests.helpers.tiny import save_llama
from trainer.config.model import ModelConfig, ModelKind
from trainer.config.tune import Quantise
from trainer.errors import ModelError
from trainer.export.folder import folder_logits, write_model_files
from trainer.export.merge import for_whole, write_adapter
from trainer.export.weights import export_weights
from trainer.model.attention import AttentionChoice
from trainer.model.base_files import BaseFiles, open_base
from trainer.model.load import load_model, read_config, read_whole_config
from trainer.model.multimodal import whole_class
from trainer.model.packed import packing_of
from trainer.model.packing_kind import check_packing
from trainer.model.processor import require_processor
from trainer.model.tune.quantise import quantised_layers
from trainer.model.verify_weights import NUM_MATRICES, verify_weights

CLASSES = {"gemma3": "Gemma3ForCausalLM", "mistral3": "MistralForCausalLM", "qwen3_5": "Qwen3_5ForCausalLM"}
TOKENS_1T = torch.arange(20, 60)[None]


@pytest.fixture(scope="module", params=sorted(KINDS))
def base(request, tmp_path_factory):
    """Return the kind, a folder of it, and what transformers' own class of the whole answers to text."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_multimodal(folder, request.param)
    with torch.no_grad():
        return request.param, folder, model(input_ids=TOKENS_1T, use_cache=False).logits


def load(folder, **options):
    config = ModelConfig(path=str(folder), **options)
    return load_model(
        str(folder), config, AttentionChoice("sdpa", ""), "fp32", None, torch.device("cpu")
    ).model


def opened(folder):
    return open_base(str(folder), ModelConfig(path=str(folder)))


def shifted(model):
    """Return the tensors of a model, each once, moved by 1/4 where they are trained."""
    return [(name, parameter.detach() + 0.25) for name, parameter in model.named_parameters()]


def write(folder, stream, out, is_whole):
    model = ModelConfig(path=str(folder))

    def rest(staging):
        write_model_files(str(folder), model, "float32", print, staging, is_whole)

    export_weights(stream, out, "float32", 10**9, rest)


def test_the_language_part_is_a_causal_model_that_answers_as_the_whole(base):
    kind, folder, logits = base
    model = load(folder)
    assert type(model).__name__ == CLASSES[kind]
    assert model.config._attn_implementation == "sdpa"
    assert not any("vision" in name or "visual" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=TOKENS_1T).logits, logits, rtol=1e-4, atol=1e-4)


def test_its_configuration_is_that_of_the_text(base):
    kind, folder, _ = base
    config = read_config(str(folder), ModelConfig())
    assert config.architectures == [CLASSES[kind]]
    assert config.vocab_size == 264
    assert config.tie_word_embeddings is (kind == "gemma3")
    assert type(load(folder, kind=ModelKind.random)).__name__ == CLASSES[kind]


def test_every_tensor_goes_back_under_its_name_in_the_files(base):
    _, folder, _ = base
    files, model = load_file(folder / "model.safetensors"), load(folder)
    found = dict(opened(folder).as_files(shifted(model)))
    assert set(found) == set(files)
    moved = {name for name in files if not torch.equal(found[name], files[name])}
    assert len(moved) == len(list(model.named_parameters()))
    assert not any("vision" in name or "visual" in name or "projector" in name for name in moved)
    for name in moved:
        torch.testing.assert_close(found[name], files[name] + 0.25, msg=name)


def test_the_whole_and_the_language_model_alone_load_in_transformers(base, tmp_path):
    kind, folder, _ = base
    model, files = load(folder), opened(folder)
    stream = shifted(model)
    write(folder, files.as_files(stream), tmp_path / "whole", True)
    write(folder, iter(stream), tmp_path / "alone", False)
    whole, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "alone", dtype=torch.float32)
    assert type(alone).__name__ == CLASSES[kind]
    with torch.no_grad():
        for name, tensor in stream:
            model.get_parameter(name).copy_(tensor)
        meant = model.eval()(input_ids=TOKENS_1T).logits
        for other in (whole, alone):
            torch.testing.assert_close(other.eval()(input_ids=TOKENS_1T).logits, meant, rtol=1e-4, atol=1e-4)
    assert folder_logits(tmp_path / "whole", TOKENS_1T[0], "float32", False)[0].shape == (40, 264)


def test_files_of_the_processor_are_copied(base, tmp_path):
    _, folder, _ = base
    (folder / "preprocessor_config.json").write_text('{"size": 28}')
    tmp_path.joinpath("out").mkdir()
    write_model_files(str(folder), ModelConfig(), "float32", print, tmp_path / "out", True)
    require_processor(str(folder), ModelConfig())
    (folder / "preprocessor_config.json").unlink()
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"size": 28}'


def test_a_whole_without_files_of_a_processor_is_refused_and_a_language_model_needs_none(base, tmp_path):
    _, folder, _ = base
    with pytest.raises(
        ModelError, match=r"`export\.text_only` must be true for .* none of processor_config\.json, "
    ):
        require_processor(str(folder), ModelConfig())
    save_llama(tmp_path)
    require_processor(str(tmp_path), ModelConfig())


def test_an_adapter_is_read_by_peft_on_the_whole_and_leaves_what_sees_alone(base, tmp_path):
    from peft import LoraConfig, PeftModel, inject_adapter_in_model

    kind, folder, logits = base
    model = load(folder)
    names = [n for n, m in model.named_modules() if n.endswith(("o_proj", "down_proj")) and "linear" not in n]
    config = LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM", base_model_name_or_path=str(folder))
    inject_adapter_in_model(config, model)
    torch.manual_seed(1)
    trained = [(n, torch.randn_like(p)) for n, p in model.named_parameters() if ".lora_" in n]
    with torch.no_grad():
        for name, tensor in trained:
            model.get_parameter(name).copy_(tensor)
        meant = model.eval()(input_ids=TOKENS_1T).logits
    stream, described = for_whole(trained, config, opened(folder))
    write_adapter(stream, described, tmp_path, torch.float32)
    # Of Gemma 3 both are the whole; of Qwen3.5 the second is the language model alone, where the names are others.
    makers = [AutoModelForImageTextToText, AutoModelForCausalLM][: 2 if kind == "gemma3" else 1]
    for maker in makers:
        tuned = PeftModel.from_pretrained(maker.from_pretrained(folder), tmp_path).eval()
        adapted = [n for n, _ in tuned.named_modules() if n.endswith("lora_A.default")]
        assert len(adapted) == len(names) and not any("vis" in name for name in adapted)
        with torch.no_grad():
            found = tuned(input_ids=TOKENS_1T).logits
        assert (found - logits).abs().max() > 0.1
        torch.testing.assert_close(found, meant, rtol=1e-3, atol=1e-3, msg=maker.__name__)
    if kind == "qwen3_5":
        with pytest.raises(ValueError, match="not found in the base model"):
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)


def test_the_language_part_is_packed_into_4_bits_and_compared_with_the_files(base):
    _, folder, _ = base
    config = ModelConfig(path=str(folder))
    attention, cpu = AttentionChoice("sdpa", ""), torch.device("cpu")
    model = load_model(str(folder), config, attention, "fp32", None, cpu, Quantise.nf4).model
    assert model.is_loaded_in_4bit and all("model." in name for name in quantised_layers(model))
    assert verify_weights(model, opened(folder), lambda _: contextlib.nullcontext()) == NUM_MATRICES


def test_a_folder_without_weights_says_that_the_language_model_is_written_alone(base, tmp_path):
    _, folder, _ = base
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (said,) = opened(tmp_path).sentences()
    assert said.endswith("tensors have the names of transformers; its language model is written alone.")


def test_how_a_whole_is_packed_is_known_of_its_language_part(base, tmp_path):
    """A failure points at the text's configuration, which says nothing of it: FP8 would train as it is."""
    _, folder, _ = base
    config = read_whole_config(str(folder), ModelConfig())
    config.quantization_config = {"quant_method": "gptq"}
    config.save_pretrained(tmp_path)
    packing = packing_of(read_whole_config(str(tmp_path), ModelConfig()))
    with pytest.raises(ModelError, match="names the quantisation gptq instead"):
        check_packing(packing, str(tmp_path), Quantise.none)


def test_a_language_model_alone_has_no_whole(tmp_path):
    save_llama(tmp_path)
    assert whole_class(read_whole_config(str(tmp_path), ModelConfig())) is None
    assert not opened(tmp_path).is_multimodal
    assert not BaseFiles("x", {}).names
