import contextlib
import re
from pathlib import Path

import pytest

from b3_core.config import BatchSpec, MiningSpec, Phase, PipelineSpec, load_config, parse_config
from b3_core.errors import InputError
from b3_core.store import ArtifactStore

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


def test_paths_are_without_detours_and_links_stay(config, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    text = LEAST.replace("data/faq.parquet", "link/./faq.parquet")
    spec = load_config(config(text + "store: {root: cfg/../.b3}\n"))
    assert spec.store.root == str(tmp_path / ".b3")
    assert spec.datasets[0].uri == str(tmp_path / "link/faq.parquet")
    assert ArtifactStore(f"{tmp_path}/cfg/../.b3").root == str(tmp_path / ".b3")


def test_uris_with_a_scheme_stay(config):
    spec = load_config(config(LEAST.replace("data/faq.parquet", "s3://bucket/faq/*.parquet")))
    assert spec.datasets[0].uri == "s3://bucket/faq/*.parquet"


def test_a_teacher_may_be_just_its_name(config):
    assert load_config(config(LEAST + "teacher: minilm\n")).teacher.model == "minilm"


@pytest.mark.parametrize(
    "text",
    [
        LEAST.replace("data/faq.parquet", "s3://KEY:hush@bucket/faq"),
        LEAST.replace("data/faq.parquet", "https://host/faq.parquet?sig=hush"),
        LEAST + "    eval_uri: s3://KEY:hush@bucket/faq\n",
        LEAST + "store: {root: 's3://KEY:hush@bucket/b3'}\n",
    ],
)
def test_credentials_are_refused_before_anybody_keeps_them(config, text):
    with pytest.raises(InputError, match="carries credentials") as refusal:
        load_config(config(text))
    assert "hush" not in str(refusal.value) and "hush" not in repr(refusal.value.__cause__)


def test_a_folder_called_like_a_packaged_model_does_not_replace_it(config, tmp_path):
    (tmp_path / "static").mkdir()
    (tmp_path / "own").mkdir()
    assert load_config(config(LEAST)).teacher.model == "static"
    for named in ("./static", "own"):
        loaded = load_config(config(LEAST + f"teacher: {named}\n"))
        assert loaded.teacher.model == str(tmp_path / named)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "minning: {k: 8}\n", "unknown key 'minning'.*did you mean 'mining'"),
        (LEAST + "mining: {resolutoin: 1}\n", "'mining.resolutoin'.*did you mean 'resolution'"),
        (LEAST.replace("positive:", "posiitve:"), "lacks 'datasets.0..positive'|posiitve"),
        ("datasets: []\n", "'datasets' in CONFIG"),
        (LEAST + "batches: {curriculum: [{epochs: .inf}]}\n", "finite number|less than or equal"),
        (LEAST + "batches: {curriculum: [{epochs: 40000}]}\n", "less than or equal to 32767"),
        (
            LEAST + "batches: {curriculum: [{epochs: 20000}, {epochs: 20000}]}\n",
            "40000 epochs, more than 32,767",
        ),
        (LEAST + "mining: {repulsion: .inf}\n", "finite number"),
        (LEAST + "mining: {k: 1}\n", r"'mining\.k' in CONFIG is 1: .*greater than or equal to 2"),
        (LEAST + "compute: {gpus_per_worker: 1.5}\n", "whole GPUs: 2, 3"),
        (LEAST + "batches: {batch_size: 100}\n", "100, which is no multiple of k = 32"),
        (LEAST + "batches: {curriculum: [{k: 24}]}\n", "64, which is no multiple of k = 24"),
        (LEAST + "batches: {curriculum: [{epochs: 1.5}]}\n", "1.5 epochs, not a whole number"),
        (LEAST + "batches: {curriculum: [{refresh: true}]}\n", "first phase cannot refresh"),
        (
            LEAST + "batches: {curriculum: [{epochs: 0.5}, {epochs: 1.5, refresh: true}]}\n",
            "a phase that refreshes starts inside an epoch",
        ),
        (
            LEAST + "batches: {curriculum: [{epochs: 0.5, k: 8}, {epochs: 0.5}]}\n",
            "k or repulsion changes inside epoch 0",
        ),
        (
            LEAST + "batches: {curriculum: [{epoch: 1}]}\n",
            r"'batches\.curriculum\[0\]\.epoch'.*did you mean 'epochs'",
        ),
        (LEAST + LEAST.replace("datasets:", "").lstrip("\n"), "not all different"),
        (LEAST + "seeds: [1, 1]\n", "seeds .1, 1. are not all different"),
        (LEAST.replace("name: faq", "name: student"), "cannot be called 'student'"),
        (
            LEAST + "evaluate: {benchmarks: [{name: coco, folder: a}, {name: coco, folder: b}]}\n",
            "benchmarks .'coco', 'coco'. are not all different",
        ),
        (LEAST + "train: {symmetric: true, positive_margin: 0.95}\n", "leave one of them out"),
        (LEAST + "mining: {graph: mutul}\n", "is 'mutul'; expected one of: mutual, union; did you"),
        (LEAST + "mining: 5\n", "'mining' in CONFIG is 5; expected keys: p, m, "),
        (LEAST + "seeds: 3\n", r"'seeds' in CONFIG is 3; expected a list; write seeds: \[3\]"),
        (LEAST + "batches: {curriculum: {epochs: 1}}\n", "is a mapping; expected a list; put '- '"),
        (LEAST + "arms: b3\n", r"'arms' in CONFIG is 'b3'; expected a list; write arms: \[b3\]"),
        (
            LEAST + "arms: [b3, ramdom]\n",
            r"'arms\[1\]' in CONFIG is 'ramdom'; expected one of: random, same-.*mean 'random'",
        ),
        (
            LEAST + "arms: [7]\n",
            r"'arms\[0\]' in CONFIG is 7; expected one of: .*, or keys of an arm",
        ),
        (LEAST + "arms: [{mining: {k: 8}}]\n", r"lacks 'arms\[0\]\.name'"),
        (
            LEAST + "arms: [{name: x, minning: {}}]\n",
            r"'arms\[0\]\.minning'.*did you mean 'mining'",
        ),
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


