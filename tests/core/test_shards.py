"""One process embeds the shards of many teachers and datasets."""

import itertools
import weakref

import pyarrow.parquet as pq

from b3_core.config import DatasetSpec, EvalSpec, TeacherSpec
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.embed import ShardWorker, Vectors
from b3_core.store import ArtifactStore
from tests.conftest import topic_table


def test_a_worker_embeds_for_whichever_teacher_and_dataset_comes_next(tmp_path):
    """Shards in turns; each as a process of its own makes it."""
    shards_of = []
    for root in ("warm", "apart"):
        store = ArtifactStore(str(tmp_path / root))
        made = []
        for number in range(2):
            file = tmp_path / f"{number}.parquet"
            pq.write_table(topic_table(600, seed=number), file)
            dataset = DatasetSpec(
                name=f"d{number}", uri=str(file), query="question", positive="answer"
            )
            ref = PairsRef.of(dataset, Pairs.of(dataset, EvalSpec()).run(store))
            for length in (None, 3):
                teacher = TeacherSpec(model="static", max_length=length)
                made.append(Vectors.of(store, ref, teacher, 256).shards)
        shards_of.append((store, [each for turn in zip(*made, strict=True) for each in turn]))
    (warm, shards), (apart, again) = shards_of
    worker, teachers = ShardWorker(warm.root), []
    for shard, alone in zip(shards, again, strict=True):
        worker.run(shard)
        teachers.append(weakref.ref(worker._encoder))
        alone.run(apart)
    assert [each() is None for each in teachers] == [True] * (len(shards) - 1) + [False]

    def bytes_of(store, shard):
        artifact = store.get(shard.address)
        return {name: artifact.path(name).read_bytes() for name in sorted(artifact.files)}

    found = [bytes_of(warm, shard) for shard in shards]
    assert found == [bytes_of(apart, shard) for shard in again]
    assert all(one != other for one, other in itertools.combinations(found, 2))
