"""The paper's tables re-read: totals of rates, what is counted as memory, and what follows from the cells."""
from statistics import harmonic_mean
import pytest
from llmwatch_course.foundations.results import printed
from llmwatch_course.memory_forcing.tables import DEPTH_BYTES, FRAME_BYTES, OURS, PIXELS, RIVAL, ablation, by_range, main_table, mf_table, savings

COLUMNS = {"main": {"table", "method", "suite", "metric"}, "retrieval": {"table", "method", "frames", "quantity"}, "ablation": {"table", "training", "retrieval", "metric"},
           "worldmem": {"source", "quantity"}}
CELLS = {"main": 48, "retrieval": 20, "ablation": 16, "worldmem": 8}


@pytest.mark.parametrize("name", COLUMNS)
def test_tables_are_whole(name):
    rows = printed(f"memory_forcing_{name}")
    assert len(rows) == CELLS[name] and all(set(row) == COLUMNS[name] | {"printed"} and all(row.values()) and float(row["printed"]) > 0 for row in rows)
    assert len({tuple(v for k, v in row.items() if k != "printed") for row in rows}) == len(rows)


def test_the_totals():
    claim = mf_table()
    assert claim["mean_of_rates"] == pytest.approx(7.31, abs=.005) == pytest.approx(by_range(OURS)[4] / by_range(RIVAL)[4], abs=.005)
    assert [claim["frames_per_second"][m] for m in (RIVAL, OURS)] == pytest.approx([2.57, 28.29], abs=.005)
    seconds = [sum(1000 / r for r in by_range(m)[:4]) for m in (RIVAL, OURS)]
    assert claim["total_time"] == pytest.approx(seconds[0] / seconds[1]) == pytest.approx(11.0, abs=.05)
    assert claim["by_range"] == sorted(claim["by_range"]) and claim["by_range"][3] == pytest.approx(25.74, abs=.01) and claim["newsletter"] == (7.3, 98.2)
    assert harmonic_mean(by_range(RIVAL)[:4]) < by_range(RIVAL)[4]


def test_what_is_stored():
    assert sum(by_range(OURS, "frames stored")[:4]) == pytest.approx(by_range(OURS, "frames stored")[4]) and sum(by_range(RIVAL, "frames stored")[:4]) == 4000
    assert mf_table()["frames_saved"] == pytest.approx(.982, abs=.0005)
    rows = list(savings().values())
    for kept in FRAME_BYTES: assert [row[kept] for row in rows] == sorted((row[kept] for row in rows), reverse=True)
    assert rows[0]["latents"] == rows[0]["pixels"] == mf_table()["frames_saved"]
    assert rows[1]["latents"] == pytest.approx(1 - 72.65 * (10752 + DEPTH_BYTES) / (4000 * 10752)) and rows[2]["latents"] < 0 < rows[2]["pixels"]
    assert PIXELS == 86016 and FRAME_BYTES["latents"] == 10752


def test_main_and_ablation():
    main, parts = main_table(), ablation()
    assert set(main) == {"long-term memory", "generalisation", "generation"} and all(len(row) == 4 and all(len(cell) == 4 for cell in row.values()) for row in main.values())
    assert main["generation"]["Oasis"]["FVD"] < main["generation"][RIVAL]["FVD"] < main["generation"]["NFD"]["FVD"]
    full, alone, poses = (parts[k] for k in (("hybrid + chained", "points"), ("hybrid", "points"), ("hybrid + chained", "poses")))
    assert full["FVD"] - alone["FVD"] == pytest.approx(-64.5) and full["PSNR"] - alone["PSNR"] == pytest.approx(1.93) == pytest.approx(full["PSNR"] - poses["PSNR"])
    assert full["FVD"] - poses["FVD"] == pytest.approx(-60) and alone["FVD"] - parts["fine-tuning", "points"]["FVD"] == pytest.approx(-135.7)
