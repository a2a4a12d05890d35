"""Small commands over the rooms.

`uniapl estimate --model qwen3_0_6b` prints how much memory training a model takes, `uniapl estimate --scale paper
--gpus 8` what a whole study takes, before anything is started; `uniapl sample --run DIR` what a trained model answers;
`uniapl card --run DIR` writes its model card; `uniapl score --task ifeval --responses FILE --output FILE` judges
answers that lie in a file; `uniapl trace 1 --row 3 --column prompt_strict` says where a cell of a table comes from. DIR
is a run directory,
results/<scale>/runs/<model>/<path>/<variant>-<hash>/seed<k>; answers are greedy, as in evaluation, and come from the
transformers sampler, which starts fastest for a few prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from uniapl.config import MachineSpec, SamplerSpec
from uniapl.entry import run_guarded
from uniapl.plan import data_config
from uniapl.provenance import content_hash, read_config, read_manifest, root_of
from uniapl.records import Constraint, Demonstration, Prompt, read_demonstrations

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Commands over the results of the uniapl suite.")


class Split(StrEnum):
    """Prompts to show: held-out, or development."""

    heldout = "heldout"
    development = "development"


class ScoredTask(StrEnum):
    """Benchmarks whose answers are judged by verifiers alone."""

    ifeval = "ifeval"
    ifbench = "ifbench"


@dataclass(frozen=True)
class Answer:
    """One answer with its verdict for each constraint; None where a constraint could not be judged."""

    text: str
    followed: tuple[bool | None, ...]
    truncated: bool


def spread(prompts: Sequence[Prompt], num: int) -> list[Prompt]:
    """`num` prompts, evenly spaced, so that seen and unseen constraint kinds both appear."""
    if num >= len(prompts):
        return list(prompts)
    return [prompts[index * len(prompts) // num] for index in range(num)]


def demonstrations_of(root: Path, config: dict[str, Any]) -> dict[str, Demonstration]:
    """The expert's first answers of the study that a run belongs to, by prompt id. Raise ValueError without them.

    They belong together where all of the demonstrations' config also stands in the run's.
    """
    for directory in sorted((root / "demonstrations").glob(f"{config['model']['name']}-*")):
        if read_config(directory).items() <= config.items():
            found = read_demonstrations(directory / "demonstrations.jsonl")
            return {demonstration.prompt_id: demonstration for demonstration in found if demonstration.take == 0}
    raise ValueError(f"{root}/demonstrations has none of this run's study; run snakemake, which makes them")


def answers_of(run: Path, config: dict[str, Any], prompts: Sequence[Prompt]) -> list[Answer]:
    """Greedy answers of a run's trained model, judged by the verifiers."""
    from transformers import AutoTokenizer

    from uniapl import chat
    from uniapl.constraints import verify
    from uniapl.sampler import make_sampler

    spec = SamplerSpec.model_validate(config["sampler"] | {"kind": "hf"})
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    sampler = make_sampler(spec, run / "model", dtype="float32", machine=MachineSpec.model_validate({}))
    try:
        samples = sampler.generate(
            [chat.prompt_ids(tokenizer, prompt.text) for prompt in prompts],
            seeds=[0] * len(prompts),
            max_new_tokens=config["data"]["max_new_tokens"],
            temperature=0.0,
        )
    finally:
        sampler.close()
    answers = []
    for prompt, sample in zip(prompts, samples, strict=True):
        text = chat.completion_text(tokenizer, sample.token_ids)
        verdict = verify(prompt.constraints, text)
        answers.append(Answer(text, verdict.followed, sample.finish_reason == "length"))
    return answers


def verdict_lines(constraints: Sequence[Constraint], followed: Sequence[bool | None]) -> Text:
    """One line a constraint: whether it holds, its words, its kind."""
    marks = {True: ("✓", "green"), False: ("✗", "red"), None: ("?", "yellow")}
    lines = Text()
    for constraint, holds in zip(constraints, followed, strict=True):
        mark, style = marks[holds]
        lines.append(f"{mark} ", style=style)
        lines.append(f"{constraint.text or constraint.kind}  ")
        lines.append(f"[{constraint.kind}]\n", style="dim")
    return lines


def panel(title: str, text: str, constraints: Sequence[Constraint], followed: Sequence[bool | None]) -> Panel:
    """One answer above its verdicts."""
    shown = Text(text) if text.strip() else Text("(empty answer)", style="dim")
    return Panel(Group(shown, Text(""), verdict_lines(constraints, followed)), title=title, title_align="left")


