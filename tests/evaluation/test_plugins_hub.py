"""Plug-ins that run models through transformers, against tiny random models in the layout of the hub."""

import json
import sys

import numpy as np
import pytest

from mimo_jax.cli import UserError
from mimo_jax.evaluation import plugins

torch = pytest.importorskip("torch", reason="torch is not installed (MIMO_JAX_TORCH=none was set, or no extra 'dev')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (no extra 'dev')")

CONVOLUTIONS = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (80, 4), "num_feat_extract_layers": 2}
SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    **CONVOLUTIONS,
}


def waves(*lengths):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, length).astype(np.float32) for length in lengths]


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """A wav2vec 2.0 with letters as classes."""
    folder = tmp_path_factory.mktemp("recogniser")
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdef"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(vocab_size=len(vocabulary), **SPEECH))
    with torch.no_grad():
        model.lm_head.weight *= 100  # so that random letters differ from frame to frame
        model.lm_head.bias[1:4] = -1e4  # none but blanks, spaces and letters
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A Whisper of several languages."""
    folder = tmp_path_factory.mktemp("whisper")
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>"]
    special += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", *(f"<|{i / 50:.2f}|>" for i in range(1501))]
    letters = [chr(c) for c in range(97, 123)] + ["\u0120"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.WhisperTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token="a",
        bos_token=special[0],
        eos_token=special[0],
        pad_token=special[0],
        additional_special_tokens=special[1:9],
    )
    tokenizer.add_tokens(special[9:])
    tokenizer.save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=16,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        is_multilingual=True,
        lang_to_id={"<|en|>": ids["<|en|>"], "<|zh|>": ids["<|zh|>"]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        max_length=8,
        return_timestamps=False,
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT of a few words."""
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "bird", "sings", "雨"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    """A WavLM with an x-vector head."""
    folder = tmp_path_factory.mktemp("verifier")
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.WavLMConfig(
        tdnn_dim=(8, 8), tdnn_kernel=(5, 3), tdnn_dilation=(1, 2), xvector_output_dim=6, **SPEECH
    )
    transformers.WavLMForXVector(config).save_pretrained(folder)
    return folder


def test_a_ctc_model_transcribes_whatever_the_others_are(recogniser):
    plugin = plugins.load("transcriber", f"transformers:{recogniser}?device=cpu")
    assert isinstance(plugin, plugins.Transcriber)
    recordings = waves(16_000, 0, 24_000)
    texts = plugin.transcribe(recordings, 16_000, "en")
    assert texts[0] and texts[2] and texts[1] == "" and set("".join(texts)) <= set("abcdef ")
    assert [plugin.transcribe([wave], 16_000, "en")[0] for wave in recordings] == texts
    # by the model itself: letters of the best classes, repetitions and blanks left out
    model = transformers.Wav2Vec2ForCTC.from_pretrained(recogniser).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(recogniser)
    with torch.inference_mode():
        best = model(**extractor(recordings[0], sampling_rate=16_000, return_tensors="pt")).logits[0].argmax(-1)
    collapsed = torch.unique_consecutive(best)
    classes = {i: c for i, c in enumerate("    |abcdef")}
    spelled = "".join(classes[int(c)] for c in collapsed if int(c) > 3).replace("|", " ")
    assert texts[0] == " ".join(spelled.split())


def test_a_recogniser_gets_its_own_sample_rate(recogniser):
    from mimo_jax.data.audio import resample

    plugin = plugins.load("transcriber", f"transformers:{recogniser}?device=cpu")
    (wave,) = waves(24_000)
    assert plugin.transcribe([wave], 24_000, "") == plugin.transcribe([resample(wave, 24_000, 16_000)], 16_000, "")


def test_whisper_is_told_the_language(whisper):
    plugin = plugins.load("transcriber", f"transformers:{whisper}?device=cpu")
    recordings = waves(16_000, 31 * 16_000)
    seen = []
    generate = plugin._pipeline.model.generate

    def recorded(*arguments, **named):
        seen.append(named)
        return generate(*arguments, **named)

    plugin._pipeline.model.generate = recorded
    texts = plugin.transcribe(recordings, 16_000, "zh")
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts) and any(texts)
    assert [(call["language"], call["task"], call.get("return_timestamps")) for call in seen] == [
        ("zh", "transcribe", None),
        ("zh", "transcribe", True),
    ]
    assert plugin.transcribe(recordings[:1], 16_000, "zh") == texts[:1]


