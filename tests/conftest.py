"""What the checks share: where things are, a calm environment, and one rule for what a machine lacks."""
import os, shutil, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
BROWSER = ROOT/"tests/browser"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
sys.path[:0] = [str(ROOT), str(ROOT/"docs")]


def absent(what: str):
    "Skip a check because this machine lacks something; where everything is promised, fail."
    if os.environ.get("LLMWATCH_REQUIRE_ALL"): pytest.fail(f"this machine lacks {what}")
    pytest.skip(f"this machine lacks {what}")


def notebooks(*folders: str) -> list[Path]:
    "All notebooks below the folders; drafts and editors' copies left out."
    return [p for f in folders for p in sorted((ROOT/f).rglob("*.ipynb")) if not p.name.startswith("_") and ".ipynb_checkpoints" not in p.parts]


def name(path: Path) -> str: return str(path.relative_to(ROOT).with_suffix(""))


def tool(program: str, *args, cwd=ROOT, **env) -> str:
    "What a program of this environment prints; an AssertionError with its last lines when it fails."
    path = Path(sys.executable).parent/program
    line = [str(path if path.exists() else program), *map(str, args)]
    done = subprocess.run(line, cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{program} stopped:\n" + "\n".join((done.stdout + done.stderr).splitlines()[-60:])
    return done.stdout


def copy_tree(target: Path, *names: str) -> Path:
    "A copy of parts of the course at `target`, so that a check can write there."
    for n in names:
        source, to = ROOT/n, target/n
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir(): shutil.copytree(source, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        elif source.exists(): shutil.copy(source, to)
    return target


@pytest.fixture(scope="session")
def browser() -> dict[str, str]:
    "The variables a Node script needs to drive a browser; skips when Node, the npm packages or Chromium is missing."
    if not shutil.which("node"): absent("Node.js")
    if not (BROWSER/"node_modules/playwright-core").is_dir(): absent("the npm packages of tests/browser: npm install --prefix tests/browser")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found: absent("Chromium")
    return {"CHROMIUM": found}


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    "The built pages, the Korean ones in `ko`; a warning is an error."
    folder = tmp_path_factory.mktemp("site")
    def build(language, to): tool("sphinx-build", "-q", "-W", "--keep-going", "-D", f"language={language}", "-d", folder/language, "-c", "docs", "nbs", to)
    with ThreadPoolExecutor() as both: list(both.map(build, ("en", "ko"), (folder/"html", folder/"html/ko")))
    return folder/"html"
