"""`make bench` reports, never fails, and keeps what it has measured."""
import json, subprocess, sys
import pytest
from conftest import copy_tree

DECODE = dict(what="decode, batch 1", ours=10.0, peer=15.0, ratio=1.5, spread="1.4-1.6", unit="ms", aim=">= 1.3")


@pytest.fixture
def bench(tmp_path):
    "A course of three benchmarks, of which two stop; a call runs some of them and gives what was printed and the file."
    here = copy_tree(tmp_path, "tests/benchmarks/__init__.py", "tests/benchmarks/__main__.py")
    for topic, code in {"fast": f"def rows(): return [{DECODE}]", "stops": "def rows(): raise RuntimeError('no\\nmodel')",
                        "endless": "def rows(): return [dict(what='x', ratio=float('inf'))]"}.items():
        (here/f"tests/benchmarks/{topic}.py").write_text(code + "\n")
    def run(*names, code=0):
        done = subprocess.run([sys.executable, "-m", "tests.benchmarks", *names], cwd=here, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr, json.loads((here/"data/results/bench.json").read_text()) if code == 0 else {}
    run.here = here
    return run


def test_all_topics_in_one_file_and_a_stop_is_a_row(bench):
    said, kept = bench()
    rows = {r["topic"]: r for r in kept["rows"]}
    assert kept.keys() == {"date", "host", "command", "rows"} and kept["host"]["cores"] >= 1 and kept["host"]["torch"] and kept["command"] == "make bench"
    assert rows["fast"] == {"topic": "fast", "date": kept["date"]} | DECODE
    assert rows["stops"]["what"] == "stopped: no model" and rows["endless"]["what"].startswith("stopped: ") and rows["stops"]["ratio"] == ""
    assert all(r.keys() == rows["fast"].keys() for r in rows.values()) and len(rows) == 3
    assert said.splitlines()[3].split() == "topic what ours peer unit ratio spread aim".split() and "1.4-1.6  >= 1.3" in said


def test_one_topic_anew_leaves_the_others_of_this_machine(bench):
    before = bench("fast", "stops")[1]
    (bench.here/"tests/benchmarks/stops.py").write_text(f"def rows(): return [{DECODE}]*2\n")
    after = bench("stops")[1]
    assert [r["topic"] for r in after["rows"]] == ["fast", "stops", "stops"] and after["rows"][0] == before["rows"][0]
    path = bench.here/"data/results/bench.json"
    path.write_text(path.read_text().replace('"cpu": "', '"cpu": "another '))
    said, kept = bench("stops")
    assert "another machine" in said and [r["topic"] for r in kept["rows"]] == ["stops", "stops"]


def test_a_wrong_name_is_one_sentence(bench):
    assert "no benchmark is called slow; there are endless, fast, stops" in bench("slow", code=2)[0]
