"""POLAR as a study's discriminator: its stage fixes b and tau and measures it, and training scores with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.invariance.small_step import make_setting, stage_spec
from tests.unit.test_discriminator import planted
from tests.unit.tiny_polar import write_checkpoint
from uniapl.analysis.facts import facts_of
from uniapl.config import DataSpec, MachineSpec, PolarSpec
from uniapl.discriminator import load_discriminator, main
from uniapl.polar.discriminator import Polar, open_polar
from uniapl.provenance import content_hash, file_sha256, read_manifest
from uniapl.records import write_jsonl

HERE = MachineSpec.model_validate({})


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> PolarSpec:
    directory = write_checkpoint(tmp_path_factory.mktemp("polar") / "tiny")
    return PolarSpec.model_validate(
        {"source": "path", "location": str(directory), "dtype": "float32", "max_length": 512,
         "max_response_length": 64, "micro_batch_tokens": 1024}
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(spec: PolarSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m uniapl.discriminator` makes of 10 prompts, 4 of them to measure on."""
    root = tmp_path_factory.mktemp("study")
    prompts, demonstrations, samples = planted(10, 0)
    data = DataSpec.model_validate(
        {"max_new_tokens": 24, "num_train": 10, "num_development": 1, "num_heldout": 1, "num_policy": 2,
         "num_discriminator": 4, "num_discriminator_test": 4}
    )  # fmt: skip
    write_jsonl(root / "train.jsonl", prompts)
    write_jsonl(root / "demonstrations.jsonl", demonstrations)
    write_jsonl(root / "samples.jsonl", samples)
    config = {"data": data.model_dump(), "discriminator": spec.model_dump(), "compute": "float32"}
    directory = root / f"tiny-{content_hash(config)}"
    directory.mkdir()
    main(directory, config, model=root / "no base model is read", data=root, demonstrations=root, machine=HERE)
    return directory


@pytest.fixture(scope="module")
def polar(spec: PolarSpec) -> Polar:
    return open_polar(spec, HERE)


def test_b_and_tau_come_from_scores_of_second_demonstrations_and_drafts(made: Path, polar: Polar) -> None:
    prompts, demonstrations, samples = planted(10, 0)
    scores: dict[str, list[float]] = {"demonstrations": [], "drafts": []}
    for prompt in prompts[6:]:  # 2 of the policy, 4 that fit the length figures, 4 to measure on
        first, second = (d.text for d in demonstrations if d.prompt_id == prompt.id)
        drafts = [str(s["text"]) for s in samples if s["prompt_id"] == prompt.id]
        for reference, positive in ((first, second), (second, first)):
            scores["demonstrations"] += polar.score([prompt.text], [reference], [positive])
            scores["drafts"] += polar.score([prompt.text] * 3, [reference] * 3, drafts)
    manifest = read_manifest(made)
    means = [float(np.mean(values)) for values in scores.values()]
    assert manifest["shift"] == pytest.approx(sum(means) / 2, abs=1e-4)
    assert manifest["scale"] == pytest.approx(np.mean([np.var(v) for v in scores.values()]) ** 0.5, abs=1e-4)
    assert manifest["score_mean_demonstrations"] == pytest.approx(means[0], abs=1e-4)
    assert (manifest["num_prompts"], manifest["num_test_prompts"], manifest["num_test_pairs"]) == (4, 4, 4 * 2 * 3)


def test_the_manifest_has_the_same_measures_and_says_what_was_scored_with(made: Path, spec: PolarSpec) -> None:
    manifest = read_manifest(made)
    facts = dict(facts_of(manifest))
    assert 0 <= float(facts["auc"]) <= 1
    assert {"auc_interval", "auc_without_length", "auc_length_only", "usable", "shift", "scale"} <= set(facts)
    assert manifest["auc_train"] is None  # nothing was trained
    checkpoint = manifest["checkpoint"]
    assert checkpoint["engine"] == "transformers"
    hashes = checkpoint["file_sha256"]
    assert set(hashes) == {"config.json", "tokenizer.model", "tokenizer_config.json", "model.safetensors"}
    assert hashes["model.safetensors"] == file_sha256(Path(spec.location) / "model.safetensors")


def test_it_loads_with_its_b_and_tau_and_scores_as_before(made: Path, spec: PolarSpec, polar: Polar) -> None:
    loaded = load_discriminator(made, made, spec, compute="bfloat16", machine=HERE)
    manifest = read_manifest(made)
    assert (loaded.shift, loaded.scale) == (manifest["shift"], manifest["scale"])
    texts = (["Write."] * 3, ["flour dough"] * 3, ["flour", "", "orbit"])
    assert loaded.score(*texts) == polar.score(*texts)


def test_another_polar_than_the_one_that_was_measured_is_refused(made: Path, spec: PolarSpec, tmp_path: Path) -> None:
    for name in ("manifest.json", "probe.json"):
        (tmp_path / name).write_text((made / name).read_text())
    probe = json.loads((tmp_path / "probe.json").read_text())
    scale = read_manifest(made)["scale"]
    for change, refused in ((0.2 * scale, False), (0.3 * scale, True)):
        (tmp_path / "probe.json").write_text(json.dumps(probe | {"score": probe["score"] + change}))
        if refused:
            with pytest.raises(ValueError, match="when b and tau were fixed; use the same checkpoint"):
                load_discriminator(tmp_path, made, spec, compute="float32", machine=HERE)
        else:
            load_discriminator(tmp_path, made, spec, compute="float32", machine=HERE)


def test_a_policy_is_trained_on_its_scores(made: Path, spec: PolarSpec, tmp_path: Path) -> None:
    discriminator: Any = load_discriminator(made, made, spec, compute="float32", machine=HERE)
    setting = make_setting(tmp_path)
    stage = stage_spec("uniapl", mu=0.1, lambda_adv=0.5, prompts_per_step=2, rollouts_per_prompt=4)
    loop = setting.loop(tmp_path, stage, discriminator)
    for step in range(2):
        row, groups = loop.step(step)
        scores = [float(rollout.adversarial_score or "nan") for _, group in groups for rollout in group]
        assert len(set(scores)) > len(groups)
        assert row["adv/score_mean"] == pytest.approx(np.mean(scores), abs=1e-4)
        assert row["loss/adv"] != 0
    (prompt, group) = groups[0]
    reference = loop.expert.demonstrations[prompt.id].text
    again = discriminator.score([prompt.text] * len(group), [reference] * len(group), [r.text for r in group])
    assert again == pytest.approx([float(r.adversarial_score or "nan") for r in group], abs=1e-4)
