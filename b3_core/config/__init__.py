"""What a user asks for: frozen pydantic models, one section of CONFIG each.

``PipelineSpec`` is the whole. Every field is either *identity* (it changes what is made and
enters the fingerprint of a stage) or *compute* (it changes only how it is made, and never does):
the sections ``store`` and ``compute`` are compute, all others identity.
"""

from b3_core.config.base import Name, Spec
from b3_core.config.data import DATA_SUFFIXES, DatasetSpec, MediaSpec, Task
from b3_core.config.judging import BenchmarkSpec, EvalSpec, PromoteSpec
from b3_core.config.loading import absolute_uri, load_config, parse_config
from b3_core.config.mining import DEFAULT_P, BatchSpec, MiningSpec, Phase
from b3_core.config.models import LoraSpec, TeacherSpec, TrainSpec
from b3_core.config.pipeline import HARD_NEGATIVES, PAPER_MINING, ArmName, ArmSpec, PipelineSpec
from b3_core.config.running import ComputeSpec, StoreSpec

__all__ = [
    "DATA_SUFFIXES",
    "DEFAULT_P",
    "HARD_NEGATIVES",
    "PAPER_MINING",
    "ArmName",
    "ArmSpec",
    "BatchSpec",
    "BenchmarkSpec",
    "ComputeSpec",
    "DatasetSpec",
    "EvalSpec",
    "LoraSpec",
    "MediaSpec",
    "MiningSpec",
    "Name",
    "Phase",
    "PipelineSpec",
    "PromoteSpec",
    "Spec",
    "StoreSpec",
    "Task",
    "TeacherSpec",
    "TrainSpec",
    "absolute_uri",
    "load_config",
    "parse_config",
]
