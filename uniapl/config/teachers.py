"""The expert: who it is, which is part of a run's identity, and how it is reached, which is not."""

from __future__ import annotations

import re
from datetime import date
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from uniapl.config.base import ModelSpec, Positive, Spec, later


class EditorSpec(Spec):
    """The expert of the laptop scale: the base model's own samples, edited until the verifiers pass."""

    name: str = Field("editor", description="Name of the file in config/teachers/.")
    kind: Literal["editor"] = Field("editor", description="editor: best of n samples, edited until the verifiers pass.")
    drafts: Literal["model", "canned"] = Field(
        "model", description="Drafts are the base model's samples or canned text."
    )
    num_samples: Positive = Field(4, description="Drafts per demonstration; our choice.")
    temperature: float = Field(1.0, gt=0, description="Temperature of the drafts; our choice.")
    seed: int = Field(0, description="Seed of the drafts.")
    answers: Literal["edited", "best", "violating", "other"] = later(
        "edited",
        description="edited: until the verifiers pass; best: the best draft as it is; violating: the worst one; other: "
        "edited ones, each given to another prompt.",
    )  # fmt: skip


class EndpointAccess(Spec):
    """How an endpoint is reached: speed, patience and price. In no hash, since what is asked stays the same."""

    url: str = Field("http://localhost:8000/v1", description="Base URL; requests go to <url>/chat/completions.")
    key_variable: str | None = Field(
        None, description="NAME of the environment variable that holds the key; no key is sent without it."
    )
    concurrency: Positive = Field(32, description="Requests in flight.")
    timeout_seconds: float = Field(600.0, gt=0, description="Of one attempt, from the connection to the last byte.")
    max_attempts: Positive = Field(8, description="Attempts at one request before the stage gives up.")
    first_wait_seconds: float = Field(1.0, gt=0, description="Longest wait after the first failure; then it doubles.")
    longest_wait_seconds: float = Field(60.0, gt=0, description="Where the doubling ends.")
    prompt_price: float | None = Field(None, ge=0, description="Of a million prompt tokens, in a currency of yours.")
    completion_price: float | None = Field(None, ge=0, description="Of a million completion tokens, the same currency.")
    price_source: str | None = Field(None, min_length=1, description="Where the prices stand, and their currency.")
    price_date: date | None = Field(None, description="The day on which they stood there.")

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", url):  # the value may hold a password: never shown
            raise ValueError("is no plain URL such as https://host:8000/v1; keys and passwords do not belong into it")
        if urlsplit(url).port == 0:  # reading it raises ValueError for other numbers that are no port
            raise ValueError("Port out of range 0-65535")
        return url.rstrip("/")

    @field_validator("key_variable")
    @classmethod
    def _name_of_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):  # it may be the key itself: never shown
            raise ValueError("is no NAME of an environment variable (A to Z, 0 to 9, _); never write the key itself")
        return name


class VLLMAccess(Spec):
    """How this machine serves a local teacher: speed and memory. In no hash, as `MachineSpec`."""

    tensor_parallel: Positive = Field(1, description="GPUs that the teacher's weights are cut over.")
    gpu_memory_share: float = Field(0.9, gt=0, lt=1, description="Of each GPU, for weights and KV cache.")
    kv_cache_gib: float = Field(1.0, gt=0, description="KV cache on CPU, GiB.")
    max_model_tokens: Positive = Field(8192, description="Longest prompt plus answer that it has room for.")
    concurrency: Positive = Field(128, description="Requests in flight.")
    timeout_seconds: float = Field(1800.0, gt=0, description="Of one request, waiting for its turn included.")
    start_seconds: float = Field(3600.0, gt=0, description="Until the weights are read and the first request is taken.")


RESERVED_IN_BODY = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "n")


class ChatTeacherSpec(Spec):
    """An expert that answers chat messages; its answers are sampled until one passes all verifiers."""

    name: str = Field(description="Name of the file in config/teachers/.")
    num_samples: Positive = Field(
        4, description="Most answers to a prompt, one after the other until one passes; our choice."
    )
    temperature: float = Field(0.7, gt=0, description="Not stated; Qwen3-Instruct-2507's own recommendation.")
    top_p: float = Field(0.8, gt=0, le=1, description="Not stated; Qwen3-Instruct-2507's own recommendation.")
    extra_body: dict[str, Any] = Field({}, description="Further fields of each request, as the endpoint names them.")
    seed: int = Field(0, description="Seed of the answers and of the drafts.")
    drafts: Literal["model", "canned"] = Field(
        "model", description="The discriminator's negatives are the base model's samples or canned text."
    )
    num_drafts: Positive = Field(4, description="Drafts for each prompt of the discriminator; our choice.")
    draft_temperature: float = Field(1.0, gt=0, description="Temperature of the drafts; that of training's rollouts.")

    @field_validator("extra_body")
    @classmethod
    def _further(cls, body: dict[str, Any]) -> dict[str, Any]:
        for key in (*RESERVED_IN_BODY, "stream"):
            if key in body:
                raise ValueError(f"{key} is set by the suite; remove it")
        return body


class EndpointSpec(ChatTeacherSpec):
    """An expert behind an OpenAI-compatible endpoint. Paper: Qwen3-235B-A22B-Instruct-2507."""

    kind: Literal["endpoint"] = Field(description="endpoint: POST <access.url>/chat/completions.")
    model: str = Field(min_length=1, description="Its name at the endpoint.")
    access: EndpointAccess = EndpointAccess.model_validate({})


class VLLMSpec(ChatTeacherSpec):
    """An expert that this machine serves itself, through vLLM."""

    kind: Literal["vllm"] = Field(description="vllm: a server on the loopback interface, for as long as it is asked.")
    model: ModelSpec = Field(description="A file of config/models, a hub id or a folder.")
    access: VLLMAccess = VLLMAccess.model_validate({})


TeacherSpec = EditorSpec | EndpointSpec | VLLMSpec
TEACHERS: dict[str, type[TeacherSpec]] = {"editor": EditorSpec, "endpoint": EndpointSpec, "vllm": VLLMSpec}
