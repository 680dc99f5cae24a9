import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.text_tokenizer import (
    CHAT_TOKENS,
    SPEECH_TOKENS,
    THINK_TOKENS,
    TextTokenizer,
    train_text_tokenizer,
)

TEXTS = ["turn the light on", "turn the radio off", "three five nine zero", "please open the door", "打开灯"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(TEXTS, vocab_size=320)


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_survives(tokenizer, text):
    import unicodedata

    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_merges_special_tokens_and_digits(tokenizer):
    assert len(tokenizer.encode("turn the light")) <= 4
    assert len(tokenizer.encode("1234")) == 4  # one token per digit, as Qwen2
    for token in CHAT_TOKENS + SPEECH_TOKENS + THINK_TOKENS:
        assert tokenizer.encode(f"on{token}1")[-2:-1] == [tokenizer.token_id(token)]
        assert tokenizer.encode(token) == [tokenizer.token_id(token)]
    assert tokenizer.special.empty == tokenizer.token_id("<|empty|>")
    assert tokenizer.vocab_size <= 320
    with pytest.raises(KeyError, match="<|nothing|>"):
        tokenizer.token_id("<|nothing|>")


def test_training_and_saving_are_deterministic(tokenizer, tmp_path):
    again = train_text_tokenizer(iter(TEXTS), vocab_size=320)
    tokenizer.save(tmp_path / "a")
    again.save(tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = TextTokenizer.load(tmp_path / "a")
    assert loaded.special == tokenizer.special
    assert loaded.encode("<|im_start|>open the radio") == tokenizer.encode("<|im_start|>open the radio")


def test_transformers_reads_the_folder(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("<|im_start|>user\nopen the door<|im_end|>\n", "<think>\n\n</think>\n <|sostm|> 打开 42"):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert theirs.eos_token_id == theirs.pad_token_id == tokenizer.special.end_of_text
    assert len(theirs) == tokenizer.vocab_size


def test_released_folder_gets_the_missing_tokens_behind_its_last_id(tokenizer, tmp_path):
    """A Qwen2 folder has the chat tokens only; the speech tokens follow in the released order."""
    tokenizer.save(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in CHAT_TOKENS]
    last = max(t["id"] for t in state["added_tokens"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    released = TextTokenizer.load(tmp_path)
    assert [released.token_id(t) for t in SPEECH_TOKENS] == list(range(last + 1, last + 1 + len(SPEECH_TOKENS)))

    (tmp_path / "tokenizer.json").unlink()  # the slow form of the same folder
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {k: v for k, v in config["added_tokens_decoder"].items() if int(k) <= last}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    slow = TextTokenizer.load(tmp_path)
    assert slow.special == released.special
    assert slow.encode("turn the light on<|eot|>") == released.encode("turn the light on<|eot|>")


def test_errors_name_the_folder_and_the_limit(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        TextTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="269"):
        train_text_tokenizer(TEXTS, vocab_size=200)
