"""`python -m tests.benchmarks [NAME ...] [--out FILE]`: one table of ratios. It reports; it never fails, and writes nothing unless told where."""
import argparse, importlib, json, pkgutil
from pathlib import Path
from tests import benchmarks

parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Ours beside the peers: one table of ratios.")
parser.add_argument("names", nargs="*", help="modules of tests/benchmarks; none: all")
parser.add_argument("--out", type=Path, help="also write the rows there, as JSON")


def measured(name: str) -> list[dict]:
    "The rows of one module; one that stops gives one row that says so."
    try: return importlib.import_module(f"tests.benchmarks.{name}").rows()
    except Exception as e: return [dict(what=f"{name} stopped: {e}", ours="", peer="", ratio="", spread="", unit="", aim="")]


if __name__ == "__main__":
    asked = parser.parse_args()
    found = [r for name in asked.names or sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name[0] != "_") for r in measured(name)]
    table = [["what", "ours", "peer", "unit", "ratio", "spread", "aim"]]
    table += [[f"{v:,}" if isinstance(v, int | float) else str(v) for v in (r.get(key, "") for key in table[0])] for r in found]
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table: print("  ".join(f"{c:<{w}}" for c, w in zip(line, widths)).rstrip())
    if asked.out: asked.out.write_text(json.dumps(found, indent=1) + "\n")
