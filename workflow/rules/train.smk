# Training: one rule for every stage of every method, and the same one with priority for runs that others wait for.


RANKS = f"--ranks {MACHINE.ranks} --nodes {MACHINE.nodes}"


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
    threads: lambda _: cores_of(ranks=MACHINE.ranks_per_node, at_once=AT_ONCE)
    resources:
        mem_mb=MEMORY_MB * MACHINE.ranks_per_node,
        gpu=MACHINE.gpus_per_rank * MACHINE.ranks,
        nodes=MACHINE.nodes,
    params:
        options=options("runs"),
    shell:
        "{LAUNCH} {RANKS} --threads {threads} -m uniapl.train {params.options} --machine {SETTINGS_OF_MACHINE} "
        "2>&1 | logged {log:q}"


# Begun first, so that no core is idle at the end: runs that others go on from, and those whose every rollout is scored
# and trained on, which take the longest.
PARENTS = {run.parent.directory for run in PLANS[TARGET].runs if run.parent}
FIRST = "|".join(
    re.escape(str(run.directory.relative_to(f"{ROOT}/runs")))
    for run in PLANS[TARGET].runs
    if (run.config["path"][-1]["lambda_adv"] or run.directory in PARENTS) and run.directory.is_relative_to(ROOT)
)

if FIRST:

    use rule train as train_first with:
        wildcard_constraints:
            name=FIRST,
        priority: 2

    ruleorder: train_first > train
