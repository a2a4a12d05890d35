"""Start a vLLM server that scores with POLAR: `python -m uniapl.polar.server DIR --port P [vLLM's options]`.

It is vLLM's own server with the config class that a checkpoint of InternLM2 else brings as code. It takes token ids at
/pooling (`machine.discriminator_servers`) and needs no tokenizer. It listens on 127.0.0.1 unless --host is given, and
asks nobody who they are: a --host must be on a network that only the study uses.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from uniapl.entry import run_guarded
from uniapl.estimate.memory import REENCODED_TOKENS
from uniapl.polar.text import MAX_LENGTH
from uniapl.serve import QUIET, SERVER, prepare

OPTIONS = (
    "--runner", "pooling", "--skip-tokenizer-init", "--load-format", "safetensors", "--no-enable-prefix-caching",
    "--no-enable-chunked-prefill", "--disable-uvicorn-access-log",
)  # fmt: skip


def command(arguments: list[str], *, on_gpu: bool) -> list[str]:
    """vLLM's words; the user's come last and so overrule ours. Raise ValueError where the folder is no checkpoint."""
    from uniapl.polar.checkpoint import weight_files

    parser = argparse.ArgumentParser(allow_abbrev=False, usage="%(prog)s DIR --port P [--host H] [vLLM's options]")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    own, options = parser.parse_known_args(arguments)
    if any(option.startswith("--trust") for option in options):
        raise ValueError("POLAR is read without its own code here; leave --trust-remote-code out")
    weight_files(own.directory)
    where = ["--host", own.host, "--port", str(own.port)]
    longest = str(MAX_LENGTH + REENCODED_TOKENS)
    length = ["--max-model-len", longest, "--max-num-batched-tokens", longest]
    own_words = ["--model", str(own.directory), *where, *OPTIONS, *length]
    return [*own_words, *(() if on_gpu else ("--enforce-eager",)), *options]


def main(arguments: list[str]) -> None:
    """Become vLLM's server. Raise ValueError where vLLM cannot run."""
    words = prepare(command, arguments, environment=QUIET)
    from uniapl.polar.vllm import register_config

    register_config()
    sys.argv = [SERVER, *words]
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run_guarded(lambda: main(sys.argv[1:]))
