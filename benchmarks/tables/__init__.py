"""Generator of the tables in the READMEs of the algorithms: `python -m benchmarks.tables NAME --data FOLDER`.

A table is a module `rows_NAME.py` here. Its results are stored in `runs/NAME.jsonl`. With `--results` and that file
only missing jobs are run. Tables take hours and have no target, so `python -m benchmarks` does not run them.
"""
