"""What the text tokenizer is trained on."""

from types import SimpleNamespace

from mimo_jax.preparation.texts import training_texts


def test_conversations_give_words_and_thoughts_of_training():
    def conversation(split):
        turns = [
            {"role": "user", "content": [{"audio": "a.wav"}, {"text": f"asked {split}"}]},
            {"role": "assistant", "content": [{"text": f"told {split}"}], "Chain-of-thought": f"thought {split}"},
        ]
        return SimpleNamespace(split=split, turns=turns)

    curated = SimpleNamespace(
        volumes=[0],
        records=lambda volume: [],
        texts=lambda volume: [],
        conversations=lambda volume: [conversation("train"), conversation("validation")],
    )
    assert list(training_texts(curated))[-3:] == ["asked train", "told train", "thought train"]
    assert not any("validation" in text for text in training_texts(curated))
