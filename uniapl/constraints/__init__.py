"""Verifiable constraints: the registry of kinds, their drawing, and verdicts."""

from uniapl.constraints.drawing import draw_constraints
from uniapl.constraints.kinds import KINDS, Kind
from uniapl.constraints.verify import Verdict, known_kinds, verify, verify_all

__all__ = ["KINDS", "Kind", "Verdict", "draw_constraints", "known_kinds", "verify", "verify_all"]
