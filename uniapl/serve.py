"""Start a vLLM server that trainers can push weights to: `python -m uniapl.serve MODEL_DIR --port P [vLLM's options]`.

It is vLLM's own server with the worker extension of `uniapl.weight_channel` and the settings that make its log-probs
those of the distribution it samples from. It listens on 127.0.0.1 unless --host is given. Whoever reaches its port can
replace its weights, so a --host must be on a network that only the study uses.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from uniapl.entry import run_guarded
from uniapl.sampler import explain_fallback
from uniapl.sampler_vllm import BLOCK_TOKENS

SERVER = "vllm.entrypoints.launchers.api_server.entry"
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
ENVIRONMENT = QUIET | {"VLLM_SERVER_DEV_MODE": "1"}
OPTIONS = (
    "--worker-extension-cls", "uniapl.weight_channel.WeightReceiver", "--logprobs-mode", "processed_logprobs",
    "--generation-config", "vllm", "--enable-prefix-caching", "--enable-scale-out",
    "--disable-uvicorn-access-log",
)  # fmt: skip
CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}  # fork: starts faster
CPU_OPTIONS = ("--enforce-eager", "--block-size", str(BLOCK_TOKENS))


def command(arguments: list[str], *, on_gpu: bool) -> list[str]:
    """vLLM's words; the user's come last and so overrule ours. Raise ValueError where the folder is no checkpoint."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, usage="%(prog)s MODEL_DIR --port P [--host H] [vLLM's options]"
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    own, options = parser.parse_known_args(arguments)
    if not (own.model / "config.json").is_file():
        raise ValueError(f"{own.model} is no checkpoint (config.json is missing); give the folder of the base model")
    where = ["--host", own.host, "--port", str(own.port)]
    return ["--model", str(own.model), *where, *OPTIONS, *(() if on_gpu else CPU_OPTIONS), *options]


def prepare(command: Callable[..., list[str]], arguments: list[str], *, environment: Mapping[str, str]) -> list[str]:
    """vLLM's words on this machine, and its environment set. Raise ValueError where vLLM cannot run."""
    import torch

    if reason := explain_fallback():
        raise ValueError(f"no server can run here: {reason.split(':')[0]}")
    on_gpu = torch.cuda.is_available()
    words = command(arguments, on_gpu=on_gpu)
    os.environ.update(environment)
    for name, value in ({} if on_gpu else CPU_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    return words


def main(arguments: list[str]) -> None:
    """Take on vLLM's server in this process's place. Raise ValueError where vLLM cannot run."""
    words = prepare(command, arguments, environment=ENVIRONMENT)
    os.execv(sys.executable, [sys.executable, "-m", SERVER, *words])


if __name__ == "__main__":
    run_guarded(lambda: main(sys.argv[1:]))
