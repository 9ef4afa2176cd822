"""The wheel holds every module and the data; installed elsewhere it measures every topic and loads every checkpoint from an empty folder."""
import os, shutil, subprocess, sys, zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest
from conftest import ROOT, copy_tree, tool
from llmwatch_course.cli import topics
from llmwatch_course.foundations.results import load_claims

MB, LLMWATCH = 2**20, ("-m", "llmwatch_course.cli")
MODULES = sorted(str(p.relative_to(ROOT).with_suffix("")).replace(os.sep, ".").removesuffix(".__init__") for p in (ROOT/"llmwatch_course").rglob("*.py") if "_data" not in p.parts)

IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    print(name, importlib.import_module(name).__file__)
"""

LOADS = """
import safetensors.torch as files
read = files.load_file
def load_file(path): print(path); return read(path)
files.load_file = load_file
from llmwatch_course.agents.planner import base
from llmwatch_course.memory_forcing import autoencoder, measure, windows
from llmwatch_course.trm.widget import BOARDS, solver
for name in [("small",), ("medium",), ("large",), ("medium", "monolithic"), ("medium", "trained")]: base(*name)
for name in BOARDS: solver(name)
for name in autoencoder.CODERS: autoencoder.load_coder(name)
for arm in windows.ARMS:
    for seed in range(measure.SHIPPED): measure.model_of(arm, measure.Config.small(), seed, "cpu")
"""


@pytest.fixture(scope="module")
def offline():
    "What starts a program with the network cut; empty where the system does not allow it."
    line = ["unshare", "--map-root-user", "--net"]
    return line if shutil.which("unshare") and not subprocess.run([*line, "true"], capture_output=True).returncode else []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    here = copy_tree(tmp_path_factory.mktemp("wheel"), "llmwatch_course", "data", "pyproject.toml", "README.md", "LICENSE")
    tool(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "-w", "dist", cwd=here)
    return next((here/"dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, offline, tmp_path_factory):
    "The wheel in a folder of its own, an empty folder to work in, and what runs Python there with the network cut."
    target, empty = tmp_path_factory.mktemp("site-packages"), tmp_path_factory.mktemp("empty")
    tool(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", target, wheel)
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMWATCH_")} | {"PYTHONPATH": str(target)}
    def run(*words):
        done = subprocess.run([*offline, sys.executable, *words], cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout
    return run, target, empty


@pytest.fixture(scope="module")
def measured(installed):
    "Every topic measured at smoke, two at a time."
    with ThreadPoolExecutor(2) as pool: return {t: pool.submit(installed[0], *LLMWATCH, "run", t, "--scale", "smoke") for t in topics()}


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


def test_every_module_is_imported_from_there(installed):
    run, target, _ = installed
    found = dict(line.split() for line in run("-c", IMPORTS, *MODULES).splitlines())
    assert sorted(found) == MODULES and all(path.startswith(str(target)) for path in found.values())


def test_the_ledger_from_an_empty_folder(installed):
    shown = installed[0](*LLMWATCH, "claims")
    assert all(claim in shown for claim in load_claims())


@pytest.mark.parametrize("topic", topics())
def test_a_measurement_from_an_empty_folder(topic, measured, installed):
    measured[topic].result()
    wanted = {c.id for c in load_claims().values() if c.topic == topic and "small" in c.scales}
    found = {p.stem for p in (installed[2]/"work/results/smoke").glob("*.json")} & {c.id for c in load_claims().values() if c.topic == topic}
    assert wanted and found == wanted


def test_every_checkpoint_loads_from_an_empty_folder(installed):
    run, target, _ = installed
    shipped = {str(p) for p in (target/"llmwatch_course/_data/checkpoints").iterdir()}
    assert shipped and set(run("-c", LOADS).split()) == shipped


def test_nothing_is_written_but_the_results(measured, installed):
    assert [p.name for p in installed[2].iterdir()] == ["work"]


def test_without_lessons_the_command_says_where_they_are(installed):
    assert "repository" in installed[0](*LLMWATCH)


def test_with_the_network_cut(offline):
    "What ran above ran so; and a lesson with the language model does."
    if not offline: pytest.skip("this system does not let a check cut the network")
    seen = subprocess.run([*offline, "cat", "/proc/net/dev"], capture_output=True, text=True).stdout
    assert [line.split(":")[0].strip() for line in seen.splitlines() if ":" in line] == ["lo"]
    tool(*offline, Path(sys.executable).with_name("nbdev-test"), "nbs/00_foundations/07_language_model.ipynb", LLMWATCH_SCALE="smoke")
