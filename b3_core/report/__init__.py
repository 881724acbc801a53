"""What a manifest is worth, read before anything is trained on it: numbers, then a page.

    manifest (a URI)                       what the plan is: settings, datasets, epochs
    stored     its store                   which artifacts it stands on are still there
    stages     their records               lineage, seconds, memory, bytes
    meetings   batches, vectors, ranks     who meets whom: scores, ranks, false negatives
    others     ranks, the store            the same of random batches, and of the paper's partition
    repeats    batches, texts, groups      duplicates that meet in a batch; edges that are kept
    samples    batches, texts, media       batches to read: nearest partners, and why they are there
    advice     all of these                what is wrong in words, and what to do
    dataset, describe                      run them: one plain dict, which is the JSON
    view       that dict                   rows of tables in words and rounded; plots as SVG
    page       view, a template            one HTML file that asks for nothing else
    markdown   view                        the same figures for a run's page

What is gone from the store is said in words, and the rest is shown. Rows are looked at batch by
batch and vectors where they lie, so memory is bounded by the plan and by ``ROWS`` sampled rows.
"""
