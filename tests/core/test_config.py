import re

import pytest

from b3_core.config import PipelineSpec, load_config, parse_config
from b3_core.errors import InputError

LEAST = """
datasets:
  - name: faq
    uri: data/faq.parquet
    query: question
    positive: answer
"""


@pytest.fixture
def config(tmp_path):
    def write(text):
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return file

    return write


def test_the_least_config_is_whole_and_its_paths_start_at_its_folder(config, tmp_path):
    spec = load_config(config(LEAST))
    assert spec.datasets[0].uri == str(tmp_path / "data/faq.parquet")
    assert spec.store.root == str(tmp_path / ".b3")
    assert (spec.mining.k, spec.mining.m, spec.mining.cutoff("retrieval")) == (32, 100, 30)
    assert spec.mining.cutoff("vqa") == 70


def test_uris_with_a_scheme_stay(config):
    spec = load_config(config(LEAST.replace("data/faq.parquet", "s3://bucket/faq/*.parquet")))
    assert spec.datasets[0].uri == "s3://bucket/faq/*.parquet"


def test_a_teacher_may_be_just_its_name(config):
    assert load_config(config(LEAST + "teacher: minilm\n")).teacher.model == "minilm"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "minning: {k: 8}\n", "unknown key 'minning'.*did you mean 'mining'"),
        (LEAST + "mining: {resolutoin: 1}\n", "'mining.resolutoin'.*did you mean 'resolution'"),
        (LEAST.replace("positive:", "posiitve:"), "lacks 'datasets.0..positive'|posiitve"),
        ("datasets: []\n", "'datasets' in CONFIG"),
        (LEAST + "mining: {k: 1}\n", r"'mining\.k' in CONFIG is 1: .*greater than or equal to 2"),
        (LEAST + "batches: {batch_size: 100}\n", "100, which is no multiple of mining.k = 32"),
        (LEAST + "batches: {epochs: 1, random_epochs: 2}\n", "random_epochs is 2, more than"),
        (LEAST + LEAST.replace("datasets:", "").lstrip("\n"), "not all different"),
        (LEAST + "seeds: [1, 1]\n", "must not repeat"),
        ("- 1\n", "holds no mapping"),
        ("datasets: [\n", "no valid YAML at line"),
        (LEAST.replace("name: faq", "name: ../faq"), r"'datasets\[0\]\.name'"),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_key(config, text, message):
    with pytest.raises(InputError) as caught:
        load_config(config(text))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_config_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml.*No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_yaml_cannot_run_code(config):
    with pytest.raises(InputError):
        load_config(config("datasets: !!python/object/apply:os.system ['true']\n"))


def test_arms_differ_only_in_mining_and_curriculum(tmp_path):
    dataset = {"name": "d", "uri": "x", "query": "q", "positive": "p"}
    spec = parse_config(
        {"datasets": [dataset], "mining": {"graph": "union", "swap_rounds": 7}}, base=tmp_path
    )
    mining, batches = spec.arm("paper")
    assert (mining.partitioner, mining.graph, mining.swap_rounds) == ("metis", "mutual", 0)
    assert batches.random_epochs == 0
    mining, batches = spec.arm("random")
    assert (mining.partitioner, batches.random_epochs) == ("random", batches.epochs)
    assert spec.arm("b3") == (spec.mining, spec.batches)


def test_a_spec_survives_json():
    dataset = {"name": "d", "uri": "/x", "query": "q", "positive": "p"}
    spec = PipelineSpec.model_validate({"datasets": [dataset]})
    assert PipelineSpec.model_validate_json(spec.model_dump_json()) == spec
