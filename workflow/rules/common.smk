# What all rules share: the plan, made when the workflow is parsed, and the environment of every stage.
import functools
import os
import re
import shlex
import sys
from pathlib import Path

from uniapl import leases
from uniapl import workflow as study_workflow
from uniapl.analysis import outputs
from uniapl.config import ConfigError
from uniapl.plan import check_configs, in_share, study_index, write_configs
from uniapl.provenance import content_hash

# Stages run with this interpreter, print at once and no warnings of libraries' C++, and never reach for the network.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["TQDM_DISABLE"] = "1"  # lm-eval would draw a bar for each of MMLU's 57 subjects
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
# Large tensors come and go in every micro-batch: large pages, and freed memory is kept instead of zeroed anew.
os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"
# Packed micro-batches have ever new lengths, and oneDNN keeps 1,024 kernels of past shapes: 0.1 GB a step, for no speed.
os.environ |= {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}

# A stage that gets SIGTERM saves before it ends, and so its shell waits for it and its log is written to the end. The
# name of a rule's log is the argument of `logged`.
shell.prefix("set -euo pipefail; trap : TERM; logged() {{ trap '' TERM; tee -i \"$1\"; }}; ")

# ROOT holds the study that is read; OUTPUT gets its tables, figures and report (elsewhere only for released results).
try:
    SETTINGS = study_workflow.read_settings(config)
    if SETTINGS.source == "released":
        SCALE = "laptop" if SETTINGS.scale == "auto" else SETTINGS.scale
        ROOT, OUTPUT = f"{SETTINGS.results}/released/{SCALE}", f"{SETTINGS.results}/rebuilt/{SCALE}"
        INDEX = study_workflow.read_released(Path(ROOT))
    else:
        SCALE, NOTE = study_workflow.choose_scale(SETTINGS)
        TARGET = study_workflow.chosen_target(sys.argv[1:])
        PLANS = study_workflow.make_plans(SETTINGS, SCALE, TARGET)
        ROOT = OUTPUT = str(PLANS[TARGET].root)
        INDEX = study_index(PLANS[TARGET])
        UPSTREAM = study_workflow.upstream(PLANS)
        # How this machine executes a stage is no reason to make it again, so it stands in no rule's params.
        MACHINE = study_workflow.fit_machine(PLANS[TARGET])
        SETTINGS_OF_MACHINE = shlex.quote(MACHINE.model_dump_json())
        check_configs(PLANS[TARGET])
        if workflow.is_main_process:
            study_workflow.check_sampler(PLANS[TARGET])
            study_workflow.check_memory(PLANS[TARGET])
            study_workflow.check_tracking(PLANS[TARGET])
except ConfigError as error:
    study_workflow.fail(error)

AT_ONCE = study_workflow.jobs_at_once(SCALE)
LAUNCH = "python -m uniapl.launch"  # leases a GPU where there are any
MEMORY_MB = {"smoke": 3000, "laptop": 8500}.get(SCALE, 64000)


def cores_of(*, ranks=1, at_once=1):
    """Cores of a job: of this machine, or, where jobs are submitted to a cluster, what the config says of a rank's."""
    if workflow.non_local_exec or workflow.remote_exec:  # known only after the rules are read
        return MACHINE.cpus_per_rank * ranks
    return 1 if SCALE == "smoke" else max(1, workflow.cores // at_once)


@functools.cache
def plan():
    """The target's plan. Its first use, when the jobs are known, takes the lock and writes what is missing of it."""
    chosen = PLANS[TARGET]
    if workflow.is_main_process:
        study_workflow.announce(chosen, note=NOTE, machine=MACHINE)
    if not workflow.dryrun:
        try:
            if workflow.is_main_process:
                leases.name_starter()
                globals()["STUDY_LOCK"] = study_workflow.hold(chosen.root)
            write_configs(chosen)
        except (ConfigError, OSError) as error:
            study_workflow.fail(error)
    return chosen


def written(path):
    """A file that the plan writes; no input yet in a dry run before the first run."""
    plan()
    return [] if workflow.dryrun and not Path(path).exists() else str(path)


def manifest(directory):
    """Directories are named by their content, so the age of an upstream result is no reason to do anything again."""
    return ancient(f"{directory}/manifest.json")


def reads(kind):
    """Input function of a stage: its config.json, and the manifest of every directory that it reads."""

    def inputs(wildcards):
        directory = f"{ROOT}/{kind}/{wildcards.name}"
        if directory not in UPSTREAM:
            study_workflow.fail(f"{directory} belongs to no run of this study; the config names other directories now")
        upstream = {option: manifest(path) for option, path in UPSTREAM[directory].items()}
        return {"config": written(f"{directory}/config.json")} | upstream

    return inputs


def options(kind):
    """Params function of a stage: its directory and `--option directory` for all that it reads, quoted for the shell."""

    def words(wildcards):
        directory = f"{ROOT}/{kind}/{wildcards.name}"
        pairs = [(f"--{option}", str(path)) for option, path in UPSTREAM[directory].items()]
        return shlex.join([directory, *(word for pair in pairs for word in pair)])

    return words


def shown(path, *, caption, category):
    """A declared output, marked for `snakemake --report` where it is what people or programs read, or a picture."""
    name, _, suffix = Path(path).name.partition(".")
    if suffix not in ("csv", "md", "png", "html"):
        return path
    return report(path, caption=f"../report/{caption}.rst", category=category, labels={"name": name, "format": suffix})