@app.command()
def sample(
    run: Annotated[Path, typer.Option(help="Run directory: results/<scale>/runs/<model>/<path>/<name>/seed<k>.")],
    num: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 5,
    split: Annotated[Split, typer.Option(help="Which prompts.")] = Split.heldout,
) -> None:
    """Show a trained model's answers with the verdict on each constraint, beside the expert's."""
    run_guarded(lambda: show_answers(run, num=num, split=split.value))


def show_answers(run: Path, *, num: int, split: str) -> None:
    """Print prompts, the trained model's answers and the expert's. Raise ValueError for an unfinished run."""
    from uniapl.data import read_prompts

    root, config = root_of(run), read_config(run)
    read_manifest(run)
    prompts = spread(read_prompts(root / "data" / content_hash(data_config(config)) / f"{split}.jsonl"), num)
    demonstrations = demonstrations_of(root, config)
    console = Console()
    method = ".".join(stage["name"] for stage in config["path"])
    for prompt, answer in zip(prompts, answers_of(run, config, prompts), strict=True):
        console.rule(f"{prompt.id} ({prompt.group} constraint kinds)")
        console.print(Text(prompt.text, style="bold"))
        title = f"{method}, cut at {config['data']['max_new_tokens']} tokens" if answer.truncated else method
        console.print(panel(title, answer.text, prompt.constraints, answer.followed))
        expert = demonstrations.get(prompt.id)
        if expert is None:
            console.print(Text(f"no expert answer to this {split} prompt", style="dim"))
        else:
            console.print(panel("expert", expert.text, prompt.constraints, expert.followed))


@app.command()
def card(
    run: Annotated[Path, typer.Option(help="Run directory: results/<scale>/runs/<model>/<path>/<name>/seed<k>.")],
) -> None:
    """Write a finished run's model card, model/README.md, with the scores of all its evaluations."""
    run_guarded(lambda: write_card_of(run))


def write_card_of(run: Path) -> None:
    """Write the card and say where it is. Raise ValueError for an unfinished run."""
    from uniapl.model_card import CARD, update_cards

    root = root_of(run)
    read_manifest(run)
    update_cards(root, [str(run.resolve().relative_to(root))])
    print(run / "model" / CARD)


@app.command()
def estimate(
    model: Annotated[str | None, typer.Option(help="File in config/models, folder or hub id, trained on GPUs.")] = None,
    scale: Annotated[str | None, typer.Option(help="A whole study: smoke, laptop, paper.")] = None,
    target: Annotated[str, typer.Option(help="Of a scale: all, matrix, ablations, ablation_NAME.")] = "all",
    gpus: Annotated[int | None, typer.Option(help="GPUs; else the scale's own, or 1, 2, 4 and 8 of a model.")] = None,
    gpu: Annotated[str, typer.Option(help="What they are: H100, H200, A100, L40S, RTX 4090 and others.")] = "H100",
    gpu_memory_gib: Annotated[float | None, typer.Option(min=1, help="Memory of each, if not as stated.")] = None,
    tokens_per_second_train: Annotated[
        float | None, typer.Option(min=1e-9, help="Of the update on one GPU, prompts included; of one model.")
    ] = None,
    tokens_per_second_rollout: Annotated[
        float | None, typer.Option(min=1e-9, help="Of answers on one GPU; of one model.")
    ] = None,
    bench: Annotated[Path | None, typer.Option(help="File of python -m bench.gpu, in place of these two.")] = None,
    answer_share: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Mean length of an answer, as a share of its cap.")
    ] = None,
    config: Annotated[
        list[str] | None, typer.Option(help="key=value as of the workflow's --config; may be given again.")
    ] = None,
    micro_batch_tokens: Annotated[int | None, typer.Option(min=1, help="machine.micro_batch_tokens.")] = None,
    activation_checkpointing: Annotated[bool | None, typer.Option(help="machine.activation_checkpointing.")] = None,
    kv_cache_gib: Annotated[float | None, typer.Option(help="sampler.kv_cache_gib; on CPU alone.")] = None,
    discriminator: Annotated[str | None, typer.Option(help="File in config/discriminators.")] = None,
) -> None:
    """Print a model's memory on GPUs; or memory, hours, tokens, teacher's price and disk of a scale."""
    from uniapl.estimate.study import Options, show_estimate

    named = {
        "machine": {
            "micro_batch_tokens": micro_batch_tokens,
            "activation_checkpointing": activation_checkpointing,
        },
        "sampler": {"kv_cache_gib": kv_cache_gib},
        "discriminator": {"name": discriminator},
    }
    given = {part: {k: v for k, v in values.items() if v is not None} for part, values in named.items()}
    given = {part: values for part, values in given.items() if values}
    options = Options(
        gpus, gpu, gpu_memory_gib, tokens_per_second_train, tokens_per_second_rollout, bench, answer_share, target
    )
    run_guarded(lambda: show_estimate(model, scale, options, config=config or (), named=given))


