"""Lines of a parquet file as MDS shards, by an interpreter that has mosaicml-streaming.

Run as a script with one JSON object: ``folder``, which holds ``lines.parquet``, ``target`` to write
to, ``batch``, ``batch_size`` and ``repeats``. Another JSON object goes to standard output.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def _main(asked: dict[str, Any]) -> None:
    import pyarrow.parquet as pq  # noqa: PLC0415 - the other interpreter's
    from streaming import MDSWriter, StreamingDataset  # noqa: PLC0415

    target, batch, size = asked["target"], asked["batch"], asked["batch_size"]
    columns = {
        "epoch": "int16",
        "batch": "int32",
        "slot": "int32",
        "dataset": "str",
        "row": "int32",
        "row_id": "int64",
        "key": "str",
        "community": "int32",
    }
    lines = pq.read_table(Path(asked["folder"], "lines.parquet"), columns=list(columns))
    started = time.perf_counter()
    with MDSWriter(out=target, columns=columns, compression="zstd", hashes=["sha1"]) as writer:
        for part in lines.to_batches(max_chunksize=1 << 16):
            for line in part.to_pylist():
                writer.write(line)
    took = time.perf_counter() - started
    reads = []
    for _ in range(asked["repeats"]):
        with tempfile.TemporaryDirectory(prefix="b3-mds-") as local:
            started = time.perf_counter()
            place = {"remote": target, "local": local} if "://" in target else {"local": target}
            dataset = StreamingDataset(**place, batch_size=size, validate_hash="sha1")
            found = [dataset[line]["batch"] for line in range(batch * size, (batch + 1) * size)]
            reads.append(time.perf_counter() - started)
            assert set(map(int, found)) == {batch}
            del dataset
    print(json.dumps({"write_seconds": round(took, 2), "read_seconds": reads}))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
