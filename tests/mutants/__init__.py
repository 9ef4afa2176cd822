"""Seeded faults of the library: does `nbdev-test` alone notice them?"""
import json, os, re, shutil, signal, subprocess, sys, tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("mutants.toml")
LIMIT = 300  # seconds for a notebook; one that takes longer has noticed


@dataclass(frozen=True)
class Mutant:
    "One edit of one exported cell."
    id: str
    chapter: int
    module: str  # below llmwatch_course, such as "kv_cache.ring"
    kind: str  # sign, index, mask, detach, off-by-one, constant, missing term
    old: str  # found once in the module and in its notebook
    new: str
    outcome: str = ""  # "killed by NOTEBOOK" or "survived", written by `python -m tests.mutants`

    @property
    def path(self) -> str: return f"llmwatch_course/{self.module.replace('.', '/')}.py"
    @property
    def notebook(self) -> str: return re.search(r"File to edit: [./]*(nbs/\S+\.ipynb)", (ROOT/self.path).read_text("utf-8"))[1]


def load() -> list[Mutant]: return [Mutant(name, **entry) for name, entry in tomllib.loads(TABLE.read_text("utf-8")).items()]


def record(mutant: Mutant, outcome: str) -> None:
    "Write what became of a mutant into the table."
    entry = re.compile(rf'(^\[{mutant.id}\]$.*?^outcome = )"[^"]*"', re.M | re.S)
    TABLE.write_text(entry.sub(rf'\1"{outcome}"', TABLE.read_text("utf-8"), count=1), "utf-8")


def in_module(mutant: Mutant) -> str:
    "The text of the module with the fault."
    text = (ROOT/mutant.path).read_text("utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.id}: '{mutant.old}' is {text.count(mutant.old)} times in {mutant.path}"
    return text.replace(mutant.old, mutant.new)


def in_notebook(mutant: Mutant) -> str:
    "The text of the notebook with the fault in its exported cell."
    book = json.loads((ROOT/mutant.notebook).read_text("utf-8"))
    cells = [c for c in book["cells"] if c["cell_type"] == "code" and re.match(r"#\|\s*export", "".join(c["source"])) and mutant.old in "".join(c["source"])]
    assert len(cells) == 1 and "".join(cells[0]["source"]).count(mutant.old) == 1, f"{mutant.id}: '{mutant.old}' is not once in an exported cell of {mutant.notebook}"
    cells[0]["source"] = "".join(cells[0]["source"]).replace(mutant.old, mutant.new)
    return json.dumps(book)


def copy_course(to: Path) -> Path:
    "Notebooks, library and settings at `to`, and a link to the data."
    for name in ("nbs", "llmwatch_course"): shutil.copytree(ROOT/name, to/name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml", "README.md"): shutil.copy(ROOT/name, to/name)
    (to/"data").symlink_to(ROOT/"data")
    return to


@contextmanager
def planted(mutant: Mutant, course: Path):
    "Inside, the copy has the fault, in notebook and module alike."
    try:
        (course/mutant.path).write_text(in_module(mutant), "utf-8"); (course/mutant.notebook).write_text(in_notebook(mutant), "utf-8")
        yield
    finally:
        for name in (mutant.path, mutant.notebook): shutil.copy(ROOT/name, course/name)


def red(notebook: str, course: Path) -> str:
    "Why `nbdev-test` refuses a notebook of the copy at scale smoke; empty when it is green."
    calm = {"LLMWATCH_SCALE": "smoke", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(course), "PYTHONDONTWRITEBYTECODE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    run = subprocess.Popen([Path(sys.executable).parent/"nbdev-test", course/notebook, "--n-workers", "0"], cwd=course, env={**os.environ, **calm},
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try: return "an error" if run.wait(LIMIT) else ""
    except subprocess.TimeoutExpired: return "the time limit"
    finally:
        try: os.killpg(run.pid, signal.SIGKILL)  # with all that the notebook has started
        except ProcessLookupError: pass
        run.wait()


@cache
def sound(notebook: str, course: Path) -> None:
    "An AssertionError if a notebook is red without any fault."
    assert not (why := red(notebook, course)), f"{notebook} is red without a fault: {why}"


def readers(mutant: Mutant) -> list[str]:
    "The notebook of the mutant, then those of its chapter that import the module."
    imports = re.compile(rf"llmwatch_course\.{re.escape(mutant.module)}\b")
    others = [str(p.relative_to(ROOT)) for p in sorted((ROOT/mutant.notebook).parent.glob("[!_]*.ipynb")) if imports.search(p.read_text("utf-8"))]
    return [mutant.notebook, *(n for n in others if n != mutant.notebook)]


def judged(mutant: Mutant, course: Path) -> str:
    "The first notebook that notices, or that none did."
    with planted(mutant, course):
        why, notebook = next(((why, n) for n in readers(mutant) if (why := red(n, course))), ("", ""))
    if not why: return "survived"
    sound(notebook, course)
    return f"killed by {notebook.removeprefix('nbs/').removesuffix('.ipynb')}" + (", the time limit" if "limit" in why else "")
