"""Programs that make the tables in the methods' READMEs: `python -m benchmarks.tables NAME --data FOLDER`.

A table is a module `rows_NAME.py` here. They take minutes and have no target: `python -m benchmarks` passes them by.
"""
