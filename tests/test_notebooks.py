"""Every notebook runs; solutions pass; every exercise is unsolved, and fails in its check cells alone."""
import os, sys
from concurrent.futures import ThreadPoolExecutor
import nbformat, pytest
from conftest import ROOT, copy_tree, name, notebooks, tool
from nbclient import NotebookClient

SOLUTIONS, EXERCISES = notebooks("solutions"), notebooks("exercises")


def errors(path):
    "Run the notebook at `path` to its end in a fresh kernel: its check cells, and the (cell source, error name) of every failure."
    nb = nbformat.read(path, 4)
    env = {**os.environ, "LLMWATCH_SCALE": "smoke"}
    NotebookClient(nb, timeout=600, allow_errors=True, resources={"metadata": {"path": path.parent}}).execute(env=env)
    cells = [c for c in nb.cells if c.cell_type == "code"]
    return ([c.source for c in cells if c.source.startswith("check_")],
            [(c.source, o.ename) for c in cells for o in c.outputs if o.output_type == "error"])


@pytest.fixture(scope="module")
def ran():
    "Two kernels at a time: what `errors` says of every solution and exercise."
    with ThreadPoolExecutor(2) as pool: return dict(zip(SOLUTIONS + EXERCISES, pool.map(errors, SOLUTIONS + EXERCISES), strict=True))


@pytest.mark.parametrize("folder", sorted({p.relative_to(ROOT).parts[1] for p in notebooks("nbs")}))
def test_every_notebook_runs_at_smoke(folder):
    "One folder at a time: a process of nbdev-test keeps all that its notebooks made."
    tool("nbdev-test", f"nbs/{folder}", "--n-workers", "2", "--timing", LLMWATCH_SCALE="smoke", OMP_NUM_THREADS="1")


@pytest.mark.parametrize("path", SOLUTIONS, ids=name)
def test_solution_passes(path, ran): assert ran[path][1] == []


@pytest.mark.parametrize("path", EXERCISES, ids=name)
def test_exercise_is_unsolved(path, ran):
    checks, failed = ran[path]
    assert checks and failed == [(c, "NotYet") for c in checks]


def test_exercises_are_made_from_solutions(): tool(sys.executable, "tools/make_exercises.py", "--check")


def test_a_stale_exercise_is_noticed(tmp_path):
    here = copy_tree(tmp_path, "tools/make_exercises.py")
    cell = "def double(x):\n    ### BEGIN SOLUTION\n    return 2*x\n    ### END SOLUTION"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata={"kernelspec": {"name": "python3", "display_name": "python3"}})
    (here/"solutions/01_topic").mkdir(parents=True)
    nbformat.write(nb, here/"solutions/01_topic/01_name.ipynb")
    made = here/"exercises/01_topic/01_name.ipynb"
    with pytest.raises(AssertionError, match="not as solutions/ says"): tool(sys.executable, "tools/make_exercises.py", "--check", cwd=here)
    tool(sys.executable, "tools/make_exercises.py", cwd=here)
    assert "return 2*x" not in made.read_text() and "your turn" in made.read_text()
    tool(sys.executable, "tools/make_exercises.py", "--check", cwd=here)
    made.write_text(made.read_text().replace("your turn", "your move"))
    with pytest.raises(AssertionError, match="your move"): tool(sys.executable, "tools/make_exercises.py", "--check", cwd=here)


def test_every_topic_has_the_same_inner_shape():
    "Whoever knows one chapter knows all."
    for folder in sorted((ROOT/"nbs").glob("0[1-8]_*")):
        found = {p.name for p in folder.glob("*.ipynb")}
        missing = {"80_measure.ipynb", "85_widget.ipynb", "90_checks.ipynb", "95_init.ipynb"} - found
        assert not missing, f"{folder.name} lacks {sorted(missing)}"
