"""The one place where a chat template is applied: training, rollouts and evaluation render through it."""

from __future__ import annotations

from typing import Any


# DEVIATION-CANDIDATE: thinking-mode: off for training and evaluation.
def render_messages(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """A conversation as text by the model's own template, thinking off (our choice for Qwen3).

    Without a generation prompt the last message is an answer's beginning, which the model goes on with.
    False itself, not None: Qwen3's template asks whether `enable_thinking is false`, and else lets the model think.
    """
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt, enable_thinking=False,
    )  # fmt: skip


def render(tokenizer: Any, user_text: str) -> str:
    """The prompt as text: one user message and the generation prompt."""
    return render_messages(tokenizer, [{"role": "user", "content": user_text}], add_generation_prompt=True)


def prompt_ids(tokenizer: Any, user_text: str) -> list[int]:
    """Token ids of the rendered prompt; the template brings its own special tokens."""
    return tokenizer(render(tokenizer, user_text), add_special_tokens=False)["input_ids"]


def completion_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of an answer with the end token that stops generation."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def completion_text(tokenizer: Any, token_ids: list[int]) -> str:
    """Text of sampled ids without special tokens."""
    return tokenizer.decode(token_ids, skip_special_tokens=True)
