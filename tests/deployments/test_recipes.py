"""What is deployed: recipes are valid, and prefect.yaml says what it should."""

import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from b3_core.config import PipelineSpec, load_config
from b3_core.errors import B3Error, InputError
from deployments.bootstrap import FLOWS, RECIPES, config_file
from deployments.steps import read_config

DEPLOYED = yaml.safe_load((RECIPES.parent / "prefect.yaml").read_text())


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_a_config_of_its_name(recipe):
    spec = load_config(recipe)
    assert spec.name == recipe.stem
    step = read_config(str(recipe))
    assert step["name"] == spec.name
    assert PipelineSpec.model_validate(step["spec"]) == spec


@pytest.mark.parametrize("size", ["2b", "7b"])
def test_mmeb_has_the_papers_numbers(size):
    spec = load_config(RECIPES / f"mmeb-{size}.yaml")
    assert len(spec.datasets) == 20
    assert {d.task: spec.mining.cutoff(d.task) for d in spec.datasets} == {
        **{"classification": 0, "vqa": 70},
        **{"retrieval": 30, "grounding": 30},
    }
    assert (spec.mining.m, spec.mining.k, spec.batches.batch_size) == (100, 32, 1024)
    assert (spec.train.temperature, spec.train.learning_rate) == (0.02, 1e-4)
    assert spec.train.warmup_ratio == 0.1
    assert (spec.train.lora.r, spec.train.lora.alpha, spec.train.lora.dropout) == (8, 64, 0.1)
    assert spec.train.pooling == spec.teacher.pooling == "lasttoken"
    assert spec.arm("b3++")[1].negatives == 5
    assert {d.media_root for d in spec.datasets} == {"/data/MMEB-train"}
    assert all(set(d.media_columns) == {"query", "positive"} for d in spec.datasets)
    prompts = {d.task: d.positive_prompt for d in spec.datasets if d.positive_prompt}
    assert prompts["classification"] == "Represent the class label: "


def test_a_config_is_found_by_path_or_recipe(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("name: own")
    assert config_file(str(own)) == own
    assert config_file("laptop") == (RECIPES / "laptop.yaml").absolute()
    with pytest.raises(InputError, match="a recipe: cluster, gpu, laptop, mmeb-2b, mmeb-7b, nli"):
        config_file("desktop")


def test_a_step_without_a_config_says_what_to_do():
    with pytest.raises(B3Error, match="B3_CONFIG"):
        read_config("")


def test_prefect_reads_every_deployment():
    model = PrefectYamlModel.model_validate(DEPLOYED)
    entrypoints = [deployment.entrypoint for deployment in model.deployments]
    assert entrypoints == [f"flows.{flow}.{flow}" for flow in FLOWS]
    for deployment in model.deployments:
        assert deployment.enforce_parameter_schema
        assert deployment.description
        # A lease that a server's restart loses: the run that renews it would be ended.
        assert deployment.concurrency_limit is None
        assert deployment.tags[0] == "b3"
        # A run that writes to a pipe of its worker dies with it.
        assert deployment.work_pool.job_variables["stream_output"] is False


def test_only_watching_runs_by_schedule():
    active = {
        deployment["entrypoint"]: [each["active"] for each in deployment.get("schedules", [])]
        for deployment in DEPLOYED["deployments"]
    }
    assert active.pop("flows.watch.watch") == [True]
    assert active.pop("flows.pipeline.pipeline") == [False]
    assert not any(active.values())


def test_triggers_react_to_their_own_config_alone():
    triggers = [t for d in DEPLOYED["deployments"] for t in d.get("triggers", [])]
    assert [t["expect"] for t in triggers] == [
        ["b3.dataset.changed"],
        ["b3.manifests.published"],
        ["b3.students.trained"],
    ]
    assert all(t["match"] == {"b3.pipeline": "{{ config.name }}"} for t in triggers)


def test_events_are_those_that_flows_emit():
    from tasks import events  # noqa: PLC0415 - imports Prefect's client

    said = {events.DATASET_CHANGED, events.MANIFESTS_PUBLISHED, events.STUDENTS_TRAINED}
    waited = {
        e for d in DEPLOYED["deployments"] for t in d.get("triggers", []) for e in t["expect"]
    }
    assert said == waited


@pytest.mark.parametrize("flow", FLOWS)
def test_a_form_has_help_bounds_and_defaults(flow):
    schema = parameter_schema(load_flow_from_entrypoint(f"flows.{flow}.{flow}"))
    assert schema.required == ["spec"]
    mining = schema.definitions["MiningSpec"]["properties"]
    assert mining["k"]["minimum"] == 2
    assert mining["k"]["default"] == 32
    assert mining["k"]["description"]
    assert "leiden" in mining["partitioner"]["enum"]
    sections = ("DatasetSpec", "TeacherSpec", "MiningSpec", "BatchSpec", "TrainSpec", "EvalSpec")
    for section in sections:
        for name, field in schema.definitions[section]["properties"].items():
            assert field.get("description"), f"{section}.{name} has no help text"
