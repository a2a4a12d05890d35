"""What the sides of `bench.step` do at every step: model, prompts, demonstrations, sizes, and where rewards come from.

Prompts are the laptop study's own first training prompts, in the order in which its training draws them. The expert's
demonstrations are those of the laptop's editor on canned drafts, which takes a second instead of minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniapl.records import Demonstration, Prompt

if TYPE_CHECKING:  # what the limit alone needs is imported fast
    from uniapl.config import Study
    from uniapl.discriminator import Example
    from uniapl.shapes import Shape

FIRST_STEP = 1  # at step 0 the trainer probes, which is no part of a step's cost
FOREVER = 10**6  # steps of a side, which ends when nobody asks for more
LEARNING_RATE = 1e-6  # small, so that all steps find the same policy
KV_CACHE_GIB = 0.5  # so that a step's rollouts are decoded together at all sizes
# On a GPU, instead of what the scale says for a CPU's memory: of a micro-batch, and decoded together.
GPU_MICRO_BATCH_TOKENS, GPU_SEQUENCES = 16384, 256
JUDGED_PROMPTS = 16  # of the discriminator
NEGATIVES = 3  # drafts of such a prompt


@dataclass(frozen=True)
class Work:
    """What every step of every side does."""

    folder: Path  # for what the sides write; it goes with the run
    model: Path  # the checkpoint's folder
    title: str  # the model's name, or that of its shape
    study: Study  # settings, at the sizes that were asked for
    prompts: tuple[Prompt, ...]  # in which the steps' prompts are drawn
    demonstrations: tuple[Demonstration, ...]  # take 0 of each prompt
    judged: tuple[Example, ...]  # other prompts' texts, which train the adversarial term's discriminator
    kept: bool  # no answer ends before the cap, and rewards come by place: no group is flat; else as in the study
    compute: str
    threads: int

    @property
    def sizes(self) -> dict[str, int]:
        """Prompts of a step, rollouts of a prompt, and tokens of an answer at most."""
        stage = self.study.stages["grpo"]
        return {
            "prompts": stage.prompts_per_step, "rollouts": stage.rollouts_per_prompt,
            "new_tokens": self.study.data.max_new_tokens, "demonstrations": stage.demonstrations_per_step,
        }  # fmt: skip

    @property
    def shape(self) -> Shape:
        """The sizes of the model that is trained."""
        from uniapl.layers import load_model
        from uniapl.shapes import find_shape

        shape = find_shape(load_model(str(self.model), "--model"))
        assert shape is not None
        return shape

    def prompts_at(self, step: int) -> list[Prompt]:
        """The prompts of a GRPO step, as training draws them."""
        from uniapl.data import draw

        count = self.sizes["prompts"]
        return draw(list(self.prompts), seed=0, stage=0, step=step, source="prompts", count=count)

    def described(self) -> dict[str, Any]:
        """What was done, for the record."""
        return self.sizes | {
            "model": self.title, "pool_of_prompts": len(self.prompts), "all_groups_kept": self.kept,
            "temperature": self.study.train.temperature, "compute": self.compute, "threads": self.threads,
            "learning_rate": LEARNING_RATE, "demonstrations_by": "the editor, on canned drafts",
        }  # fmt: skip


def reward_by_place(place: int) -> float:
    """Of an answer by its place in its group: no group is flat."""
    return float(place % 2)


def make_work(
    scale: str, folder: Path, *, model: str | None, sizes: dict[str, int], kept: bool, steps: int | None,
    shape: str | None = None,
) -> Work:  # fmt: skip
    """The scale's settings, with `sizes` (as `Work.sizes`) instead of its own.

    The pool has new prompts for `steps` steps; None: as many as a step's demonstrations, so that each step of SFT sees
    all of them. The checkpoint is made below `folder` if it is not there: with `shape` random weights of that size
    (`bench.shapes`) beside SmolLM2's tokenizer; where `kept`, speed does not depend on what the weights are.
    """
    import torch

    from bench.shapes import SHAPES, random_model
    from uniapl.config import LOGITS_BYTES
    from uniapl.layers import load_model, load_study
    from uniapl.models import build_model, checkpoint_folder, save_model
    from uniapl.sampler import resolve_compute

    keys = {
        "prompts": "prompts_per_step",
        "rollouts": "rollouts_per_prompt",
        "demonstrations": "demonstrations_per_step",
    }
    own = {keys[name]: value for name, value in sizes.items() if name in keys}
    stage = own | {"steps": FOREVER, "warmup_steps": 0, "learning_rate": LEARNING_RATE}
    overrides: dict[str, Any] = {
        "stages": {name: stage for name in ("sft", "grpo", "uniapl")}, "train": {"probe_every": FOREVER},
        "data": {"max_new_tokens": sizes["new_tokens"]} if "new_tokens" in sizes else {},
        "sampler": {"kv_cache_gib": KV_CACHE_GIB},
    }  # fmt: skip
    if torch.cuda.is_available():
        overrides["machine"] = {"micro_batch_tokens": GPU_MICRO_BATCH_TOKENS, "logits_bytes": LOGITS_BYTES}
        overrides["sampler"] |= {"max_sequences": GPU_SEQUENCES}
    named = {"models": model} if model else {}
    source, study = load_study(scale, named), load_study(scale, named | overrides)
    checkpoint = folder / "model"
    if not checkpoint.exists() and shape:
        _, tokenizer = build_model(load_model("tiny_qwen3", "--shape"))
        random = random_model(SHAPES[shape], device=torch.device("cpu"))  # the GPU's memory is for the sides
        save_model(random, tokenizer, checkpoint)
    elif not checkpoint.exists():
        checkpoint = checkpoint_folder(source.models[0], scratch=checkpoint)
    grpo, sft = study.stages["grpo"], study.stages["sft"]
    count = sft.demonstrations_per_step if steps is None else steps * grpo.prompts_per_step
    prompts, demonstrations, judged = expert(source, checkpoint, count)
    return Work(
        folder, checkpoint, shape or study.models[0].name, study, tuple(prompts), tuple(demonstrations), tuple(judged),
        kept, resolve_compute(study.compute), torch.get_num_threads(),
    )  # fmt: skip


def expert(study: Study, checkpoint: Path, count: int) -> tuple[list[Prompt], list[Demonstration], list[Example]]:
    """`count` prompts, a demonstration of each, and other prompts' texts that the discriminator learns from.

    Raise ValueError where the editor can mend too few.
    """
    from uniapl import chat
    from uniapl.config import EditorSpec
    from uniapl.discriminator import make_examples
    from uniapl.generate import generate_split
    from uniapl.models import load_tokenizer
    from uniapl.teachers.drafts import Draft, Drafting, Order, canned_drafts, judged
    from uniapl.teachers.editor import demonstrate

    tokenizer, cap = load_tokenizer(checkpoint), study.data.max_new_tokens
    editor = EditorSpec.model_validate({"drafts": "canned", "num_samples": 4})
    drafting = Drafting.of(editor)

    def encode(text: str) -> list[int]:
        return chat.completion_ids(tokenizer, text)

    def ordered(prompt: Prompt, take: int) -> tuple[Demonstration | None, list[Draft]]:
        order = Order(prompt, take)
        drafts = canned_drafts(
            [order], drafting, max_tokens=cap, encode=encode, decode=lambda ids: chat.completion_text(tokenizer, ids)
        )
        drafts = judged(drafts, {prompt.id: prompt})
        made = demonstrate(order, drafts, spec=editor, max_tokens=cap, count_tokens=lambda text: len(encode(text)))
        return made if isinstance(made, Demonstration) else None, drafts

    prompts: list[Prompt] = []
    demonstrations: list[Demonstration] = []
    examples: list[Example] = []
    for prompt in generate_split(study.data, "train", 2 * (count + JUDGED_PROMPTS)):
        first, drafts = ordered(prompt, 0)
        if first is None:
            continue
        if len(prompts) < count:
            prompts.append(prompt)
            demonstrations.append(first)
            continue
        second, more = ordered(prompt, 1)
        if second is not None:
            samples = [vars(draft) for draft in (*drafts, *more)]
            examples += make_examples([prompt], [first, second], samples, num_negatives=NEGATIVES, seed=0)
        if len(examples) == JUDGED_PROMPTS:
            return prompts, demonstrations, examples
    raise ValueError(
        f"only {len(prompts)} of {count} prompts got a demonstration; ask for fewer prompts or repetitions"
    )
