"""Discovery of benchmarks: the modules of this folder that have a `main`."""

import ast
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """The name of a module, the first line of its docstring, and its targets by name."""

    name: str
    summary: str
    targets: dict[str, float]


def find_benchmarks(folder: Path = FOLDER) -> list[Benchmark]:
    """All benchmarks by name. The modules are parsed and not imported, as some of them load torch."""
    modules = ((file, ast.parse(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("[!_]*.py")))
    return [_benchmark(file.stem, module) for file, module in modules if _has_main(module)]


def _has_main(module: ast.Module) -> bool:
    return any(isinstance(statement, ast.FunctionDef) and statement.name == "main" for statement in module.body)


def _benchmark(name: str, module: ast.Module) -> Benchmark:
    summary = (ast.get_docstring(module) or "").partition("\n")[0]
    targets = {}
    for statement in module.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            constant = statement.targets[0].id
            if constant.startswith("_TARGET_"):
                targets[constant.removeprefix("_TARGET_").lower()] = _number(statement.value)
    return Benchmark(name, summary, targets)


def _number(value: ast.expr) -> float:
    """The value of a constant expression such as `256 * 1024**2`."""
    if isinstance(value, ast.BinOp):
        left, right = _number(value.left), _number(value.right)
        if isinstance(value.op, ast.Mult):
            return left * right
        if isinstance(value.op, ast.Pow):
            return float(left**right)
    elif isinstance(value, ast.Constant) and isinstance(value.value, int | float):
        return float(value.value)
    raise ValueError(f"a target must be a number, or numbers joined by * and **, not {ast.unparse(value)!r}")
