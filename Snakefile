# uniapl: `snakemake --cores all` makes the study; `--config scale=smoke|laptop|paper` chooses its size.
# Targets: all, runs (training only), tables, figures, report, matrix (all methods, several seeds), ablations (all of
# them on top of the matrix), ablation_NAME.


include: "workflow/rules/common.smk"


if SETTINGS.source != "released":

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


for NAME in study_workflow.available("ablations"):

    rule:
        name:
            f"ablation_{NAME}"
        input:
            rules.all.input,