@pytest.mark.parametrize(
    ("uri", "root", "refused"),
    [
        (".", "store", True),
        ("data", "data", True),
        ("data/**", "data/a/b", True),
        ("data/**/*.parquet", "data/b3", True),
        ("data/*/*/*/*/*.parquet", "data/b3", True),
        ("s3://b/data/**/*.parquet", "s3://b/data/store", True),
        ("data/train-*/**/*.parquet", "data/b3", False),
        ("data/**/part-*.parquet", "data/b3", False),
        ("s3://b/data/", "s3://b/data/store", True),
        ("data", ".", False),
        ("data", "data/.b3", False),
        ("data", "data/_work/b3", False),
        ("data", "data-b3", False),
        ("data/*.parquet", "data/b3", False),
        ("s3://b/data", "data/b3", False),
    ],
)
def test_a_store_among_the_rows_of_a_dataset_is_refused(config, uri, root, refused):
    text = LEAST.replace("data/faq.parquet", f'"{uri}"') + f"store: {{root: {root}}}\n"
    refusal = pytest.raises(InputError, match=r"store\.root .* lies in the folder of dataset 'faq'")
    with refusal if refused else contextlib.nullcontext():
        load_config(config(text))


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
    assert (mining.partitioner, mining.graph, mining.swap_rounds) == ("metis-paper", "mutual", 0)
    assert [phase.random_share for phase in batches.curriculum] == [0]
    assert spec.arm("paper-curriculum") == (mining, spec.batches)
    mining, batches = spec.arm("random")
    assert mining.partitioner == "random"
    assert [phase.random_share for phase in batches.curriculum] == [1]
    assert {spec.arm(arm)[1].epochs for arm in ("random", "paper", "b3")} == {3}
    assert spec.arm("b3") == (spec.mining, spec.batches)
    assert spec.arm("same-dataset") == (mining, batches)  # of one dataset there is one control


