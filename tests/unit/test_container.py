"""The container's recipe, as far as it can be checked without building it: it agrees with what it stands on."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from typing import Any

import pytest
import yaml

from uniapl.layers import CONFIG

REPOSITORY = CONFIG.parent
PROFILE = REPOSITORY / "profiles" / "kubernetes"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Every instruction of the Dockerfile with its words, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def words(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def pods() -> list[dict[str, Any]]:
    """The pod templates of the Kubernetes profile."""
    documents = [yaml.safe_load((PROFILE / "job.yaml").read_text())]
    documents += yaml.safe_load_all((PROFILE / "cluster.yaml").read_text())
    specs = [document["spec"] for document in documents if document["kind"] in ("Job", "StatefulSet")]
    return [spec["template"]["spec"] for spec in specs]


def test_the_base_image_is_named_by_its_version():
    (base,) = words("FROM")
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-\d+", base)


def test_everything_it_copies_is_there_and_not_ignored():
    ignored = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    sources = [word for line in words("COPY") for word in line.split()[:-1] if not word.startswith("--")]
    assert len(sources) == 3
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert not [pattern for pattern in ignored if fnmatch(source, pattern)], source


def test_it_builds_the_environment_that_is_pinned_for_gpus():
    name = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["name"]
    assert f"PATH=/opt/conda/envs/{name}/bin:$PATH" in words("ENV")
    commands = " && ".join(words("RUN"))
    # As the head of environment.yml says.
    assert "conda env create --file /opt/uniapl/environment.yml" in commands
    assert "--no-deps --requirement /opt/uniapl/data.txt" in commands
    (folder,) = words("WORKDIR")
    assert f"--no-deps --editable {folder}" in commands
    assert "bubblewrap" in commands.split()


def test_it_ends_as_an_ordinary_user_the_one_of_the_pods():
    order = [name for name, _ in instructions()]
    assert "RUN" not in order[order.index("USER") :]
    user, group = (int(number) for number in words("USER")[0].split(":"))
    assert user
    for pod in pods():
        context = pod["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, group, group)


def test_its_version_is_the_projects_in_every_place():
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    docs = (REPOSITORY / "docs" / "cluster.md").read_text()
    named = [pod["containers"][0]["image"] for pod in pods()] + re.findall(r"uniapl:[\d.]+", DOCKERFILE + docs)
    assert len(named) > 4
    assert set(named) == {f"uniapl:{version}"}


@pytest.mark.parametrize("word", ["KEY", "TOKEN", "SECRET", "PASSWORD"])
def test_it_holds_no_secret(word: str):
    assert not [line for line in words("ENV") + words("ARG") if word in line.upper()]
