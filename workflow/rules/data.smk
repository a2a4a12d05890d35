# What every run of a study starts from: base models, prompts, demonstrations, the discriminator.


# The base model as an ordinary checkpoint.
rule model:
    input:
        unpack(reads("models")),
    output:
        f"{ROOT}/models/{{name}}/manifest.json",
    log:
        f"{ROOT}/logs/models/{{name}}.log",
    benchmark:
        f"{ROOT}/benchmarks/models/{{name}}.tsv"
    threads: lambda _: cores_of()
    resources:
        mem_mb=MEMORY_MB,
    params:
        options=options("models"),
    shell:
        "python -m uniapl.models {params.options} 2>&1 | logged {log:q}"


# AutoIF's prompts, whose verification functions the teacher writes. How it is reached is no reason to ask it again.
TEACHER_GPUS = study_workflow.teacher_gpus(PLANS[TARGET].study.teacher)
AUTOIF_GPUS = study_workflow.autoif_gpus(PLANS[TARGET].study)
TEACHER_ACCESS = study_workflow.teacher_access(PLANS[TARGET].study.teacher)


rule autoif:
    input:
        unpack(reads("autoif")),
    output:
        f"{ROOT}/autoif/{{name}}/manifest.json",
    log:
        f"{ROOT}/logs/autoif/{{name}}.log",
    benchmark:
        f"{ROOT}/benchmarks/autoif/{{name}}.tsv"
    threads: lambda _: cores_of()
    resources:
        mem_mb=MEMORY_MB,
        gpu=MACHINE.gpus_per_rank * AUTOIF_GPUS,
    params:
        options=options("autoif"),
    shell:
        "{LAUNCH} --gpus {AUTOIF_GPUS} -m uniapl.autoif {params.options} {TEACHER_ACCESS} 2>&1 | logged {log:q}"


# Training, development, held-out and IFBench prompts, with their data card.
rule data:
    input:
        unpack(reads("data")),
    output:
        f"{ROOT}/data/{{name}}/manifest.json",
    log:
        f"{ROOT}/logs/data/{{name}}.log",
    benchmark:
        f"{ROOT}/benchmarks/data/{{name}}.tsv"
    threads: 1
    resources:
        mem_mb=MEMORY_MB,
    params:
        options=options("data"),
    shell:
        "python -m uniapl.data {params.options} 2>&1 | logged {log:q}"


# The expert's answers, every one of them verified.
rule demonstrations:
    input:
        unpack(reads("demonstrations")),
    output:
        f"{ROOT}/demonstrations/{{name}}/manifest.json",
    log:
        f"{ROOT}/logs/demonstrations/{{name}}.log",
    benchmark:
        f"{ROOT}/benchmarks/demonstrations/{{name}}.tsv"
    threads: lambda _: cores_of()
    resources:
        mem_mb=MEMORY_MB,
        gpu=MACHINE.gpus_per_rank * TEACHER_GPUS,
    params:
        options=options("demonstrations"),
    shell:
        "{LAUNCH} --gpus {TEACHER_GPUS} -m uniapl.teachers {params.options} --machine {SETTINGS_OF_MACHINE} {TEACHER_ACCESS} "
        "2>&1 | logged {log:q}"


# What tells base answers from the expert's, with its b and tau; fixed afterwards.
rule discriminator:
    input:
        unpack(reads("discriminator")),
    output:
        f"{ROOT}/discriminator/{{name}}/manifest.json",
    log:
        f"{ROOT}/logs/discriminator/{{name}}.log",
    benchmark:
        f"{ROOT}/benchmarks/discriminator/{{name}}.tsv"
    threads: lambda _: cores_of()
    resources:
        mem_mb=MEMORY_MB,
        gpu=MACHINE.gpus_per_rank,
    params:
        options=options("discriminator"),
    shell:
        "{LAUNCH} -m uniapl.discriminator {params.options} --machine {SETTINGS_OF_MACHINE} 2>&1 | logged {log:q}"
