"""Measure one topic again with a seed that no result has used, and name the recorded numbers that do not bear it out."""
import sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from llmwatch_course.foundations.results import Table, holds, load_claims, read, run_topic  # noqa: E402
from llmwatch_course.foundations.settings import SCALES, nearest  # noqa: E402

ROUNDING = 1e-9


def allowed(claim, record):
    "The lowest and the highest value that agree with the record, and what lies beyond them; None where one seed has no spread."
    mean, spread = record["value"], record["spread"]
    if claim.timing: return mean/2, mean*2, "is more than a factor of 2 away"
    if claim.kind == "derived" and not spread: return *sorted((mean*(1 - ROUNDING), mean*(1 + ROUNDING))), "is not exactly the recorded value"
    if spread is None: return None
    room = max(3*spread, ROUNDING)
    return mean - room, mean + room, "leaves mean ± 3 spreads"


def compared(claim, record, fresh):
    "One row: what is recorded, what came out, and whether they agree."
    row = {"claim": claim.id, "recorded": f"{record['value']:.4g}" + (f" ± {record['spread']:.2g}" if record["spread"] else ""), "fresh": fresh, "needed": claim.accept or "–"}
    if fresh is None: return row | {"outcome": "was not measured"}
    if claim.accept: row["needed"] += ": met" if holds(claim.accept, fresh) else ": not met"
    room = allowed(claim, record)
    return row | {"outcome": "one seed is no spread" if room is None else "ok" if room[0] <= fresh <= room[1] else room[2]}


def verify(topic, scale, seed, records):
    "Run the topic once, in a folder of its own; a row for each claim that has a record."
    with tempfile.TemporaryDirectory() as folder:
        fresh = {r["claim"]: r["value"] for r in run_topic(topic, scale, [seed], "cpu" if scale == "small" else "cuda", folder)}
    return [compared(claim, records[claim.id], fresh.get(claim.id)) for claim in load_claims().values() if claim.id in records]


def asked(words, claims):
    "Topic, records by scale and seed that were asked for; a `ValueError` with one sentence."
    topics = sorted({c.topic for c in claims.values()})
    if not words or words[0] not in topics: raise ValueError(f"which topic? {nearest(words[0] if words else '', topics)}; for example, make verify TOPIC={topics[0]}")
    found = {s: {c.id: r for c in claims.values() if c.topic == words[0] and (r := read(c.id, s))} for s in SCALES[1:]}
    found = {s: records for s, records in found.items() if records}
    used = {seed for records in found.values() for r in records.values() for seed in r["seeds"]}
    if not found: raise ValueError(f"nothing is recorded for {words[0]}: llmwatch run {words[0]} --seeds 3 --out data/results/small")
    free = [str(seed) for seed in range(100) if seed not in used]
    if words[1:] and words[1] not in free: raise ValueError(f"SEED={words[1]} is not a fresh seed: take one of 0 to 99 that is not recorded, such as {free[0]}")
    return words[0], found, int(words[1] if words[1:] else free[0])


def main(words):
    "Every recorded scale that this machine can run; the exit status is 1 if a number is not borne out, 2 for a wrong request."
    try: topic, found, seed = asked(words, load_claims())
    except ValueError as e: print(e, file=sys.stderr); return 2
    import torch
    away = []
    for scale, records in found.items():
        if scale != "small" and not torch.cuda.is_available(): print(f"scale {scale} is left out: it needs a GPU"); continue
        rows = verify(topic, scale, seed, records)
        print(f"\n{topic}, scale {scale}, seed {seed}\n{Table(rows)}\n")
        away += [f"{r['claim']} ({scale})" for r in rows if r["outcome"] not in ("ok", "one seed is no spread")]
    print(f"not borne out: {', '.join(away)}. With three seeds even a faithful one leaves mean ± 3 spreads about one time in eight." if away else "all recorded numbers are borne out")
    return int(bool(away))


if __name__ == "__main__": sys.exit(main([w for w in sys.argv[1:] if w]))
