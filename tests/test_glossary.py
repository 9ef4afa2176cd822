"""Every word a lesson introduces is explained, once, in both languages."""
import re, tomllib
import nbformat, pytest
from conftest import ROOT, name, notebooks

TERMS = tomllib.loads((ROOT/"data/glossary.toml").read_text(encoding="utf-8"))["term"]
CHAPTERS = {"00_foundations", "01_kv_cache", "02_ahn", "03_agents", "04_trm", "05_ace", "06_cwm", "07_memory_forcing", "08_vgb"}
NEWSLETTER = ("KV cache", "Artificial Hippocampus Network", "sliding-window attention", "planner / executor / verifier", "Monte Carlo tree search", "code world model",
              "hidden-information game")


def key(term):
    "A term as it is looked up: words in brackets, capitals and a plural do not count."
    return re.sub(r"(?<!s)s$", "", " ".join(re.sub(r"\([^)]*\)", " ", term).lower().split()))


def introduced(path):
    "The words on the `Terms:` line of a notebook, which may run on to the next blank line."
    for c in nbformat.read(path, 4).cells:
        if c.cell_type == "markdown" and (m := re.search(r"(?ms)^Terms:(.*?)(?:\n\s*\n|\Z)", c.source)): return [t.strip(" .\n") for t in m[1].split("·")]
    return []


LINES = {name(p).removeprefix("nbs/"): introduced(p) for p in notebooks("nbs")}
KNOWN = {key(t["term"]): t for t in TERMS}


@pytest.mark.parametrize("lesson", [k for k, v in LINES.items() if v])
def test_every_term_of_a_lesson_is_explained(lesson):
    missing = [t for t in LINES[lesson] if key(t) not in KNOWN]
    assert not missing, f"nbs/{lesson} introduces words that data/glossary.toml lacks: {missing}"


def test_the_newsletters_own_terms_are_here(): assert {key(t) for t in NEWSLETTER} <= KNOWN.keys()


def test_no_term_is_explained_twice(): assert len(KNOWN) == len(TERMS)


@pytest.mark.parametrize("t", TERMS, ids=lambda t: t["term"])
def test_entry_is_complete(t):
    assert t.keys() == {"term", "korean", "meaning", "lesson"}
    assert re.search("[가-힣]", t["korean"]) or t["korean"] == t["term"], "Korean, or a proper name that stays as it is"
    assert t["meaning"].endswith(".") and "\n" not in t["meaning"] and len(t["meaning"]) <= 160 and t["meaning"][0].isupper()
    homes = [lesson for lesson, terms in LINES.items() if key(t["term"]) in map(key, terms)]
    if homes: assert t["lesson"] in homes, f"it is introduced by {homes}"
    else: assert t["lesson"] in LINES or t["lesson"] in CHAPTERS and not (ROOT/"nbs"/t["lesson"]).is_dir(), "a chapter that is there names its notebook"


def test_the_page_shows_the_table_of_today():
    nb = nbformat.read(ROOT/"nbs/glossary.ipynb", 4)
    shown = "\n".join(o.data.get("text/plain", "") for c in nb.cells if c.cell_type == "code" for o in c.outputs if "data" in o)
    missing = [t["term"] for t in TERMS if t["term"] not in shown or t["meaning"] not in shown]
    assert not missing, f"run nbs/glossary.ipynb again: it lacks {missing}"
