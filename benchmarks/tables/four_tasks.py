"""The federation of tables for personalized algorithms: four tasks, with unequal shares of rows."""

from benchmarks.tables.definition import Row, Table


def table_of(name: str, rows: tuple[Row, ...]) -> Table:
    """A table of 20 clients with about 32 examples each, 5 per round. Each also evaluates on its own share."""
    return Table(
        name=name,
        rows=rows,
        rounds=10,
        tasks=("subj", "trec", "mr", "rte"),
        alpha=1.0,
        sizes=5.0,
        train_rows=640,
        test_rows=300,
        test_shares=True,
        evaluate_every=2,
        target=0.95,
    )
