"""JupyterLab in a real browser: an exercise is run, answered and passed; in each chapter's widgets a slider moves the figure."""
import json, os, re, shutil, socket, subprocess, sys, time, urllib.request
import nbformat, pytest
from conftest import BROWSER, ROOT, copy_tree, notebooks

TURN = "raise NotImplementedError  # your turn"
WIDGETS = [p for p in notebooks("nbs") if p.name == "85_widget.ipynb"]


def answer(exercise):
    "The first unanswered cell of an exercise, as text to find and text to write in its place."
    pairs = zip(nbformat.read(exercise, 4).cells, nbformat.read(ROOT/"solutions"/exercise.relative_to(ROOT/"exercises"), 4).cells, strict=True)
    asked, solved = next((a.source, b.source) for a, b in pairs if a.cell_type == "code" and TURN in a.source)
    return {"find": asked.splitlines()[0], "text": "\n".join(o for o in solved.splitlines() if "### " not in o)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab serving a learner's copy of the course; gives its address and its folder."
    here = copy_tree(tmp_path_factory.mktemp("lab"), "settings.ini", "data")
    if any(notebooks("exercises")): shutil.copytree(ROOT/"exercises", here/"work")
    for p in WIDGETS: (here/p.parent.name).mkdir(); shutil.copy(p, here/p.parent.name)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    line = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root", "--IdentityProvider.token=", f"--ServerApp.root_dir={here}"]
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {"LLMWATCH_SCALE": "smoke", "PYTHONPATH": str(ROOT)}  # figures are to show
    with open(here/"lab.log", "w") as log:
        server = subprocess.Popen(line, cwd=here, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        try:
            wait(f"http://127.0.0.1:{port}/api/status", server, here/"lab.log")
            yield f"http://127.0.0.1:{port}", here
        finally:
            server.terminate()
            server.wait(20)


def wait(url, server, log):
    "Until the server answers, at most a minute."
    for _ in range(240):
        assert server.poll() is None, log.read_text()[-2000:]
        try: return urllib.request.urlopen(url, timeout=5).read()
        except OSError: time.sleep(0.25)
    raise AssertionError(f"JupyterLab did not answer within a minute: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def seen(lab, browser, tmp_path_factory):
    "What a learner saw."
    exercise, shot = notebooks("exercises")[0], tmp_path_factory.mktemp("shot")/"failure.png"
    job = {"url": lab[0], "exercise": f"work/{exercise.relative_to(ROOT/'exercises')}", "answer": answer(exercise), "widgets": [f"{p.parent.name}/{p.name}" for p in WIDGETS]}
    done = subprocess.run(["node", BROWSER/"lab.js"], input=json.dumps(job), capture_output=True, text=True, timeout=900, env={**os.environ, **browser, "SCREENSHOT": str(shot)})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert not found["failures"], f"{found['failures']}\npicture: {shot}"
    return found


def test_jupyterlab_asks_no_question(seen): assert seen["dialogs"] == 0
def test_an_unanswered_exercise_says_not_yet(seen): assert seen["notYet"].startswith("NOT YET") and "Traceback" not in seen["notYet"]
def test_the_answer_is_accepted(seen): assert seen["ok"].startswith("OK")
def test_graders_tools_do_not_show(seen): assert seen["nbgrader"] == 0
def test_no_error_in_the_console(seen): assert not seen["errors"]


@pytest.mark.parametrize("path", WIDGETS, ids=lambda p: p.parent.name)
def test_every_widget_moves_its_figure(path, seen):
    shown = [c for c in nbformat.read(path, 4).cells if re.fullmatch(r"\w*ui\(\)", c.source)]
    assert shown and seen["pictures"].get(f"{path.parent.name}/{path.name}") == len(shown)


def test_the_saved_answer_counts_as_done(seen, lab):
    from llmwatch_course.cli import progress
    exercise = notebooks("exercises")[0]
    assert progress(lab[1]/"work"/exercise.relative_to(ROOT/"exercises"))[0] >= 1


def test_graders_server_extensions_are_off():
    done = subprocess.run([sys.executable, "-m", "jupyter", "server", "extension", "list"], capture_output=True, text=True)
    lines = [o for o in (done.stdout + done.stderr).splitlines() if "nbgrader.server_extensions" in o and ("enabled" in o or "disabled" in o)]
    assert lines and all("disabled" in o for o in lines)
