"""Write what is generated in both READMEs and on the first page: the gallery of chapters, the verdicts, the list of lessons. With --check, only say whether they are up to date."""
import json, os, re, sys, tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from llmwatch_course.cli import cells, lessons  # noqa: E402
from llmwatch_course.foundations.results import ledger, load_claims, read  # noqa: E402

ABOUT = tomllib.loads((ROOT/"tools/chapters.toml").read_text(encoding="utf-8"))
VERDICTS = {"reproduced": "재현됨", "not reproduced": "재현되지 않음", "derived": "유도됨", "mechanism shown": "원리 확인", "open": "미정"}
SAY = {"en": {"read": "{} min", "exercises": "exercises {} min", "none": "no claims of its own", "reference": "Reference",
              "missed": "| the newsletter says | what was measured | needed | came out | claim |", "benched": "| chapter | what | ours | peer | unit | ratio | aim |",
              "bench": "Ours beside other implementations, one comparison a chapter, measured {}; `make bench` prints all:"},
       "ko": {"read": "{}분", "exercises": "연습 {}분", "none": "따로 잴 주장 없음", "reference": "참고",
              "missed": "| 뉴스레터의 말 | 무엇을 쟀나 | 필요한 값 | 나온 값 | 주장 |", "benched": "| 장 | 무엇 | 우리 | 상대 | 단위 | 비율 | 목표 |",
              "bench": "다른 구현과 나란히, 장마다 하나씩, {}에 측정. 전부는 `make bench`로:"}}


def heading(path):
    "The title of a notebook."
    return next((m[1].strip() for c in cells(path, "markdown") if (m := re.match(r"# (.+)", c["source"]))), path.stem)


def standing():
    "The row of the ledger that counts for each claim: at `small`, or at the first scale it can be measured."
    rows = {}
    for row in ledger(): rows.setdefault(row["claim"], row)
    return rows


def counts(topic, language):
    "A topic's verdicts, counted."
    found = Counter(row["verdict"] for row in standing().values() if row["topic"] == topic)
    parts = [f"{found[v]} {v}" if language == "en" else f"{korean} {found[v]}" for v, korean in VERDICTS.items() if found[v]]
    return " · ".join(part.replace(" ", "\u00a0") for part in parts) or SAY[language]["none"]


def title(lesson, language): return lesson.title if language == "en" else ABOUT[lesson.name]["korean"]


def link(text, path, page):
    "A link from a page in the folder `page`."
    return f"[{text}]({Path(os.path.relpath(path, page)).as_posix()})"


def card(o, page, language):
    "A chapter in three cells: its picture, what it builds, what it costs and what came out."
    about, say, tail = ABOUT[o.name], SAY[language], "" if language == "en" else "_korean"
    exercises = [say["exercises"].format(o.exercise_minutes)] if o.exercises else []
    return ("!" + link(about["picture" + tail], ROOT/f"docs/_static/chapter-{o.number}.png", page),
            f"**{link(f'{o.number} {title(o, language)}', o.notebooks[0], page)}**<br>{about['builds' + tail]}",
            f"{' · '.join([say['read'].format(o.minutes), *exercises])}<br>{counts(o.topic, language)}")


def gallery(page, language="en"):
    "All chapters, three in a table."
    cards, tables = [card(o, page, language) for o in lessons(ROOT)], []
    for i in range(0, len(cards), 3):
        first, *others = [f"| {' | '.join(row)} |" for row in zip(*cards[i:i + 3])]
        tables.append("\n".join([first, "|:--" * len(cards[i:i + 3]) + "|", *others]))
    return "\n\n".join(tables)


def listing(page, language="en"):
    "Every lesson as a link, a paragraph a chapter; what is reference comes last."
    def links(paths): return " · ".join(link(heading(p), p, page) for p in paths)
    parts = []
    for o in lessons(ROOT):
        aside = [p for p in sorted((ROOT/"nbs"/o.name).glob("[0-8]*.ipynb")) if p not in o.notebooks]
        parts.append(f"**{o.number} {title(o, language)}**, {SAY[language]['read'].format(o.minutes)}: {links(o.notebooks)}" + (f"  \n{SAY[language]['reference']}: {links(aside)}" if aside else ""))
    return "\n\n".join(parts)


