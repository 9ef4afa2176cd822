"""Run every tests/benchmarks/*.py in a process of its own and print one table. It reports; it never fails.

Each file has a `main()` that prints its rows, cells divided by tabs: what, ours, peer, ratio, aim.
"""
import subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = ["what", "ours", "peer", "ratio", "aim"]


def rows(path):
    "The rows that one file prints; a file that stops gives one row that says so."
    print(f"running {path.name} ...", file=sys.stderr, flush=True)
    code = f"import runpy; runpy.run_path({str(path)!r}, run_name='benchmark')['main']()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    if done.returncode: found.append([path.stem, "stopped: " + (done.stderr.strip().splitlines() or ["without a word"])[-1]])
    return found


def aligned(lines):
    "Rows as text, each column as wide as its widest cell."
    widths = [max(len(r[i]) for r in lines if i < len(r) and len(r) > 2) for i in range(max(map(len, lines)))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(r, widths)).rstrip() for r in lines)


if __name__ == "__main__":
    files = sorted(p for p in (ROOT/"tests/benchmarks").glob("*.py") if not p.name.startswith("_"))
    print(aligned([HEAD, *(r for p in files for r in rows(p))]))
