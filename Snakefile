# uniapl: `snakemake --cores all` makes the study; `--config scale=smoke|laptop|paper` chooses its size.
# Targets: all, runs (training only), tables, figures, report, matrix (all methods, several seeds), ablations.


include: "workflow/rules/common.smk"


if SETTINGS.source == "run":

    include: "workflow/rules/data.smk"
    include: "workflow/rules/train.smk"
    include: "workflow/rules/evaluate.smk"


include: "workflow/rules/analyze.smk"


rule all:
    default_target: True
    input:
        rules.tables.output,
        rules.figures.output,
        rules.report.output,


rule matrix:
    input:
        rules.all.input,


rule ablations:
    input:
        rules.all.input,
