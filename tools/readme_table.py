"""Write the README's table of lessons and the first page's list of them. With --check, only say whether they are up to date."""
import json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from llmwatch_course.cli import cells, lessons  # noqa: E402
from llmwatch_course.foundations.results import ledger  # noqa: E402

BEGIN, END = "<!-- lessons: made by tools/readme_table.py -->", "<!-- end of lessons -->"
VERDICTS = ("reproduced", "not reproduced", "derived", "mechanism shown", "open")


def heading(path):
    "The title of a notebook."
    return next((m[1].strip() for c in cells(path, "markdown") if (m := re.match(r"# (.+)", c["source"]))), path.stem)


def verdicts(rows):
    "One line for a topic's claims: the verdicts, most settled first, and which claims they are."
    of = {v: list(dict.fromkeys(r["claim"] for r in rows if r["verdict"] == v and r["scale"] == "small")) for v in VERDICTS}
    return "; ".join(f"{v}: {', '.join(names)}" for v, names in of.items() if names)


def table(root=ROOT):
    "The table as markdown, one row a chapter."
    lines = ["| chapter | lessons | read | exercises | claims at `small`, and their verdicts |", "|---|---|---|---|---|"]
    rows = ledger()
    for o in lessons(root):
        links = " · ".join(f"[{heading(p)}]({p.relative_to(root).as_posix()})" for p in o.notebooks)
        mine = [r for r in rows if r["topic"] == o.topic]
        lines.append(f"| {o.number} {o.title} | {links} | {o.minutes} min | {f'{o.exercise_minutes} min' if o.exercises else ''} | {verdicts(mine)} |")
    return "\n".join(lines)


def readme(old):
    "The README with the table of today between its markers."
    before, _, rest = old.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def first_page(old, root=ROOT):
    "The first notebook with the lessons of today, as links; what is reference comes last."
    def links(paths): return " · ".join(f"[{heading(p)}]({p.relative_to(root/'nbs').as_posix()})" for p in paths)
    parts = ["## Lessons"]
    for o in lessons(root):
        aside = [p for p in sorted((root/"nbs"/o.name).glob("[0-8]*.ipynb")) if p not in o.notebooks]
        parts.append(f"**{o.number} {o.title}**, {o.minutes} minutes: {links(o.notebooks)}" + (f"  \nReference: {links(aside)}" if aside else ""))
    nb = json.loads(old)
    cell = next(c for c in nb["cells"] if "".join(c["source"]).startswith("## Lessons"))
    cell["source"] = "\n\n".join(parts).splitlines(True)
    return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(check):
    "Write each file that is not up to date, or with `check` name it and stop."
    for path, make in ((ROOT/"README.md", readme), (ROOT/"nbs/index.ipynb", first_page)):
        old = path.read_text()
        new = make(old)
        if check and new != old: sys.exit(f"{path.name} has an old list of lessons: make export writes it anew")
        if new != old: path.write_text(new)


if __name__ == "__main__": main("--check" in sys.argv)
