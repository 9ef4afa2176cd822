"""The README's figure shows the results that are recorded."""
import json, sys
import pytest
from conftest import ROOT, tool

sys.path.insert(0, str(ROOT/"tools"))
import overview  # noqa: E402


@pytest.fixture
def recorded(tmp_path):
    "A folder with results of three rows."
    speed = [{"tokens": n, "again_ms": n/2, "cached_ms": 20.} for n in (400, 450, 500)]
    forget = [{"distance": n, "full": .1, "window + sinks": .1 + n/100, "bare window": .2 + n/100} for n in (64, 256, 448)]
    for claim, rows in (("kv-speed", speed), ("kv-forget", forget)): (tmp_path/f"{claim}.json").write_text(json.dumps({"table": rows}))
    return tmp_path


def test_the_figure_notices_new_results(recorded):
    picture = recorded/"overview.png"
    assert not overview.fresh(picture, recorded)
    overview.draw(picture, recorded)
    assert overview.fresh(picture, recorded)
    path = recorded/"kv-speed.json"
    path.write_text(path.read_text().replace("20.0", "21.0"))
    assert not overview.fresh(picture, recorded)


def test_a_missing_result_is_one_sentence(recorded):
    (recorded/"kv-forget.json").unlink()
    with pytest.raises(SystemExit, match="no result of kv-forget in .*llmwatch run kv_cache"): overview.draw(recorded/"overview.png", recorded)
    assert not (recorded/"overview.png").exists()


def test_the_figure_is_of_today():
    tool(sys.executable, "tools/overview.py", "--check")
    assert "](docs/_static/overview.png)" in (ROOT/"README.md").read_text()
