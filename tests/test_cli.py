"""The `llmwatch` command, as a learner types it."""
import json, os, shutil, subprocess, sys
import pytest
from conftest import ROOT, copy_tree
from llmwatch_course import cli


def typed(*words, cwd=ROOT, **env):
    done = subprocess.run([sys.executable, "-m", "llmwatch_course.cli", *words], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **env})
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def notebook(*sources, said=()):
    "A notebook of check cells; `said` is what each printed when it was saved."
    outputs = [[{"output_type": "stream", "name": "stdout", "text": [t]}] if t else [] for t in said] or [[] for _ in sources]
    return json.dumps({"cells": [{"cell_type": "code", "source": [s], "outputs": o} for s, o in zip(sources, outputs, strict=True)]})


@pytest.fixture
def course(tmp_path):
    "A course with one chapter of one lesson and two exercises."
    copy_tree(tmp_path, "settings.ini")
    text = json.dumps({"cells": [{"cell_type": "markdown", "source": ["word "]*1500}]})
    contents = json.dumps({"cells": [{"cell_type": "markdown", "source": [":caption: 1 KV cache"]}]})
    for path, content in {"nbs/index.ipynb": contents, "nbs/01_kv_cache/01_bill.ipynb": text, "nbs/01_kv_cache/90_checks.ipynb": text,
                          "exercises/01_kv_cache/01_cache.ipynb": notebook("check_a(A)", "check_b(B)"), "exercises/01_kv_cache/02_ring.ipynb": notebook("check_c(C)")}.items():
        (tmp_path/path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/path).write_text(content)
    return tmp_path


def test_the_list_and_the_next_step(course):
    lines = typed(cwd=course)[1].splitlines()
    assert lines[1].split() == ["1", "KV", "cache", "10", "min", "0", "min", "0", "of", "3"] and lines[-1] == "next: llmwatch start kv_cache"


def test_start_then_answer_then_the_next(course):
    code, said, _ = typed("start", "kv_cache", cwd=course)
    mine = course/"work/01_kv_cache"
    assert code == 0 and "2 copied, 0 kept" in said and sorted(p.name for p in mine.iterdir()) == ["01_cache.ipynb", "02_ring.ipynb"]
    assert typed(cwd=course)[1].splitlines()[-1].startswith("next: read nbs/01_kv_cache, then open work/01_kv_cache/01_cache.ipynb")
    (mine/"01_cache.ipynb").write_text(notebook("check_a(A)", "check_b(B)", said=["OK  1. A\n", "OK  2. B\n"]))
    lines = typed(cwd=course)[1].splitlines()
    assert lines[1].endswith("2 of 3") and "work/01_kv_cache/02_ring.ipynb" in lines[-1] and "0 of 1" in lines[-1]
    kept = (mine/"01_cache.ipynb").read_text()
    assert "0 copied, 2 kept" in typed("start", "1", cwd=course)[1] and (mine/"01_cache.ipynb").read_text() == kept
    (mine/"02_ring.ipynb").write_text(notebook("check_c(C)", said=["OK  3. C\n"]))
    assert typed(cwd=course)[1].endswith("next: every exercise here says OK")


def test_an_output_that_is_not_an_ok_does_not_count(course):
    path = course/"work/01_kv_cache/01_cache.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(notebook("check_a(A)", "print('OK')", said=["NOT YET  1. A: say OK\n", "OK  not a check\n"]))
    assert cli.progress(path) == (0, 1)


@pytest.mark.parametrize("words, said", [
    (["clams"], "did you mean 'claims'?"), (["start", "kv_cahce"], "did you mean 'kv_cache'?"), (["run", "kv_cash"], "did you mean 'kv_cache'?"),
    (["run", "kv_cache", "--scale", "smal"], "did you mean 'small'?"), (["run", "kv_cache", "--seeds", "0"], "--seeds"), (["run", "kv_cache", "--seed", "x"], "--seed"),
    (["run", "kv_cache", "--device", "cuba"], "did you mean 'cuda'?"), (["run"], "topic"), (["claims", "--loud"], "--loud"), (["run", "kv_cache", "--scale", "smoke", "--out", "/proc/x"], "/proc/x")])
