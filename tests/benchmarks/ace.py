"Chapter 5: deltas beside re-parsing the whole text, the price of a journal, recovery, retrieval. About a minute on two cores."
import re, statistics, tempfile
from pathlib import Path
from llmwatch_course.ace.deltas import Delta, Op, apply
from llmwatch_course.ace.journal import Journal, recover
from llmwatch_course.ace.playbook import Playbook
from llmwatch_course.ace.retrieval import top
from llmwatch_course.ace.similarity import hashed
from tests.benchmarks import seconds

N, SAMPLES = 10_000, 40
LINE = re.compile(r"\[([^\]]+)\]\s*helpful=(\d+)\s*harmful=(\d+)\s*::\s*(.*)")


def rows() -> list[dict]:
    return [*merging(), recovery(), retrieving()]


def row(what: str, ours: list[float], peer: list[float] | None, unit: str, aim: str) -> dict:
    "Medians of both; median and range of the ratio peer / ours."
    ratios = sorted(b / a for a, b in zip(ours, peer)) if peer else []
    return dict(what=what, ours=round(statistics.median(ours), 3), peer=round(statistics.median(peer), 3) if peer else "", unit=unit, aim=aim,
                ratio=round(statistics.median(ratios), 1) if ratios else "", spread=f"{ratios[0]:.1f}-{ratios[-1]:.1f}" if ratios else "")


def content(i: int) -> str: return f"To handle case {i} of kind {i % 97}, call `tool_{i}` before the form is sent."


def stream() -> list[Delta]:
    "One bullet more, and a vote for an older one: a step of the paper."
    found, ids, book = [], [], Playbook()
    for i in range(N):
        vote = [Op("TAG", id=ids[i * 7919 % i], helpful=1)] if i else []
        found.append(Delta([Op("ADD", section="apis", content=content(i)), *vote], f"episode {i}"))
        book, report = apply(book, found[-1])
        ids.append(report.touched[0])
    return found


# ---- the official scheme, written anew: the playbook is a text, each step takes it apart and joins it again

def tagged(text: str, id: str) -> str:
    "The text with one more vote for this bullet."
    out = []
    for line in text.strip().split("\n"):
        m = LINE.match(line.strip())
        out.append(f"[{m[1]}] helpful={int(m[2]) + 1} harmful={m[3]} :: {m[4]}" if m and m[1] == id else line)
    return "\n".join(out)


def added(text: str, content: str, number: int) -> str:
    "The text with one more line at the end of its section."
    out, section, new = [], "", f"[api-{number:05d}] helpful=0 harmful=0 :: {content}"
    for line in text.strip().split("\n"):
        if line.startswith("##"):
            if section == "## apis": out.append(new)
            section = line
        out.append(line)
    return "\n".join([*out, new] if section == "## apis" else out)


def official(held: int) -> float:
    "Seconds of one step on a playbook of so many bullets."
    text = "## apis\n" + "\n".join(f"[api-{i:05d}] helpful=0 harmful=0 :: {content(i)}" for i in range(held)) + "\n## others"
    return seconds(lambda: added(tagged(text, f"api-{held * 7919 % max(1, held):05d}"), content(held), held))


def merging():
    "All deltas in memory and with a journal; the official scheme on playbooks of 40 sizes from 0 to 10,000, its mean step times 10,000."
    deltas, both, kept = stream(), [], []
    for _ in range(4):
        sampled = statistics.fmean(official(round((k + 0.5) * N / SAMPLES)) for k in range(SAMPLES)) * N
        both.append((seconds(lambda: in_memory(deltas)), sampled))
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder: kept.append(seconds(lambda: on_disk(deltas, Path(folder))))  # noqa: B023
    mine, theirs = map(list, zip(*both[1:]))
    yield row(f"{N:,} deltas (a bullet and a vote) in memory, beside re-parsing whole text", mine, theirs, "s", ">= 20")
    yield row("the same with a journal and an fsync for each delta", kept, theirs[:2], "s", "")


def in_memory(deltas):
    book = Playbook()
    for delta in deltas: book, _ = apply(book, delta)


def on_disk(deltas, folder: Path):
    journal = Journal(folder / "playbook.jsonl")
    journal.open()
    for delta in deltas: journal.append(delta)
    journal.close()


def recovery():
    "A journal without snapshots, replayed from its first line."
    with tempfile.TemporaryDirectory() as folder:
        on_disk(stream(), Path(folder))
        return row(f"recovery of a journal of {N:,} deltas", [seconds(lambda: recover(Path(folder) / "playbook.jsonl")) for _ in range(3)], None, "s", "<= 2 s")


def retrieving(asked=50):
    "The three bullets nearest to a text, among 10,000; the matrix of embeddings is there, the text is new each time."
    book = Playbook()
    for i in range(0, N, 100): book, _ = apply(book, Delta([Op("ADD", section="apis", content=content(k)) for k in range(i, i + 100)], f"batch {i}"))
    top(book, "to warm up", 3, hashed)
    return row("top 3 of 10,000 bullets for a new text", [1000 * seconds(lambda: top(book, f"how do I handle case {i}", 3, hashed)) for i in range(asked)], None, "ms", "<= 5 ms")  # noqa: B023
