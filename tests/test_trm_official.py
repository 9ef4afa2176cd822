"""Checkpoints by the authors' names: the same logits as an independent computation, and clear sentences for files that don't fit."""
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from llmwatch_course.trm.hrm import HRM
from llmwatch_course.trm.network import Size
from llmwatch_course.trm.official import from_official, puzzle_rows, read, size_of
from llmwatch_course.trm.recursion import TRM
from tests.official_trm import Official, random_state, shapes

B, CELLS, VOCAB = 3, 10, 7


def drawn(seed=0, levels=("L",), dtype=torch.float32, **options):
    settings = dict(width=16, prefix=2, layers=2, hidden=24, token_hidden=12) | options
    names = shapes(CELLS, VOCAB, levels=levels, **settings)
    return random_state(names, torch.Generator().manual_seed(seed), dtype)


def compare(state, kind, n, cycles, prefix, heads=2, rows=None):
    "Two supervision steps, ours and theirs."
    model = from_official(state, CELLS, n, cycles, heads, prefix).double()      # 36 calls of a random net amplify any rounding
    assert isinstance(model, kind)
    arrays = {name.split("inner.")[-1]: a.double() for name, a in state.items()}
    theirs, tokens = Official(arrays, CELLS, heads, torch.float64), torch.randint(0, VOCAB, (B, CELLS), generator=torch.Generator().manual_seed(1))
    used = arrays["puzzle_emb.weights"][torch.zeros(B, dtype=torch.int64) if rows is None else rows]
    step = theirs.hrm if kind is HRM else theirs.trm
    y, z = theirs.start(B, prefix)
    mine = model.start(B)
    with torch.no_grad():
        for _ in range(2):
            y, z, logits, q = step(tokens, y, z, used, n, cycles, prefix)
            out = model(tokens, *mine, rows=None if rows is None else puzzle_rows(state)[rows].double())
            mine = out.y, out.z
            assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)
            assert_close(out.q, q, rtol=1e-4, atol=1e-4)
    assert_close(out.halt, q[:, 0] if kind is TRM else q[:, 0] - q[:, 1], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
@pytest.mark.parametrize("n, cycles", [(1, 1), (3, 2), (6, 3)])
def test_trm(mixer, n, cycles): compare(drawn(mixer=mixer), TRM, n, cycles, 2)


@pytest.mark.parametrize("layers", [1, 4])
def test_hrm(layers): compare(drawn(levels=("L", "H"), mixer="attention", prefix=1, layers=layers), HRM, 2, 2, 1)


def test_wrappers_and_half_precision():
    state = {f"_orig_mod.model.inner.{name}": a for name, a in drawn(dtype=torch.bfloat16).items()}
    compare(state, TRM, 2, 2, 2)


def test_a_table_of_rows_stays_outside():
    state = drawn(rows=9, mixer="attention")
    model = from_official(state, CELLS, 2, 2, 2, 2)
    assert model.embedding.row is None and puzzle_rows(state).shape == (9, 16)
    compare(state, TRM, 2, 2, 2, rows=torch.tensor([4, 0, 8]))


def test_short_rows_are_filled_and_long_ones_refused():
    state = drawn(table=10)
    assert from_official(state, CELLS).embedding.row[10:].abs().max() == 0
    compare(state, TRM, 1, 1, 2)
    with pytest.raises(ValueError, match="several prefix tokens"): from_official(drawn(table=20), CELLS)


def test_paper_sizes_by_shape():
    "The published shapes give the published sizes, without memory for the numbers."
    with torch.device("meta"):
        names = {name: torch.empty(shape) for name, shape in shapes(81, 11, 512, 16, 2).items()}
        size = size_of(names, 81)
    official = Size.official("sudoku")
    assert (size.tokens, size.hidden, size.token_hidden, size.layers, size.heads, size.verdicts) == (
        official.tokens, official.hidden, official.token_hidden, official.layers, official.heads, official.verdicts)


def test_files(tmp_path):
    state = {f"_orig_mod.model.inner.{name}": a for name, a in drawn().items()}
    torch.save(state, tmp_path / "step_10")
    save_file(state, tmp_path / "trm.safetensors")
    for name in ("step_10", "trm.safetensors"):
        for ours, a in from_official(read(tmp_path / name), CELLS).state_dict().items(): assert_close(a, from_official(state, CELLS).state_dict()[ours], rtol=0, atol=0)


@pytest.mark.parametrize("change, sentence", [
    (lambda s: s.pop("lm_head.weight"), "lacks 'lm_head.weight'"), (lambda s: s.pop("puzzle_emb.weights"), "lacks 'puzzle_emb.weights'"),
    (lambda s: s.pop("H_init"), "lacks 'H_init'"), (lambda s: s.pop("L_level.layers.1.mlp.down_proj.weight"), "lacks 'L_level.layers.1.mlp.down_proj.weight'"), (lambda s: s.pop("L_level.layers.1.mlp_t.down_proj.weight"), "lacks 'L_level.layers.1.mlp_t.down_proj.weight'"),
    (lambda s: s.update({"inner.embed_pos.embedding_weight": torch.zeros(12, 16)}), "'embed_pos.embedding_weight' has no place"),
    (lambda s: s.update({"lm_head.weight": torch.zeros(7, 8)}), r"'lm_head.weight' has shape \(7, 8\) where \(7, 16\)"),
])
def test_files_that_do_not_fit(change, sentence):
    state = drawn()
    change(state)
    with pytest.raises(ValueError, match=sentence): from_official(state, CELLS)


def test_wrong_number_of_cells():
    with pytest.raises(ValueError, match="12 tokens"): from_official(drawn(), 81)


def test_what_need_not_be_there_is_skipped():
    state = drawn() | {"inner.rotary_emb.cos_cached": torch.zeros(3), "puzzle_emb.local_weights": torch.zeros(2, 16), "puzzle_emb.local_ids": torch.zeros(2)}
    from_official(state, CELLS)
