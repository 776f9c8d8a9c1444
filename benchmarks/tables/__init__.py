"""Programs that make the tables in the methods' READMEs: `python -m benchmarks.tables NAME --data FOLDER`.

A table is a module `rows_NAME.py` here; the runs that it was made of lie in `runs/NAME.jsonl`, and with `--results`
that file only what is missing is run. Tables take hours and have no target: `python -m benchmarks` passes them by.
"""
