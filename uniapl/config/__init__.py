"""All that a study can vary, as pydantic models; `layers.py` resolves the YAML files to them.

Layers, later ones win: `config/default.yaml`, `config/<scale>.yaml`, the command line's `--config`. A stage
is one file in `config/methods/`; a method is a path of stages written with dots (`sft.grpo`). Every field says
its unit and source; "not stated" means that neither the paper's abstracts nor its reviews give the value.
"""

from uniapl.config.base import (
    KEPT_LOGITS_BYTES,
    LOGITS_BYTES,
    ConfigError,
    Count,
    Fraction,
    ModelSpec,
    Positive,
    Spec,
)
from uniapl.config.data import (
    AutoIFSpec,
    DataSpec,
    IFRLVRSpec,
)
from uniapl.config.discriminators import (
    DISCRIMINATOR_KINDS,
    ControlSpec,
    DiscriminatorSpec,
    FeaturesSpec,
    HeadSpec,
    PolarSpec,
    pooled_layer,
    read_discriminator,
)
from uniapl.config.evaluation import (
    BenchmarkSpec,
    ClaimSpec,
    ComparedSpec,
    EvalSpec,
    ReferenceSpec,
    ReferencesSpec,
)
from uniapl.config.study import (
    AblationSpec,
    Study,
    VariantSpec,
)
from uniapl.config.teachers import (
    RESERVED_IN_BODY,
    TEACHERS,
    ChatTeacherSpec,
    EditorSpec,
    EndpointAccess,
    EndpointSpec,
    TeacherSpec,
    VLLMAccess,
    VLLMSpec,
)
from uniapl.config.training import (
    Coefficient,
    MachineSpec,
    SamplerSpec,
    ScheduleSpec,
    StageSpec,
    TrainSpec,
)

__all__ = [
    "DISCRIMINATOR_KINDS",
    "KEPT_LOGITS_BYTES",
    "LOGITS_BYTES",
    "RESERVED_IN_BODY",
    "TEACHERS",
    "AblationSpec",
    "AutoIFSpec",
    "BenchmarkSpec",
    "ChatTeacherSpec",
    "ClaimSpec",
    "Coefficient",
    "ComparedSpec",
    "ConfigError",
    "ControlSpec",
    "Count",
    "DataSpec",
    "DiscriminatorSpec",
    "EditorSpec",
    "EndpointAccess",
    "EndpointSpec",
    "EvalSpec",
    "FeaturesSpec",
    "Fraction",
    "HeadSpec",
    "IFRLVRSpec",
    "MachineSpec",
    "ModelSpec",
    "PolarSpec",
    "Positive",
    "ReferenceSpec",
    "ReferencesSpec",
    "SamplerSpec",
    "ScheduleSpec",
    "Spec",
    "StageSpec",
    "Study",
    "TeacherSpec",
    "TrainSpec",
    "VLLMAccess",
    "VLLMSpec",
    "VariantSpec",
    "pooled_layer",
    "read_discriminator",
]
