# Training: one rule for every stage of every method, and the same one with priority for the longest runs.


TRAINER = "uniapl.train"
if SETTINGS.ranks > 1:
    TRAINER = f"uniapl.distributed --standalone --nproc-per-node {SETTINGS.ranks} -m uniapl.train"


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
    threads: SHARED_THREADS
    resources:
        mem_mb=MEMORY_MB,
    priority: 1  # before evaluations: the last runs would else be waited for with an idle core
    params:
        options=options("runs"),
        trainer=TRAINER,
        threads_of_a_rank=max(1, SHARED_THREADS // SETTINGS.ranks),
    shell:
        "OMP_NUM_THREADS={params.threads_of_a_rank} python -m {params.trainer} {params.options} 2>&1 | tee -i {log:q}"


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
