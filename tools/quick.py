"""The checks of what has changed since the last commit: notebooks at smoke, their tests, and the settings."""
import os, re, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALWAYS = ["tests/test_config.py"]


def changed(root=ROOT):
    "Paths that differ from the last commit, new ones too."
    git = subprocess.run(["git", "status", "--porcelain", "--untracked-files=all", "--no-renames"], cwd=root, capture_output=True, text=True)
    if git.returncode: sys.exit("`make quick` looks for changes with git, and this folder is not a git clone: use `make test`.")
    return [line[3:].strip('"') for line in git.stdout.splitlines() if line[:2] != " D" and line[0] != "D"]


def wanted(paths, known):
    "The notebooks to run and the test files to run, given what changed and which test files exist."
    notebooks = [p for p in paths if re.fullmatch(r"nbs/.*\.ipynb", p) and not Path(p).name.startswith("_")]
    names = {part for p in paths if p.split("/")[0] in ("nbs", "solutions", "exercises", "llmwatch_course")
             for part in re.sub(r"\d+_", "", p).removesuffix(".ipynb").removesuffix(".py").split("/")[1:]}
    tests = {p for p in paths if re.fullmatch(r"tests/test_\w+\.py", p) and p in known}
    tests |= {t for t in known if any(n and n in Path(t).stem for n in names)}
    return notebooks, sorted(tests | set(ALWAYS))


if __name__ == "__main__":
    known = sorted(str(p.relative_to(ROOT)) for p in (ROOT/"tests").glob("test_*.py"))
    notebooks, tests = wanted(changed(), known)
    failed = False
    if notebooks:
        env = {**os.environ, "LLMWATCH_SCALE": "smoke", "OMP_NUM_THREADS": "1"}
        for path in notebooks:
            done = subprocess.run([Path(sys.executable).parent/"nbdev-test", path], cwd=ROOT, env=env, stdin=subprocess.DEVNULL)
            print(f"{'FAILED' if done.returncode else 'ran'}  {path}", flush=True)
            failed |= bool(done.returncode)
    failed |= bool(subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT).returncode)
    sys.exit(int(failed))