def shortfall(claim, row):
    "How far a claim's number is from what was needed, as a share of that."
    needed = float(claim.accept.split()[-1])
    return abs(read(claim.id, row["scale"])["value"] - needed) / max(abs(needed), 1e-9)


def missed(language="en"):
    "Three claims that did not hold up: of three chapters, those furthest from what was needed."
    rows, claims, folder = standing(), load_claims(), {o.topic: o.name for o in lessons(ROOT)}
    worst = sorted((i for i, row in rows.items() if row["verdict"] == "not reproduced"), key=lambda i: -shortfall(claims[i], rows[i]))
    of_chapter = list({rows[i]["topic"]: i for i in reversed(worst)}.values())[::-1]
    lines = [SAY[language]["missed"], "|---" * 5 + "|"]
    for i in sorted(of_chapter, key=worst.index)[:3]:
        about, record = ABOUT["claims"][i], read(i, rows[i]["scale"])
        says, asked = (claims[i].newsletter, about["asked"]) if language == "en" else (about["says_korean"], about["asked_korean"])
        came = f"{record['value']:.2g} ± {record['spread']:.1g}".replace("-", "−")
        lines.append(f"| {says} | {asked} | {claims[i].accept.replace('>=', '≥').replace('<=', '≤')} | {came} | [{i}](nbs/{folder[claims[i].topic]}/80_measure.ipynb) |")
    return "\n".join(lines)


def bench(language="en", path=ROOT/"data/results/bench.json"):
    "What `make bench` wrote last: of each chapter the first comparison with an aim; nothing when it has not been run."
    if not path.is_file(): return ""
    found, say, first = json.loads(path.read_text(encoding="utf-8")), SAY[language], {}
    for row in found["rows"]:
        if row["aim"] and isinstance(row["ratio"], int | float): first.setdefault(row["topic"], row)
    lines = [f"| {title(o, language)} | {r['what']} | {r['ours']:,} | {r['peer']:,} | {r['unit']} | {r['ratio']:,.3g} | {r['aim']} |" for o in lessons(ROOT) if (r := first.get(o.topic))]
    return "\n".join([say["bench"].format(found["date"]), "", say["benched"], "|---" * 7 + "|", *lines])


def filled(old, parts):
    "The text with each part of today between its two markers."
    for name, text in parts.items():
        begin, end = f"<!-- {name}: made by tools/readme_table.py -->", f"<!-- end of {name} -->"
        if old.count(begin) != 1 or old.count(end) != 1: sys.exit(f"the marks of {name} must stand once: {begin} ... {end}")
        before, rest = old.split(begin)
        old = f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    return old


def readme(old, language="en"):
    "A README as it should be today."
    return filled(old, {"gallery": gallery(ROOT, language), "missed": missed(language), "bench": bench(language), "lessons": listing(ROOT, language)})


def first_page(old):
    "The first notebook as it should be today."
    nb = json.loads(old)
    for start, text in (("## What you will build", gallery(ROOT/"nbs")), ("## Lessons", listing(ROOT/"nbs"))):
        cell = next(c for c in nb["cells"] if "".join(c["source"]).startswith(start))
        cell["source"] = f"{start}\n\n{text}".splitlines(True)
    return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(check):
    "Write each file that is not up to date, or with `check` name it and stop."
    for path, make in ((ROOT/"README.md", readme), (ROOT/"README.ko.md", lambda old: readme(old, "ko")), (ROOT/"nbs/index.ipynb", first_page)):
        old = path.read_text(encoding="utf-8")
        new = make(old)
        if check and new != old: sys.exit(f"{path.name} is not of today: make export writes it anew")
        if new != old: path.write_text(new, encoding="utf-8")


if __name__ == "__main__": main("--check" in sys.argv)
