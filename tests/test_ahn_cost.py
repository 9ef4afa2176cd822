"""The price of sinks, window and memory: the paper's printed digits, real tensors, real operations."""
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from llmwatch_course.ahn.cost import BUDGET, LENGTH, MIXERS, attributable, cache_bytes, equal_bytes_tokens, mixer_flops, model_flops, table1
from llmwatch_course.foundations.results import printed
from llmwatch_course.kv_cache.bill import MODELS, kv_bytes

QWEN = ("Qwen2.5-3B", "Qwen2.5-7B", "Qwen2.5-14B")
SMALL = MODELS["SmolLM2-135M"]


def digits(value, text): return f"{value:.{len(text.partition('.')[2])}f}"


def rows(table): return [r for r in printed("ahn_table1") if r["table"] == table]


@pytest.mark.parametrize("model", ["Qwen2.5-3B", "Qwen2.5-14B"])
def test_every_printed_digit(model):
    "With the two gate matrices that the paper's numbers count; with the three of its formula, one cell is off by one in the last digit."
    cells, found = table1(model, gates=2), [r for r in rows("table 1") if r["model"] == model]
    assert len(found) >= 13
    for r in found: assert digits(cells[r["mixer"], r["quantity"]], r["printed"]) == r["printed"], r
    cells = table1(model)
    off = [r for r in found if digits(cells[r["mixer"], r["quantity"]], r["printed"]) != r["printed"]]
    assert [(r["mixer"], r["quantity"]) for r in off] == ([("GDN", "mixer")] if model == "Qwen2.5-14B" else [])


def test_7b_is_right_where_the_shape_decides_and_wrong_in_flops():
    cells = table1("Qwen2.5-7B")
    for r in rows("table 1"):
        if r["model"] == "Qwen2.5-7B":
            same = digits(cells[r["mixer"], r["quantity"]], r["printed"]) == r["printed"]
            assert same == (r["quantity"] in ("cache", "mixer share")), r


@pytest.mark.parametrize("model, full, window, gdn", [("Qwen2.5-3B", (2.503, 3.286, 9.437), (46.57, 59.30, 25.60), (46.74, 59.43, 26.00)),
                                                      ("Qwen2.5-7B", (3.499, 5.238, 14.680), (47.98, 65.25, 25.60), (48.16, 65.37, 25.95)),
                                                      ("Qwen2.5-14B", (8.826, 11.834, 50.332), (49.49, 62.33, 25.60), (49.69, 62.48, 25.85))])
def test_table1(model, full, window, gdn):
    cells = table1(model)
    assert [round(cells["full", what], 3) for what in ("mixer", "model", "cache")] == list(full)
    for mixer, want in (("sinks+window", window), ("GDN", gdn)):
        assert [cells[mixer, f"{what} share"] for what in ("mixer", "model", "cache")] == pytest.approx(want, abs=6e-3)
    assert set(MIXERS) == {mixer for mixer, _ in cells} and all(cells["full", f"{what} share"] == 100 for what in ("mixer", "model", "cache"))


def test_one_training_step_is_two_forward_passes():
    for r in rows("one training step"):
        if r["model"] == "Qwen2.5-7B": continue
        part = MIXERS[r["mixer"]] and MIXERS[r["mixer"]] | {"budget": 8_192}
        assert digits(2 * 128 * model_flops(MODELS[r["model"]], 24_000, gates=2, **part) / 1e17, r["printed"]) == r["printed"]


def test_honest_account():
    assert [round(table1(m, update=True)["GDN", "mixer share"], 2) for m in QWEN] == [46.88, 48.30, 49.83]
    assert [round(100 * cache_bytes(MODELS[m], LENGTH, BUDGET, memory=True, gates=True) / cache_bytes(MODELS[m], LENGTH), 2) for m in QWEN] == [27.60, 27.35, 26.85]


def test_headline():
    "About 40 % of FLOPs and 74 % of the cache; the window alone saves more of both."
    cells = table1("Qwen2.5-3B")
    assert 100 - cells["GDN", "model share"] == pytest.approx(40.57, abs=0.01) and 100 - cells["GDN", "cache share"] == pytest.approx(74.0, abs=0.01)
    for model in QWEN:
        cells = table1(model)
        for what in ("mixer", "model", "cache"): assert cells["sinks+window", f"{what} share"] < cells["GDN", f"{what} share"] < 100


@pytest.mark.parametrize("budget", [1, 7, 40, 200, None])
def test_attention_is_the_keys_that_are_seen(budget):
    "Counted query by query; half squares miss half of the diagonal."
    L, R = 100, budget or 100
    seen = sum(min(i + 1, R) for i in range(L))
    pairs = 4 * SMALL.head_dim * SMALL.heads * SMALL.layers
    rest = SMALL.layers * 4 * L * SMALL.channels * SMALL.head_dim * (SMALL.heads + SMALL.kv_heads)
    assert mixer_flops(SMALL, L, budget) - rest == pairs * (seen - min(L, R) / 2)


