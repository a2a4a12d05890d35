"""What test_export.py starts: opens a folder in plain vLLM and in lm-eval's vLLM class, none of the suite in between.

`python -m tests.invariance.open_export MODEL REQUESTS`: REQUESTS holds prompts as ids and as text; writes OPENED there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

OPENED = "opened.json"
LENGTHS: dict[str, Any] = {"dtype": "float32", "max_model_len": 512}
SMALL: dict[str, Any] = LENGTHS | {"enforce_eager": True, "kv_cache_memory_bytes": 2**28}


def lm_eval_answers(model: Any, texts: list[str], new_tokens: int) -> list[str]:
    """Greedy answers of one of lm-eval's model classes."""
    settings = {"until": [], "max_gen_toks": new_tokens, "do_sample": False}
    return model.generate_until([Instance("generate_until", {}, (text, settings), i) for i, text in enumerate(texts)])


def vllm_answers(folder: str, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Greedy answers of vLLM as anyone would start it; the end of an answer is the folder's."""
    from vllm import LLM, SamplingParams

    engine = LLM(model=folder, **SMALL)
    requests: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
    made = engine.generate(requests, SamplingParams(temperature=0.0, max_tokens=new_tokens), use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in made]


def named_vllm(version: Callable[[str], str]) -> Callable[[str], str]:
    """Lets lm-eval find vLLM's version, which its CPU build has under another name."""

    def found(name: str) -> str:
        try:
            return version(name)
        except metadata.PackageNotFoundError:
            return version(f"{name}-cpu")

    return found


def main() -> None:
    folder, file = sys.argv[1], Path(sys.argv[2])
    asked = json.loads(file.read_text())
    found: dict[str, Any] = {"vllm": vllm_answers(folder, asked["ids"], asked["new_tokens"])}

    metadata.version = named_vllm(metadata.version)
    from lm_eval.models import vllm_causallms

    engines: Any = vllm_causallms
    model = engines.VLLM(pretrained=folder, device="cpu", batch_size="auto", **SMALL)
    found["lm_eval"] = lm_eval_answers(model, asked["texts"], asked["new_tokens"])
    (file.parent / OPENED).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
