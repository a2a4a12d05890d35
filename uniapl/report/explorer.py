"""The explorer's data: held-out prompts, the expert's answer, and every method's with its verdicts.

Answers are those of one training seed, the study's first. Prompts and demonstrations are read beside the study; where
they are not there, as in releases of old, there is no explorer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from uniapl.analysis.collect import MAIN, Study, curve_of
from uniapl.analysis.labels import BASE, BASELINE, colour, dashes
from uniapl.records import read_jsonl

TASK = "heldout"
CURVES = {
    "reward/mean": "training reward", "length/mean_tokens": "tokens an answer", "entropy/mean_nats": "entropy, nats",
    "kl/start_nats": "KL to the first model, nats", "adv/score_mean": "discriminator's score", "adv/auc": "its AUC",
}  # fmt: skip


def explorer(study: Study) -> dict[str, Any] | None:
    """What explorer.js shows, for each model; None where prompts or answers are not beside the study."""
    prompts = _prompts(study.root / study.index["data"] / f"{TASK}.jsonl")
    if not prompts:
        return None
    models = {}
    for model, title in study.models.items():
        methods = [method for method in study.methods(model) if study.evaluations(model, method)]
        answers = {method: _answers(study, model, method) for method in methods}
        expert = _expert(study.root / study.index["demonstrations"][model] / "demonstrations.jsonl")
        models[model] = {
            "title": title,
            "methods": [{"id": m, "label": study.label(m), "colour": colour(m, methods)} for m in methods],
            "prompts": [
                prompt | {"expert": expert.get(name), "answers": {m: found.get(name) for m, found in answers.items()}}
                for prompt in prompts
                for name in [prompt["id"]]
            ],
        }  # fmt: skip
    return {"models": models, "baseline": BASELINE} if any(m["methods"] for m in models.values()) else None


def curves(study: Study) -> dict[str, Any]:
    """Training curves of the main runs by model and metric: mean over seeds by step of the last stage."""
    found: dict[str, Any] = {}
    for model, title in study.models.items():
        methods = [method for method in study.methods(model) if method != BASE]
        shown = {}
        for metric, name in CURVES.items():
            lines = {m: curve_of(study, model, m, metric) for m in methods}
            kept = {m: [[step, round(value, 4)] for step, value in line.items()] for m, line in lines.items() if line}
            if kept:
                shown[metric] = {"name": name, "lines": kept}
        found[model] = {
            "title": title, "metrics": shown,
            "methods": [
                {
                    "id": m, "label": study.label(m), "colour": colour(m, study.methods(model)),
                    "dashes": dashes(m, study.methods(model)),
                }
                for m in methods
            ],
        }  # fmt: skip
    return found


def as_script(value: Any) -> str:
    """JSON that may stand inside a script element: no text of a study can end it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _prompts(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [
        {
            "id": row["id"], "text": row["text"], "group": row["group"],
            "constraints": [{"kind": one["kind"], "text": one.get("text", "")} for one in row["constraints"]],
        }
        for _, row in read_jsonl(path)
    ]  # fmt: skip


def _answers(study: Study, model: str, method: str) -> dict[str, dict[str, Any]]:
    """Answers of a method's first seed by prompt."""
    entry = min(study.evaluations(model, method, MAIN), key=lambda e: e["seed"])
    path = study.root / entry["directory"] / f"{TASK}.jsonl"
    if not path.is_file():
        return {}
    return {
        row["prompt_id"]: {
            "text": row.get("response", ""), "strict": row["strict"], "passed": row["prompt_strict"],
            "cut": bool(row["truncated"]), "tokens": row["num_tokens"],
        }
        for _, row in read_jsonl(path)
    }  # fmt: skip


def _expert(path: Path) -> dict[str, dict[str, Any]]:
    """The expert's first answer by prompt, with its verdicts."""
    if not path.is_file():
        return {}
    return {
        row["prompt_id"]: {
            "text": row["text"], "strict": row["followed"], "passed": all(row["followed"]),
            "cut": bool(row.get("truncated")), "tokens": row["num_tokens"],
        }
        for _, row in read_jsonl(path)
        if row["split"] == TASK and row["take"] == 0
    }  # fmt: skip