def test_texts_are_pooled_over_their_own_tokens(encoder):
    plugin = plugins.load("text_embedder", f"transformers:{encoder}?device=cpu")
    assert isinstance(plugin, plugins.TextEmbedder)
    texts = ["a dog", "a cat sings a bird", "雨", ""]
    vectors = plugin.embed(texts)
    assert vectors.shape == (4, 16) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(np.concatenate([plugin.embed([text]) for text in texts]), vectors, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    with torch.inference_mode():
        model = transformers.AutoModel.from_pretrained(encoder).eval()
        states = model(**tokenizer(texts[0], return_tensors="pt")).last_hidden_state[0].numpy()
    for pooling, state in (("mean", states.mean(0)), ("cls", states[0]), ("last", states[-1])):
        pooled = plugins.load("text_embedder", f"transformers:{encoder}?device=cpu&pooling={pooling}").embed(texts)
        assert np.allclose(pooled[0], state / np.linalg.norm(state), atol=1e-5)
    assert plugin.embed([]).shape == (0, 16)
    prefixed = plugins.load("text_embedder", f"transformers:{encoder}?device=cpu&prefix=a+")
    assert np.allclose(prefixed.embed(["dog"]), vectors[:1], atol=1e-5)


def test_speakers_are_x_vectors(verifier):
    plugin = plugins.load("speaker_embedder", f"transformers:{verifier}?device=cpu")
    assert isinstance(plugin, plugins.SpeakerEmbedder)
    recordings = [*waves(16_000, 20_000, 50), np.zeros(0, np.float32)]
    vectors = plugin.embed(recordings, 16_000)
    assert vectors.shape == (4, 6) and vectors.dtype == np.float32 and not vectors[3].any()
    assert np.allclose(np.linalg.norm(vectors[:3], axis=1), 1, atol=1e-5)
    assert np.allclose(plugin.embed(recordings[1:2], 16_000), vectors[1:2], atol=1e-5)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(verifier)
    with torch.inference_mode():
        model = transformers.WavLMForXVector.from_pretrained(verifier).eval()
        inputs = extractor(recordings[0], sampling_rate=16_000, return_tensors="pt")["input_values"]
        expected = model(inputs).embeddings[0].numpy()
    assert np.allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-5)
    assert plugin.embed([], 16_000).shape == (0, 6)


def test_the_identity_changes_with_the_weights_and_settings(encoder, tmp_path):
    spec = f"transformers:{encoder}?device=cpu"
    first = plugins.load("text_embedder", spec).identity
    assert plugins.load("text_embedder", spec).identity == first
    assert plugins.load("text_embedder", spec + "&pooling=cls").identity != first
    model = transformers.AutoModel.from_pretrained(encoder)
    with torch.no_grad():
        model.pooler.dense.bias += 1
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    other = plugins.load("text_embedder", f"transformers:{tmp_path}?device=cpu").identity
    assert other.replace(str(tmp_path), "") != first.replace(str(encoder), "")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("transformers:{folder}?pooling=sum", "pooling must be mean, cls or last"),
        ("transformers:{folder}?dtype=int8", "float32, float16, bfloat16"),
        ("transformers:{folder}?device=cuda:99", "device cuda:99"),
        ("transformers:{folder}?colour=red", "no option colour"),
        ("transformers:{empty}", "cannot be loaded as AutoTokenizer"),
    ],
)
def test_what_cannot_be_loaded_is_the_users(spec, message, encoder, tmp_path):
    with pytest.raises(UserError, match=message):
        plugins.load("text_embedder", spec.format(folder=encoder, empty=tmp_path))


def test_a_model_of_another_kind_is_refused(encoder):
    with pytest.raises(UserError, match="cannot be loaded as"):
        plugins.load("speaker_embedder", f"transformers:{encoder}?device=cpu")


def test_without_torch_it_says_what_to_install(encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch transformers"):
        plugins.load("text_embedder", f"transformers:{encoder}")


def test_a_failing_device_can_be_tried_again(encoder, monkeypatch):
    plugin = plugins.load("text_embedder", f"transformers:{encoder}?device=cpu")

    def fail(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(plugin._model, "forward", fail)
    with pytest.raises(plugins.PluginError, match="out of memory"):
        plugin.embed(["a"])
