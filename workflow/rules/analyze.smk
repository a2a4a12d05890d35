# From records to pages: the same rules for a study made here and for released results.

TABLES = [f"{OUTPUT}/tables/{name}" for name in outputs.table_files(INDEX)]
FIGURES = [f"{OUTPUT}/figures/{name}" for name in outputs.figure_files(INDEX)]


# What `snakemake --report FILE.html` says first.
report: "../report/study.rst"


def records(_):
    """The study's index and, for a study made here, the marker that its evaluations are complete."""
    if SETTINGS.source == "released":
        return {"study": f"{ROOT}/study.json"}
    return {"study": written(plan().study_file), "evaluated": evaluated(None)}


rule tables:
    input:
        unpack(records),
    output:
        [shown(path, caption="tables", category="Tables") for path in TABLES],
    log:
        f"{OUTPUT}/logs/tables.log",
    benchmark:
        f"{OUTPUT}/benchmarks/tables.tsv"
    resources:
        mem_mb=2000,
    params:
        source=ROOT,
        directory=f"{OUTPUT}/tables",
    shell:
        "python -m uniapl.analysis.tables {params.source:q} --output {params.directory:q} 2>&1 | logged {log:q}"


rule figures:
    input:
        unpack(records),
    output:
        [shown(path, caption="figures", category="Figures") for path in FIGURES],
    log:
        f"{OUTPUT}/logs/figures.log",
    benchmark:
        f"{OUTPUT}/benchmarks/figures.tsv"
    resources:
        mem_mb=2000,
    params:
        source=ROOT,
        directory=f"{OUTPUT}/figures",
    shell:
        "python -m uniapl.analysis.figures {params.source:q} --output {params.directory:q} 2>&1 | logged {log:q}"


rule report:
    input:
        unpack(records),
        tables=TABLES,
        figures=FIGURES,
    output:
        shown(f"{OUTPUT}/report.html", caption="page", category="Page"),
    log:
        f"{OUTPUT}/logs/report.log",
    benchmark:
        f"{OUTPUT}/benchmarks/report.tsv"
    resources:
        mem_mb=2000,
    params:
        source=ROOT,
        tables=f"{OUTPUT}/tables",
        figures=f"{OUTPUT}/figures",
    shell:
        "python -m uniapl.report {params.source:q} --tables {params.tables:q} --figures {params.figures:q} "
        "--output {output:q} 2>&1 | logged {log:q}"
