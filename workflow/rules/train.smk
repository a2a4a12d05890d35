# Training: one rule for every stage of every method.


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
    threads: THREADS
    resources:
        mem_mb=MEMORY_MB,
    params:
        options=options("runs"),
    shell:
        "python -m uniapl.train {params.options} 2>&1 | tee -i {log:q}"
