"""B3 batch mining: pairs in, batches full of in-batch negatives out.

Numbers in, numbers out: no Prefect here, Ray in ``ray_session`` and ``ray_train`` alone, files
through ``store``.
The pipeline, stage by stage, each an artifact in the store (N rows, M = p + m ranks, K rows a
community, B rows a batch)::

    stage (module)            reads                       makes
    ------------------------  --------------------------  ----------------------------------------
    Pairs (dataset_stage)     the user's parquet files    rows with keys and groups; rows held out
    Shard (embed, teacher)    rows                        unit vectors of a few thousand rows
    Vectors (embed)           shards                      query_ND, positive_ND
    Ranks (ranking,           vectors                     neighbour_NM: best positives a query
      neighbours)
    Graph (mine, graph)       ranks                       CSR: window edges, and too-hard edges
    Communities (mine,        graph                       label_N: communities of exactly K rows
      communities, balance)
    ManifestOf (mine,         communities of all data     batches of every epoch, hashes, lineage
      batches, manifest)
    Student (learn, train,    manifest                    a model
      sampler)
    Evaluation (learn,        student, held-out rows      rank of every query's positive
      evaluate.retrieval)
    Results (results,         evaluations                 arms side by side, with intervals
      evaluate.compare)

With ``mining.cell_rows`` a larger dataset is mined in cells (``cells``, ``probing``, ``celled``):
Ranks and Communities are put together from parts, one a cell, that are artifacts too, and Graph
holds counts alone.

Where the store has what an earlier state of a dataset was mined to, Vectors, Ranks (``carried``)
and Communities begin with that (``earlier``), and only what changed is worked on.

``report`` reads a manifest and what it was made from, and writes a page; it makes no artifact.

Where a curriculum says ``refresh``, the student is the next teacher and the middle runs again: a
leg of the plan. ``plan`` works all addresses out beforehand; ``config`` says what one may ask for.
"""
