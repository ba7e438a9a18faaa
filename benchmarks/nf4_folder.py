"""Write random weights of a shape as a folder in NF4, layer by layer: a 70B needs 40 GB of disk and little memory.

    python benchmarks/nf4_folder.py SHAPE FOLDER

What bitsandbytes writes: packed weights, their scales and a description of both under each weight's name.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

PACKING = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}


def write_folder(shape: Path, folder: Path) -> None:
    """Write the folder; a file for each decoder layer and one for the rest."""
    import torch
    from bitsandbytes.functional import quantize_4bit
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    config = AutoConfig.from_pretrained(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear} - {"lm_head"}
    files: dict[str, list[str]] = {}
    for name in dict(model.named_parameters()):
        parts = name.split(".")
        files.setdefault(parts[2] if parts[1] == "layers" else "rest", []).append(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    index = {}
    for part, names in files.items():
        tensors = {}
        for name in names:
            whole = torch.empty(model.get_parameter(name).shape, dtype=torch.bfloat16, device=device)
            whole = whole.fill_(1.0) if whole.ndim == 1 else whole.normal_(std=config.initializer_range)
            if name.removesuffix(".weight") in linear:
                packed, state = quantize_4bit(whole, blocksize=64, compress_statistics=True, quant_type="nf4")
                tensors[name] = packed.cpu()
                tensors |= {f"{name}.{key}": value.cpu() for key, value in state.as_dict(packed=True).items()}
            else:
                tensors[name] = whole.cpu()
        file = f"model-{part}.safetensors"
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    described = json.loads((shape / "config.json").read_text()) | {"quantization_config": PACKING}
    (folder / "config.json").write_text(json.dumps(described, indent=2))


if __name__ == "__main__":
    began = time.monotonic()
    write_folder(Path(sys.argv[1]), Path(sys.argv[2]))
    size = sum(file.stat().st_size for file in Path(sys.argv[2]).iterdir())
    print(f"{size / 1e9:.1f} GB in {time.monotonic() - began:.0f} s")
