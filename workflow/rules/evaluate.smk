# Evaluation: one start of the engine for all models that are still to be evaluated.


def evaluated(_):
    """The marker that closes the evaluation of exactly this study's models on exactly its tasks."""
    listed = sorted(str(evaluation.directory.relative_to(plan().root)) for evaluation in plan().evaluations)
    return f"{ROOT}/evaluations/{content_hash(listed)}.done.json"


def evaluation_inputs(_):
    """All that the evaluations read; study.json lists them."""
    made = [plan().data, *plan().models.values(), *plan().demonstrations.values(), *plan().runs]
    return {"study": ancient(written(plan().study_file)), "made": [manifest(each.directory) for each in made]}


# The directories of finished evaluations are not declared, so a failure never costs one of them.
rule evaluate:
    input:
        unpack(evaluation_inputs),
    output:
        done=f"{ROOT}/evaluations/{{name}}.done.json",
    log:
        f"{ROOT}/logs/evaluate/{{name}}.log",
    benchmark:
        f"{ROOT}/benchmarks/evaluate/{{name}}.tsv"
    threads: THREADS
    resources:
        mem_mb=MEMORY_MB,
    shell:
        "python -m uniapl.evaluate {input.study:q} 2>&1 | tee -i {log:q} && cp {input.study:q} {output.done:q}"