@app.command()
def trace(
    table: Annotated[int, typer.Argument(help="Number of the table.")],
    row: Annotated[str, typer.Option(help="Of its csv: the number, or key=value,key=value of its columns.")],
    column: Annotated[str, typer.Option(help="Of its csv.")],
    root: Annotated[Path, typer.Option(help="Folder with study.json.")] = Path("results/laptop"),
) -> None:
    """Print what a cell of a table comes from: statistic, records, manifests, config and commit."""
    from uniapl.analysis.trace import trace as chain_of

    run_guarded(lambda: Console(highlight=False, soft_wrap=True).print(chain_of(root, table, row, column)))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A finished run's directory.")],
    second: Annotated[Path, typer.Argument(help="Another one's.")],
) -> None:
    """Print what differs between two runs in config and environment, and their results side by side."""
    from uniapl.analysis.compare import compare as tables_of

    def action() -> None:
        for table in tables_of(first, second):
            Console(highlight=False, soft_wrap=True).print(table)

    run_guarded(action)


@app.command()
def watch(
    root: Annotated[Path, typer.Option(help="Folder with study.json.")] = Path("results/laptop"),
    once: Annotated[bool, typer.Option(help="Print once instead of redrawing.")] = False,
) -> None:
    """Show a study's runs: step, reward, time left."""
    from uniapl.watch import watch as show

    run_guarded(lambda: show(root, once=once))


@app.command()
def doctor(
    scale: Annotated[str, typer.Option(help="The scale that is to run: smoke, laptop, paper.")] = "paper",
    config: Annotated[
        list[str] | None, typer.Option(help="key=value as of the workflow's --config; may be given again.")
    ] = None,
) -> None:
    """Say of everything that a scale needs here whether it is there, and what brings it."""
    from uniapl.layers import read_overrides

    run_guarded(lambda: show_findings(scale, read_overrides(config or ())))


def show_findings(scale: str, overrides: dict[str, Any]) -> None:
    """Print the findings. Raise ValueError where something is missing."""
    from uniapl.doctor import examine, show
    from uniapl.workflow import make_plans, read_settings

    plan = make_plans(read_settings({"scale": scale} | overrides), scale, "all")["all"]
    if missing := show(examine(plan)):
        raise ValueError(f"{missing} things are missing for scale {scale}; each line above says what brings it")


@app.command()
def fetch(
    scale: Annotated[str, typer.Option(help="The scale whose models and data are wanted.")] = "paper",
    config: Annotated[
        list[str] | None, typer.Option(help="key=value as of the workflow's --config; may be given again.")
    ] = None,
) -> None:
    """Download all that a scale takes from the hub, pinned and checked, so that its runs need no network."""
    from uniapl.layers import read_overrides

    run_guarded(lambda: fetch_sources(scale, read_overrides(config or ())))


def fetch_sources(scale: str, overrides: dict[str, Any]) -> None:
    """Fetch, print every file's hash. Raise ValueError naming all sources that cannot be had, after the others."""
    from uniapl import hub
    from uniapl.layers import load_study

    hub.go_online()
    sources = hub.sources_of(load_study(scale, overrides))
    console = Console()
    errors = []
    for source in sources:
        try:
            fetched = hub.fetch(source, say=lambda line: console.print(line, highlight=False))
        except ValueError as error:
            errors.append(str(error))
            continue
        for name, digest in fetched.sha256.items():
            console.print(f"  ok  sha256 {digest[:12]}  {name}", highlight=False, markup=False)
    if errors:
        raise ValueError(" | ".join(errors))
    console.print(f"{len(sources)} sources of the hub are in the cache" if sources else f"{scale} needs no hub")


@app.command()
def score(
    task: Annotated[ScoredTask, typer.Option(help="Whose prompts were answered.")],
    responses: Annotated[Path, typer.Option(help="Answers: JSONL, one object a line with prompt and response.")],
    output: Annotated[Path, typer.Option(help="File to write: JSONL, one line a prompt with its verdicts.")],
    data: Annotated[
        Path | None, typer.Option(help="The task's prompt file, if not the pinned one of config/evals.")
    ] = None,
) -> None:
    """Judge answers that lie in a file, strictly and loosely, and print the four accuracies."""
    from uniapl.score import score_file

    run_guarded(lambda: score_file(task.value, responses, output, data=data))


def main() -> None:
    """Entry point of the console script `uniapl`."""
    app()


if __name__ == "__main__":
    main()
