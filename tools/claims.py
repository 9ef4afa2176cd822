"""Measure every topic at scale small into work/results/, then print the ledger with this machine beside the course's own numbers."""
import subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LLMWATCH = [sys.executable, "-m", "llmwatch_course.cli"]

if __name__ == "__main__":
    topics = sorted(p.parent.name for p in (ROOT/"llmwatch_course").glob("*/measure.py"))
    failed = [t for t in topics if subprocess.run([*LLMWATCH, "run", t, "--scale", "small"], cwd=ROOT).returncode]
    subprocess.run([*LLMWATCH, "claims"], cwd=ROOT)
    if failed: sys.exit(f"these topics stopped before their end: {', '.join(failed)}")
