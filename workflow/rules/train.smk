# Training: one rule for every stage of every method, and the same one with priority for the longest runs.


RANK_THREADS = max(1, SHARED_THREADS // MACHINE.ranks)
TRAINER = f"{LAUNCH} --ranks {MACHINE.ranks} -m uniapl.train"


def trained(_):
    """The manifest of every run."""
    return [str(run.manifest) for run in plan().runs]


# A target of its own: all training, and nothing after it.
rule runs:
    input:
        trained,


# Only the manifest is declared: snakemake deletes declared files before an attempt, and checkpoints must survive it.
rule train:
    input:
        unpack(reads("runs")),
    output:
        f"{ROOT}/runs/{{name}}/manifest.json",
    log:
        f"{ROOT}/logs/runs/{{name}}.log",
    benchmark:
        f"{ROOT}/benchmarks/runs/{{name}}.tsv"
    priority: 1  # before evaluations: the last runs would else be waited for with an idle core
    threads: SHARED_THREADS
    resources:
        mem_mb=MEMORY_MB,
    params:
        options=options("runs"),
    shell:
        "OMP_NUM_THREADS={RANK_THREADS} {TRAINER} {params.options} --machine {SETTINGS_OF_MACHINE} 2>&1 | tee -i {log:q}"


# Runs whose every rollout is scored and trained on take the longest: begun first, so that no core is idle at the end.
LONGEST = "|".join(
    re.escape(str(run.directory.relative_to(f"{ROOT}/runs")))
    for run in PLANS[TARGET].runs
    if run.config["path"][-1]["lambda_adv"]
)

if LONGEST:

    use rule train as train_longest with:
        wildcard_constraints:
            name=LONGEST,
        priority: 2

    ruleorder: train_longest > train
