"""`python -m tests.mutants [CHAPTER]` runs the mutants of a chapter, or of all, and writes what became of them into the table."""
import sys, tempfile
from pathlib import Path
from . import copy_course, judged, load, record

chosen = [m for m in load() if len(sys.argv) < 2 or m.chapter == int(sys.argv[1])]
with tempfile.TemporaryDirectory() as folder:
    course = copy_course(Path(folder)/"course")
    for mutant in chosen:
        outcome = judged(mutant, course)
        record(mutant, outcome)
        print(f"{mutant.chapter}  {mutant.id:<24} {outcome}", flush=True)
for chapter in sorted({m.chapter for m in chosen}):
    outcomes = [m.outcome for m in load() if m.chapter == chapter]
    print(f"chapter {chapter}: {sum(o.startswith('killed') for o in outcomes)} of {len(outcomes)} killed")