def test_an_error_is_one_sentence(words, said):
    code, out, err = typed(*words)
    assert code == 2 and said in err and len(err.splitlines()) == 1 and "Traceback" not in out + err


def test_a_broken_notebook_is_named(course):
    (course/"work/01_kv_cache").mkdir(parents=True)
    (course/"work/01_kv_cache/01_cache.ipynb").write_text("{half")
    code, _, err = typed(cwd=course)
    assert code == 2 and "01_cache.ipynb is not a notebook" in err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": [1]}', '{"cells": [{"cell_type": "code"}]}', '{"cells": null}'])
def test_no_kind_of_broken_notebook_is_read(tmp_path, text):
    (tmp_path/"half.ipynb").write_text(text)
    with pytest.raises(ValueError, match="half.ipynb is not a notebook"): cli.cells(tmp_path/"half.ipynb", "code")


def test_a_copy_that_stops_half_way_is_not_kept(course, monkeypatch):
    lesson = cli.lessons(course)[0]
    monkeypatch.setattr(cli.Path, "read_bytes", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): cli.copy_exercises(course, lesson)
    monkeypatch.undo()
    assert cli.copy_exercises(course, lesson) == (2, 0)


def test_a_folder_that_cannot_be_written_is_one_sentence(course):
    (course/"work").write_text("a file where the folder should be")
    code, _, err = typed("start", "kv_cache", cwd=course)
    assert code == 2 and f"{course/'work/01_kv_cache'} cannot be used (Not a directory)" in err and len(err.splitlines()) == 1


def test_bad_settings_are_one_sentence(course):
    code, _, err = typed("doctor", cwd=course, LLMWATCH_DEVICE="cuba")
    assert code == 2 and "did you mean 'cuda'?" in err and len(err.splitlines()) == 1


def test_claims_print_every_id():
    code, out, _ = typed("claims")
    from llmwatch_course.foundations.results import load_claims
    assert code == 0 and all(c in out for c in load_claims())


def test_doctor_says_what_is_there():
    code, out, _ = typed("doctor")
    rows = dict(line.split(None, 1) for line in out.splitlines() if not line.startswith("part "))
    import torch
    assert code == 0 and rows["torch"] == torch.__version__ and rows["device"].split()[0] in ("cpu", "cuda")
    assert "games" in out and rows["model"].endswith(".gguf")


def test_doctor_names_the_line_that_brings_a_part(monkeypatch, capsys):
    real = cli.version
    monkeypatch.setattr(cli, "version", lambda p: "" if p == "open-spiel" else real(p))
    cli.doctor()
    lines = capsys.readouterr().out.splitlines()
    assert ["part", "games", "missing", "open-spiel:", "pip", "install", "-e", "'.[games]'"] in map(str.split, lines) and all("  " in o for o in lines)


def test_a_missing_model_is_a_sentence():
    code, out, _ = typed("doctor", LLMWATCH_MODEL="/nowhere.gguf")
    assert code == 0 and "/nowhere.gguf" in out and "Traceback" not in out


def test_every_verb_is_known(): assert sorted(cli.VERBS) == sorted(c.callback.__name__ for c in cli.app.registered_commands)


def test_out_of_memory_names_the_setting():
    assert "--scale small" in cli.complaint(RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"))


def test_ctrl_c_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(cli, "listing", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as e: cli.main([])
    assert e.value.code == 130 and capsys.readouterr().err.strip() == "llmwatch: stopped; what was saved is kept"


def test_the_installed_command():
    assert shutil.which("llmwatch", path=os.path.dirname(sys.executable))
