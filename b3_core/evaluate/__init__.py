"""How good a student is, and how sure one can be that another is better.

vectors -> retrieval: rank of each query's positive -> metrics, one EvalReport a task
reciprocal ranks of two arms, all seeds -> compare: mean difference with its interval
"""
