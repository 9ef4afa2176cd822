"""The wheel holds every module and the data, and works from an empty folder."""
import os, subprocess, sys, zipfile
import pytest
from conftest import ROOT, copy_tree, tool

MB = 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    here = copy_tree(tmp_path_factory.mktemp("wheel"), "llmwatch_course", "data", "pyproject.toml", "README.md", "LICENSE")
    tool(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "-w", "dist", cwd=here)
    return next((here/"dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "The wheel in a folder of its own, and an empty folder to work in."
    target, empty = tmp_path_factory.mktemp("site-packages"), tmp_path_factory.mktemp("empty")
    tool(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", target, wheel)
    def run(*words):
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLMWATCH_")} | {"PYTHONPATH": str(target)}
        done = subprocess.run([sys.executable, "-m", "llmwatch_course.cli", *words], cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout
    return run, target, empty


def test_every_module_is_inside(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {str(p.relative_to(ROOT)) for p in (ROOT/"llmwatch_course").rglob("*.py") if "_data" not in p.parts}
    assert package <= inside and "llmwatch_course/py.typed" in inside
    games = {f"llmwatch_course/_data/fixtures/cwm/{p.relative_to(ROOT/'data/fixtures/cwm')}" for p in (ROOT/"data/fixtures/cwm").rglob("*.py")}  # programs that lessons read as texts
    strangers = {n for n in inside if n.endswith(".py")} ^ package ^ games
    assert not strangers and not [n for n in inside if n.split("/")[0] not in ("llmwatch_course",) and ".dist-info/" not in n]


def test_the_data_is_inside_and_small(wheel):
    files = zipfile.ZipFile(wheel).infolist()
    data = {f.filename.removeprefix("llmwatch_course/_data/"): f.file_size for f in files if "/_data/" in f.filename}
    small = {str(p.relative_to(ROOT/"data")) for p in (ROOT/"data").rglob("*") if p.is_file() and p.stat().st_size <= 4*MB and not any(q.startswith(".") for q in p.parts)}
    assert small == set(data), f"in data/ and not in the wheel, or the other way round: {small ^ set(data)}"
    assert "claims.toml" in data and sum(data.values()) <= 20*MB


def test_the_ledger_from_an_empty_folder(installed):
    run, target, empty = installed
    shown = run("claims")
    assert "kv-exact" in shown and "vgb-reason" in shown
    where = subprocess.run([sys.executable, "-c", "import llmwatch_course as c; print(c.__file__)"], cwd=empty, env={**os.environ, "PYTHONPATH": str(target)}, capture_output=True, text=True)
    assert where.stdout.startswith(str(target))


def test_a_measurement_from_an_empty_folder(installed):
    run, target, empty = installed
    run("run", "kv_cache", "--scale", "smoke")
    assert sorted(p.stem for p in (empty/"work/results/smoke").glob("*.json")) == sorted(["kv-exact", "kv-speed", "kv-forget", "kv-sinks", "kv-window"])


def test_without_lessons_the_command_says_where_they_are(installed):
    assert "repository" in installed[0]()