@pytest.mark.parametrize("gates", [2, 3])
def test_memory_is_the_products_of_one_step(gates):
    h, d, c = SMALL.heads, SMALL.head_dim, SMALL.channels
    S, out, k = torch.zeros(h, d, d), torch.zeros(h, d, d), torch.zeros(h, 1, d)
    with FlopCounterMode(display=False) as written: torch.zeros(1, c) @ torch.zeros(c, gates * h), (k @ S) @ out
    with FlopCounterMode(display=False) as left_out: k.mT @ (k - k @ S)
    cost_of = lambda **how: mixer_flops(SMALL, 11, 10, gates=gates, **how) - mixer_flops(SMALL, 11, 10)
    assert cost_of(memory=True) == SMALL.layers * written.get_total_flops()
    assert cost_of(memory=True, update=True) == SMALL.layers * (written.get_total_flops() + left_out.get_total_flops())
    assert mixer_flops(SMALL, 10, 10, memory=True, update=True) == mixer_flops(SMALL, 10)


def test_cache_bytes():
    for shape in MODELS.values():
        assert cache_bytes(shape, 1000) == kv_bytes(shape, 1000, torch.float32) == cache_bytes(shape, 1000, 1000) == cache_bytes(shape, 1000, 5000)
        assert cache_bytes(shape, 1000, 100, dtype=torch.bfloat16) == kv_bytes(shape, 100)
        state = cache_bytes(shape, 1000, 100, memory=True) - cache_bytes(shape, 1000, 100)
        assert state == 4 * shape.layers * shape.heads * shape.head_dim**2
        assert cache_bytes(shape, 10**9, 100, memory=True, gates=True) == cache_bytes(shape, 100, 100, memory=True, gates=True), "constant past the budget"
    assert cache_bytes(SMALL, 1000, 100, gates=True) - cache_bytes(SMALL, 1000, 100) == 30 * 2 * 100 * 9 * 4


def test_equal_bytes():
    assert [equal_bytes_tokens(MODELS[m]) for m in ("SmolLM2-135M", *QWEN)] == [96, 512, 448, 320]
    for shape in MODELS.values():
        for pending in (0, 1, 100, BUDGET):
            for dtype in (torch.float32, torch.bfloat16):
                n, gates = equal_bytes_tokens(shape, pending, dtype), 4 * shape.layers * shape.heads * 2 * pending
                price = 4 * shape.layers * shape.heads * shape.head_dim**2 + gates
                assert kv_bytes(shape, n, dtype) >= price > kv_bytes(shape, n - 1, dtype), "enough, and not one token more"


def test_attributable():
    first = attributable()
    assert [r["model"] for r in first] == list(QWEN)
    assert [(r["full"], r["window"], r["ahn"]) for r in first] == [(4.41, 4.59, 5.88), (3.62, 5.34, 6.54), (4.99, 5.69, 6.51)]
    assert [r["memory_points"] for r in first] == pytest.approx([1.29, 1.20, 0.82]) and [r["window_share"] for r in first] == pytest.approx([0.1224, 0.5890, 0.4605], abs=1e-4)
    assert attributable("InfiniteBench avg", "DN")[1]["window_share"] < 0, "where the window alone loses, its share is negative"


def test_the_printed_numbers_hold_together():
    "Means are means, shares are shares, as far as the printed digits can say."
    score = {(r["model"], r["mixer"], r["benchmark"]): float(r["printed"]) for r in printed("ahn_table2")}
    for (model, mixer, benchmark), value in score.items():
        if benchmark == "En.QA": assert score[model, mixer, "InfiniteBench avg"] == pytest.approx((value + score[model, mixer, "Zh.QA"]) / 2, abs=0.0101)
    cell = {(r["model"], r["mixer"], r["quantity"]): float(r["printed"]) for r in rows("table 1")}
    for (model, mixer, what), value in cell.items():
        if what.endswith(" share"):
            part, whole = cell[model, mixer, what.removesuffix(" share")], cell[model, "full", what.removesuffix(" share")]
            assert 100 * (part - 0.006) / (whole + 0.006) - 0.06 < value < 100 * (part + 0.006) / (whole - 0.006) + 0.06


def test_bad_requests_are_one_sentence(tmp_path, monkeypatch):
    for call in (lambda: table1("Qwen2.5-3b"), lambda: attributable("LV-Eval"), lambda: attributable(memory="gdn")):
        with pytest.raises(ValueError, match="did you mean|one of|known") as e: call()
        assert "\n" not in str(e.value)
    monkeypatch.setenv("LLMWATCH_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="LLMWATCH_DATA_DIR"): printed("ahn_table1")
