"""The front page, in both languages: its pictures are what the code draws today, and its numbers are those of the results."""
import json, re, shutil, sys
from collections import Counter
import pytest
from PIL import Image
from conftest import ROOT, tool

sys.path.insert(0, str(ROOT/"tools"))
import overview, readme_table  # noqa: E402
from llmwatch_course.foundations.results import load_claims, read, verdict  # noqa: E402

PAGES = {"README.md": "en", "README.ko.md": "ko"}
LINK, PICTURE = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#]+)\)"), re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
TEXTS = {name: (ROOT/name).read_text(encoding="utf-8") for name in PAGES}
FIRST = "\n".join("".join(c["source"]) for c in json.loads((ROOT/"nbs/index.ipynb").read_text(encoding="utf-8"))["cells"])


def test_the_pictures_are_of_today(): tool(sys.executable, "tools/overview.py", "--check")


def test_a_change_is_noticed(tmp_path, monkeypatch):
    assert overview.stale(tmp_path, ["verdicts", "chapter-5"]) == ["verdicts", "chapter-5"], "nothing is there yet"
    for name in ("verdicts", "chapter-5"): shutil.copy(overview.FOLDER/f"{name}.png", tmp_path)
    rows = readme_table.standing()
    assert rows["kv-exact"]["verdict"] == "reproduced"
    monkeypatch.setattr(overview, "standing", lambda: rows | {"kv-exact": rows["kv-exact"] | {"verdict": "not reproduced"}})
    assert overview.stale(tmp_path, ["verdicts", "chapter-5"]) == ["verdicts"], "one claim has changed its verdict"


def test_pictures_are_small_and_each_is_used_in_words():
    pages = {**TEXTS, "nbs/index.ipynb": FIRST.replace("](../", "](")}
    for page, text in pages.items():
        shown = {path: alt for alt, path in PICTURE.findall(text)}
        assert set(shown) == {f"docs/_static/{name}.png" for name in overview.PICTURES}, page
        assert all(len(alt) > 20 for alt in shown.values()), page
    for name in overview.PICTURES:
        path = overview.FOLDER/f"{name}.png"
        assert path.stat().st_size <= 60_000 and (name == "verdicts" or Image.open(path).size == (640, 400)), name


@pytest.mark.parametrize("page", PAGES)
def test_the_verdicts_are_those_of_the_result_files(page):
    words = {v: v if PAGES[page] == "en" else korean for v, korean in readme_table.VERDICTS.items()}
    found, claims = Counter(), load_claims()
    for cell in re.findall(r"<br>([^|<]*\d[^|<]*)\|", TEXTS[page].replace("\u00a0", " ")):
        for part in cell.split(" · "):
            for verdict_, word in words.items():
                if part.replace(word, "").strip().isdigit(): found[verdict_] += int(part.replace(word, ""))
    assert found == Counter(verdict(c, read(c.id, c.scales[0])).word for c in claims.values()) and sum(found.values()) == len(claims)


@pytest.mark.parametrize("page", PAGES)
def test_three_claims_that_did_not_hold_up_are_told(page):
    rows = re.findall(r"\| ([≥≤] \S+|[<>=]+ \S+) \| (\S+) ± \S+ \| \[([\w-]+)\]", TEXTS[page])
    claims = load_claims()
    assert len(rows) == 3 and len({claims[i].topic for *_, i in rows}) == 3
    for needed, came, i in rows:
        record = read(i, claims[i].scales[0])
        assert verdict(claims[i], record).word == "not reproduced" and float(came.replace("−", "-")) == float(f"{record['value']:.2g}")
        assert needed.replace("≥", ">=").replace("≤", "<=") == claims[i].accept


def test_what_was_benchmarked_is_told_only_when_it_was(tmp_path):
    path = tmp_path/"bench.json"
    assert readme_table.bench("en", path) == ""
    row = {"topic": "trm", "what": "a step", "ours": 2., "peer": 3., "unit": "ms", "ratio": 1.5, "spread": .1, "aim": ">= 1"}
    path.write_text(json.dumps({"date": "2031-02-03", "rows": [row | {"what": "no aim", "aim": ""}, row, row | {"what": "a second one"}]}))
    text = readme_table.bench("ko", path)
    assert "2031-02-03" in text and "아주 작은 재귀 모델" in text and "| a step | 2.0 | 3.0 | ms | 1.5 | >= 1 |" in text and "no aim" not in text and "second" not in text


def test_both_languages_say_the_same():
    one, other = TEXTS.values()
    assert Counter(LINK.findall(one)) - Counter(["README.ko.md"]) == Counter(LINK.findall(other)) - Counter(["README.md"])
    assert re.findall(r"`((?:make|llmwatch)[^`]*)`", one) == re.findall(r"`((?:make|llmwatch)[^`]*)`", other)
    assert len(re.findall("(?m)^## ", one)) == len(re.findall("(?m)^## ", other))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    missing = [path for path in LINK.findall(TEXTS[page]) if "://" not in path and not (ROOT/path).exists()]
    assert not missing, f"{page} points to {missing}"
