"""HumanEval's programs as text; nothing is run here."""

from __future__ import annotations

from typing import Any

FENCE = "```"


def whole_program(document: dict[str, Any], completion: str) -> str:
    """The function's beginning, the answer up to the end of its code block, the tests and their call."""
    code, _, _ = completion.partition(FENCE)
    return f"{document['prompt']}{code}\n{document['test']}\ncheck({document['entry_point']})\n"
