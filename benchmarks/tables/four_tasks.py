"""The federation of tables whose methods keep parts of each client at home: four tasks, unequal shares."""

from benchmarks.tables.definition import Row, Table


def table_of(name: str, rows: tuple[Row, ...]) -> Table:
    """20 clients of about 32 examples each, 5 a round; every client also evaluates on a share of its own."""
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
