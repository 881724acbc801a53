"""What a CONFIG will take: seconds, memory, disk and money of every stage, before it is run.

    CONFIG, data -> sample: a few thousand of its rows, the same CONFIG
      probe: the same stages on the sample, in processes as the run's own -> timings
      past: what records of the store say of the same stages               -> timings
    timings -> rates: seconds = fixed + rate x work (rates)
    plan -> jobs: what is to be made, how much work each is (jobs)
    jobs x rates, on a machine -> a row a stage: time, memory, disk, money, what does not fit

Every rate is measured; what is assumed about growth is in :mod:`b3_core.forecast.rates` and
:mod:`b3_core.forecast.sizes`, and printed beside the rows.
"""
