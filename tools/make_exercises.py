"""Make exercises/ from solutions/. With --check, only say whether the two agree."""
import difflib, sys
from pathlib import Path
import nbformat
from nbconvert.exporters import NotebookExporter
from traitlets.config import Config


def stripped(path):
    "The exercise notebook for the solution notebook at `path`, as text."
    c = Config()
    c.NotebookExporter.preprocessors = [f"nbgrader.preprocessors.{o}" for o in ("ClearSolutions", "ClearOutput")]
    c.ClearSolutions.enforce_metadata = False
    c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # your turn"}
    text, _ = NotebookExporter(config=c).from_filename(str(path))
    nb = nbformat.reads(text, as_version=4)
    nb.metadata = {k: v for k, v in nb.metadata.items() if k == "kernelspec"}
    return nbformat.writes(nb) + "\n"


def main(root=Path("."), check=False):
    "Write what changed, or with `check` list it and stop with an error."
    stale = []
    for src in sorted((root/"solutions").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in src.parts: continue
        dst, new = root/"exercises"/src.relative_to(root/"solutions"), stripped(src)
        old = dst.read_text() if dst.exists() else ""
        if old == new: continue
        if check:
            stale.append(str(dst))
            sys.stderr.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), str(dst), "expected", n=1))
        else:
            dst.parent.mkdir(parents=True, exist_ok=True)
            dst.write_text(new)
    alone = [str(p) for p in sorted((root/"exercises").rglob("*.ipynb"))
             if ".ipynb_checkpoints" not in p.parts and not (root/"solutions"/p.relative_to(root/"exercises")).exists()]
    if stale or alone: sys.exit(f"not as solutions/ says: {stale}; without a solution: {alone}")


if __name__ == "__main__": main(Path(__file__).resolve().parents[1], check="--check" in sys.argv)