def test_the_random_arm_draws_over_all_datasets():
    datasets = [{"name": n, "uri": "/x", "query": "q", "positive": "p"} for n in "de"]
    config = {"datasets": datasets, "batches": {"mixing": "weighted", "negatives": 2}}
    spec = parse_config(config, base=Path("/"))
    (mining, everywhere), (same, alone) = spec.arm("random"), spec.arm("same-dataset")
    assert mining == same
    assert (everywhere.mixing, alone.mixing) == ("across", "weighted")
    assert everywhere.negatives == 2
    assert everywhere.model_copy(update={"mixing": "weighted"}) == alone
    with pytest.raises(InputError, match=r"batches.*across needs random_share: 1 in every phase"):
        parse_config(config | {"batches": {"mixing": "across"}}, base=Path("/"))


def test_a_spec_survives_json():
    dataset = {"name": "d", "uri": "/x", "query": "q", "positive": "p"}
    spec = PipelineSpec.model_validate({"datasets": [dataset]})
    assert PipelineSpec.model_validate_json(spec.model_dump_json()) == spec


def test_phases_are_cut_where_epochs_end():
    """A phase of 1.5 epochs, a third of one, and the rest of three."""
    third = 1 / 3
    phases = tuple(Phase(epochs=e) for e in (1.5, third, 3 - 1.5 - third))
    first, second, rest = phases
    cut = BatchSpec(curriculum=phases).segments()
    assert [[phase for _, phase in epoch] for epoch in cut] == [
        [first],
        [first, second, rest],
        [rest],
    ]
    assert [share for epoch in cut for share, _ in epoch] == pytest.approx(
        [1, 0.5, third, 0.5 - third, 1]
    )


def test_a_phase_may_have_its_own_k_and_repulsion():
    mining = MiningSpec(k=32, repulsion=1.0)
    batches = BatchSpec(
        curriculum=(Phase(random_share=1, k=4), Phase(k=8), Phase(repulsion=0), Phase(k=8))
    )
    variants = mining.variants(batches)
    assert [(v.k, v.repulsion) for v in variants] == [(8, 1.0), (32, 0.0)]
    assert mining.variants(BatchSpec(curriculum=(Phase(random_share=1),))) == [mining]


def test_an_arm_of_ones_own_changes_some_keys():
    own = {"name": "k8", "mining": {"k": 8}, "batches": {"batch_size": 16}}
    dataset = {"name": "d", "uri": "/x", "query": "q", "positive": "p"}
    config = {"datasets": [dataset], "mining": {"p": 5}, "arms": ["random", own]}
    spec = parse_config(config, base=Path("/"))
    assert spec.arm_names == ("random", "k8")
    mining, batches = spec.arm("k8")
    assert (mining.p, mining.k, batches.batch_size, batches.epochs) == (5, 8, 16, 3)
    for wrong, message in (
        ({"mining": {"kk": 8}}, r"unknown key 'arms\[1\]\.mining\.kk'.*did you mean 'k'"),
        ({"mining": {"graph": "mutul"}}, r"'arms\[1\]\.mining\.graph' .*did you mean 'mutual'"),
        ({"mining": {"search": "ivf", "cell_rows": 9}}, r"'arms\[1\]\.mining' .*beside cell_rows"),
        (
            {"batches": {"curriculum": [{"epoch": 1}]}},
            r"'arms\[1\]\.batches\.curriculum\[0\]\.epoch' .*did you mean 'epochs'",
        ),
        ({"mining": {"k": 24}}, "64, which is no multiple of k = 24 .arm k8."),
        ({"name": "random"}, "are not all different"),
    ):
        with pytest.raises(InputError, match=message):
            parse_config(config | {"arms": ["random", {"name": "k8"} | wrong]}, base=Path("/"))


def test_a_curriculum_is_cut_where_it_is_mined_anew():
    phases = (Phase(random_share=1), Phase(epochs=0.5), Phase(epochs=0.5, random_share=0.5))
    plain = BatchSpec(curriculum=phases)
    assert plain.legs == [plain]
    again = (*phases, Phase(refresh=True, k=8), Phase(), Phase(epochs=2, refresh=True))
    legs = BatchSpec(batch_size=128, curriculum=again).legs
    assert [leg.curriculum for leg in legs] == [phases, (Phase(k=8), Phase()), (Phase(epochs=2),)]
    assert [leg.epochs for leg in legs] == [2, 2, 2]
    assert {leg.batch_size for leg in legs} == {128}
