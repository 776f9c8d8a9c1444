"""Random requests, results and jobs, of every role, of a hostile worker and of a hostile coordinator.

`python -m tests.fuzz --minutes 5`
"""
