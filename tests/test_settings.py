"""Settings come from the package, the file, the environment, in that order; each bad value is one sentence."""
import subprocess, sys
from pathlib import Path
import pytest, torch
from llmwatch_course.foundations import settings as S

@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    "A working directory with nothing above it that could be a settings file, and no variables."
    for name in ("DEVICE", "SCALE", "SEED", "DATA_DIR"): monkeypatch.delenv(f"LLMWATCH_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path

def ini(folder: Path, text: str): (folder/"settings.ini").write_text(f"[DEFAULT]\nscale = paper\n# about [course]\n{text}")

def test_defaults():
    s = S.settings()
    assert (s.device, s.scale, s.seed) == ("auto", "small", 0) and (s.data_dir/"claims.toml").is_file()

def test_file_above_counts_and_the_environment_wins(empty_folder, monkeypatch):
    ini(empty_folder, "[course]\ndevice = cpu\nseed = 7\nscale = smoke\ndata_dir = mine\n")
    (deep := empty_folder/"a"/"b").mkdir(parents=True); monkeypatch.chdir(deep)
    s = S.settings()
    assert (s.device, s.scale, s.seed, s.data_dir) == ("cpu", "smoke", 7, empty_folder/"mine") and S.home() == empty_folder
    monkeypatch.setenv("LLMWATCH_SEED", "3"); monkeypatch.setenv("LLMWATCH_DATA_DIR", "/elsewhere")
    assert (S.settings().seed, S.settings().data_dir) == (3, Path("/elsewhere"))

def test_a_file_of_another_project_is_not_ours(empty_folder):
    ini(empty_folder, "[metadata]\nname = x\n")
    assert S.home() == Path.cwd() and S.settings().scale == "small"

@pytest.mark.parametrize("name, value, said", [
    ("SCALE", "smal", "did you mean 'small'"), ("SCALE", "zzz", "known: smoke, small, gpu, paper"), ("SEED", "one", "whole number"),
    ("SEED", "-1", "whole number"), ("DEVICE", "gpu0", "unknown device 'gpu0'")])
def test_bad_values_are_one_sentence(monkeypatch, name, value, said):
    monkeypatch.setenv(f"LLMWATCH_{name}", value)
    with pytest.raises(ValueError, match=said) as e: S.settings()
    assert "\n" not in str(e.value)

def test_a_broken_file_is_named(empty_folder):
    (empty_folder/"settings.ini").write_text("[course]\nseed = 1\nseed = 2\n")
    with pytest.raises(ValueError, match="settings.ini cannot be read"): S.settings()

def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="no device 'cuda:93'"): S.pick_device("cuda:93")
    with pytest.raises(ValueError, match="unknown device"): S.pick_device("tpu")
    assert S.pick_device("cpu") == torch.device("cpu")

def test_seed_all_seeds_everything():
    import random, numpy
    draw = lambda g: (random.random(), numpy.random.rand(), torch.rand(()).item(), torch.rand((), generator=g).item())
    first = draw(S.seed_all(5))
    assert draw(S.seed_all(5)) == first != draw(S.seed_all(6))

def test_need(monkeypatch, empty_folder):
    with pytest.raises(ImportError, match=r"^this lesson needs nothing_here: pip install 'llmwatch_course\[games\]'$"): S.need("nothing_here", "games")
    with pytest.raises(ImportError, match="llmwatch_course"): S.need("json.nothing_here", "lm")
    (empty_folder/"half_there.py").write_text("import gone_below")
    monkeypatch.syspath_prepend(str(empty_folder))
    with pytest.raises(ModuleNotFoundError, match="gone_below"): S.need("half_there", "lm")  # installed, but broken: not our sentence

def test_clock(monkeypatch):
    monkeypatch.setenv("LLMWATCH_DEVICE", "cpu")
    clock = S.Clock(); clock.start -= 41
    assert repr(clock) == "ran in 41 s on cpu, scale small, seed 0"

def test_settings_results_and_package_import_without_torch():
    code = "import sys, llmwatch_course, llmwatch_course.foundations.settings, llmwatch_course.foundations.results as r; r.ledger(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(S.__file__).parents[2])
