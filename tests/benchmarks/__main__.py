"""`python -m tests.benchmarks [NAME ...]`: one table of ratios, kept in data/results/bench.json. It reports; it never fails."""
import argparse, datetime, importlib, json, os, pkgutil, platform, re
from importlib import metadata
from pathlib import Path
from llmwatch_course.foundations.results import Table, write_whole
from tests import benchmarks

FILE = Path(__file__).resolve().parents[2]/"data/results/bench.json"
NAMES = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name[0] != "_")
FIELDS = ("what", "ours", "peer", "unit", "ratio", "spread", "aim")
PEERS = ("torch", "numpy", "transformers", "trl", "open-spiel", "numba", "bm25s", "genlm-control")


def host() -> dict:
    "The machine, and the versions of what was compared."
    import torch
    told = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", told.read_text()) if told.exists() else None
    versions = {p: metadata.version(p) for p in PEERS if any(metadata.distributions(name=p))}
    return {"cpu": model[1] if model else platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None, "python": platform.python_version(), **versions}


def measured(topic: str) -> list[dict]:
    "The rows of one module; one that stops gives one row that says so."
    try:
        rows = [{"topic": topic} | {k: r.get(k, "") for k in FIELDS} for r in importlib.import_module(f"tests.benchmarks.{topic}").rows()]
        json.dumps(rows, allow_nan=False)
    except (Exception, SystemExit) as e: rows = [{"topic": topic, "what": f"stopped: {' '.join(str(e).split()) or type(e).__name__}"} | dict.fromkeys(FIELDS[1:], "")]
    return [row | {"date": str(datetime.date.today())} for row in rows]


def kept(machine: dict) -> list[dict]:
    "The rows of earlier runs on this machine; the file names one machine, so those of another cannot stay."
    try: found = json.loads(FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError): return []
    if found["host"] == machine: return found["rows"]
    print(f"the rows in {FILE.name} are from another machine or other versions, and are left out")
    return []


def save(machine: dict, rows: list[dict]) -> None:
    "The whole file, its topics in order of their names."
    record = {"date": max(r["date"] for r in rows), "host": machine, "command": "make bench", "rows": sorted(rows, key=lambda r: r["topic"])}
    write_whole(FILE, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Ours beside the peers: one table of ratios.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which topics to measure anew; none: all of {', '.join(NAMES)}")
    asked = parser.parse_args().names or NAMES
    if unknown := set(asked) - set(NAMES): parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    machine = host()
    rows = [r for r in kept(machine) if r["topic"] in NAMES]
    for topic in asked:
        print(f"{topic} ...", flush=True)
        rows = [r for r in rows if r["topic"] != topic] + measured(topic)
        save(machine, rows)                                                # after each: what stops the process leaves the rest
    shown = [{k: f"{v:,}" if isinstance(v, int | float) else v for k, v in r.items()} for r in rows if r["topic"] in asked]
    print(Table(shown, ["topic", *FIELDS]))
