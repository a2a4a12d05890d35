# Evaluation: the models in as many shares as run at once, or more; one start of the engine for all models of a share.


SHARES = study_workflow.evaluation_shares(PLANS[TARGET], at_once=AT_ONCE)


def share_of(name):
    """The evaluations of share `1of2`."""
    return in_share(plan().evaluations, name)


def evaluated(_):
    """The markers that close the evaluation of exactly this study's models on exactly its tasks."""
    shares = [f"{number + 1}of{SHARES}" for number in range(SHARES)]
    named = {share: sorted(os.path.relpath(e.directory, plan().root) for e in share_of(share)) for share in shares}
    return [f"{ROOT}/evaluations/{content_hash(listed)}.{share}.done.json" for share, listed in named.items()]


def evaluation_inputs(wildcards):
    """All that a share of the evaluations reads; study.json lists them."""
    runs = [evaluation.run for evaluation in share_of(wildcards.share) if evaluation.run]
    made = [plan().data, *plan().models.values(), *plan().demonstrations.values(), *runs]
    return {"study": ancient(written(plan().study_file)), "made": [manifest(each.directory) for each in made]}


# The directories of finished evaluations are not declared, so a failure never costs one of them.
rule evaluate:
    input:
        unpack(evaluation_inputs),
    output:
        done=f"{ROOT}/evaluations/{{name}}.{{share}}.done.json",
    log:
        f"{ROOT}/logs/evaluate/{{name}}.{{share}}.log",
    benchmark:
        f"{ROOT}/benchmarks/evaluate/{{name}}.{{share}}.tsv"
    wildcard_constraints:
        share=r"\d+of\d+",
    priority: 3 if SHARES > AT_ONCE else 0  # of a large study, so that what is trained is soon a result
    threads: lambda _: cores_of(at_once=AT_ONCE)
    resources:
        mem_mb=MEMORY_MB,
        gpu=MACHINE.gpus_per_rank,
    shell:
        "{LAUNCH} -m uniapl.evaluate {input.study:q} --share {wildcards.share} --machine {SETTINGS_OF_MACHINE} "
        "2>&1 | logged {log:q} "
        "&& cp {input.study:q} {output.done:q}"
