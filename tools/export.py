"""Write what is made from the notebooks: the library, the exercises, the README's table of lessons."""
import subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

if __name__ == "__main__":
    for line in ([BIN/"nbdev-export"], [BIN/"nbdev-clean"], [BIN/"nbdev-clean", "--fname", "solutions"],
                 [sys.executable, "tools/make_exercises.py"], [sys.executable, "tools/readme_table.py"]):
        if subprocess.run(line, cwd=ROOT).returncode: sys.exit(f"{Path(line[-1]).name} stopped; what it printed above says why.")
