"""The sandbox for verifier code that a model wrote, and for programs that are judged by running them (HumanEval).

    from uniapl.sandbox import Call, Sandbox
    with Sandbox() as sandbox:
        sandbox.judge([Call("def evaluate(response): return response.islower()", "an answer")])

docs/sandbox.md says what each back end protects against and what it does not.
"""

from uniapl.sandbox.pool import Sandbox
from uniapl.sandbox.probe import available, offered
from uniapl.sandbox.records import Call, Judgement, Limits, Program

__all__ = ["Call", "Judgement", "Limits", "Program", "Sandbox", "available", "offered"]
