"""The suite's engine as lm-eval's `LM`: generation through a Sampler, likelihoods through a transformers forward.

Chat templates are applied by `uniapl.chat` alone, so that the evaluated prompt is the one that is trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from uniapl import chat
from uniapl.likelihood import completion_likelihoods
from uniapl.records import Sample
from uniapl.sampler import Sampler
from uniapl.seeding import stream_seed

DEFAULT_NEW_TOKENS = 256  # for tasks of lm-eval that name no cap


class EngineLM(TemplateLM):
    """One model in the engine. `policy` gives the same weights as a transformers model; asked for only by likelihoods.

    `samples` keeps what was generated, by (rendered prompt, cap), since lm-eval itself only sees texts.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: Any,
        *,
        policy: Callable[[], Any],
        max_model_tokens: int,
        micro_batch_tokens: int,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.samples: dict[tuple[str, int], Sample] = {}
        self._sampler = sampler
        self._policy = policy
        self._max_model_tokens = max_model_tokens
        self._micro_batch_tokens = micro_batch_tokens

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in lm-eval's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for lm-eval's record."""
        return self.tokenizer.chat_template if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render through the one place where templates are applied."""
        return chat.render_messages(self.tokenizer, chat_history, add_generation_prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a rendered text; the template brought its own special tokens."""
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate, greedily unless a task asks for a temperature; texts are cut at the task's stop strings."""
        texts = [""] * len(requests)
        settings = [_settings(request) for request in requests]
        for cap, temperature in sorted({(s["cap"], s["temperature"]) for s in settings}):
            chosen = [i for i, s in enumerate(settings) if (s["cap"], s["temperature"]) == (cap, temperature)]
            prompts = [self._prompt(requests[i].args[0], cap) for i in chosen]
            seeds = [stream_seed("lm-eval", i) for i in chosen]
            samples = self._sampler.generate(prompts, seeds=seeds, max_new_tokens=cap, temperature=temperature)
            for i, sample in zip(chosen, samples, strict=True):
                text = chat.completion_text(self.tokenizer, sample.token_ids)
                for stop in settings[i]["until"]:
                    text = text.split(stop)[0] if stop else text
                texts[i] = text
                self.samples[requests[i].args[0], cap] = sample
        return texts

    def _prompt(self, context: str, cap: int) -> list[int]:
        """Token ids of a prompt, cut from the left where it would not fit, as lm-eval's own models do."""
        room = self._max_model_tokens - cap
        if room <= 0:
            raise ValueError(
                f"a task asks for {cap} new tokens, sampler.max_model_tokens is {self._max_model_tokens}; raise it"
            )
        return self.tok_encode(context)[-room:]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations, without lm-eval's progress bar, which no terminal may be there for."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context[-self._max_model_tokens :], continuation) for _, context, continuation in requests]
        found = completion_likelihoods(self._policy(), pairs, micro_batch_tokens=self._micro_batch_tokens)
        return [(one.sum_nats, one.is_greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the longest length, each token predicted once."""
        pairs, owners = [], []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for start in range(0, len(ids), self._max_model_tokens - 1):
                context = [self.prefix_token_id] if start == 0 else [ids[start - 1]]
                pairs.append((context, ids[start : start + self._max_model_tokens - 1]))
                owners.append(i)
        totals = [0.0] * len(requests)
        found = completion_likelihoods(self._policy(), pairs, micro_batch_tokens=self._micro_batch_tokens)
        for owner, one in zip(owners, found, strict=True):
            totals[owner] += one.sum_nats
        return totals


def _settings(request: Instance) -> dict[str, Any]:
    """Cap, temperature and stop strings of a request."""
    arguments: Any = request.args
    options = arguments[1]
    until = options.get("until") or []
    sampled = bool(options.get("do_sample")) and float(options.get("temperature") or 0) > 0
    return {
        "cap": new_tokens(options),
        "temperature": float(options["temperature"]) if sampled else 0.0,
        "until": [until] if isinstance(until, str) else list(until),
    }


def new_tokens(options: dict[str, Any]) -> int:
    """The cap that a task's generation_kwargs name."""
    return int(options.get("max_gen_toks") or options.get("max_new_tokens") or DEFAULT_NEW_TOKENS)
