"""Few-shot questions: what a set holds, likelihoods against the model run one by one, scores computed by hand."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax import few_shot
from mimo_jax.cli import UserError
from mimo_jax.data import prompts
from mimo_jax.data.corpus.texts import text_split
from mimo_jax.data.sequence import Layout, expand_audio
from mimo_jax.data.text_tokenizer import train_text_tokenizer
from mimo_jax.evaluation.few_shot import builtin, curves
from mimo_jax.evaluation.few_shot.choices import Choice, ChoiceSet
from mimo_jax.evaluation.few_shot.hook import FewShot, metrics
from mimo_jax.evaluation.few_shot.intervals import wilson
from mimo_jax.evaluation.report import ReportInputs, read_curve, render
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel.mesh import Hardware

EMPTY_CODES = (16, 16, 8)


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer([f"what is {a} plus {a} minus" for a in ("one", "two", "three")] * 20, vocab_size=300)


@pytest.fixture(scope="module")
def layout(tokenizer):
    return Layout(tokenizer.special, EMPTY_CODES, group_size=2)


def encode(waves):
    """Codes that depend on the wave and are as many as a tokenizer of 25 Hz would give, in a tenth of the frames."""
    codes = []
    for wave in waves:
        rng = np.random.default_rng(int(1e6 * float(np.abs(wave).sum())))
        codes.append(np.stack([rng.integers(0, n, 1 + len(wave) // 9600) for n in EMPTY_CODES], -1).astype(np.int32))
    return codes


@pytest.fixture(scope="module")
def options():
    return builtin.Options(questions=3, shots=2, conversion_shots=1)


@pytest.fixture(scope="module")
def choices(options):
    return builtin.build(options, encode)


@pytest.fixture(scope="module")
def path(choices, options, tokenizer, layout, tmp_path_factory):
    path = tmp_path_factory.mktemp("few_shot") / "set.npz"
    ChoiceSet.of(choices, tokenizer.encode, layout, builtin.facts(options), {"seed": 0}).save(path)
    return path


@pytest.fixture(scope="module")
def model(tokenizer, layout):
    local = {"local_dim": 16, "local_layers": 1, "local_attn_heads": 2, "local_ffn_dim": 32}
    config = MimoAudioConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        speech_vocab_size=tuple(n + 1 for n in EMPTY_CODES),
        speech_zeroemb_idx=EMPTY_CODES,
        delay_pattern=(0, 1, 2),
        audio_channels=3,
        group_size=2,
        input_local_layers=1,
        input_local_dim=16,
        empty_token_id=layout.special.empty,
        **local,
    )
    objective = LanguageModelObjective(config)
    params, _ = jax.jit(lambda key: objective.init(key, {}))(jax.random.key(0))
    # Of deviation one, so that candidates differ.
    return objective, jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)


def test_questions_are_what_they_say(choices, tokenizer):
    by_task = {task: [c for c in choices if c.task == task] for task in builtin.TASKS}
    assert all(len(mine) == 3 for mine in by_task.values())
    spelled = {
        pair: [
            "".join(s.text for s in c.candidates[c.answer] if hasattr(s, "text")) for c in by_task[f"arithmetic_{pair}"]
        ]
        for pair in builtin.PAIRS
    }
    numbers = {name: value for value, name in enumerate(builtin.questions.NUMBERS)}
    for text in spelled["t2t"]:
        *shown, query = text.strip().split(" \n\n")
        assert len(shown) == 2
        for number, line in enumerate([*shown, query]):
            asked, answer = line.split("\n")
            a, operation, b = asked.removeprefix("what is ").split()
            expected = numbers[a] + numbers[b] if operation == "plus" else numbers[a] - numbers[b]
            assert numbers[answer] == expected
            assert text_split(asked) == ("validation" if number == 2 else "train")
    # The same questions in all four pairs, whatever is spoken.
    assert [c.answer for c in by_task["arithmetic_s2s"]] == [c.answer for c in by_task["arithmetic_t2t"]]
    assert all(text.startswith(prompts.FEW_SHOT_SPEECH_PREFIX) for text in spelled["s2s"])
    assert all(text.startswith(prompts.FEW_SHOT_PREFIX) for text in spelled["s2t"] + spelled["t2s"])
    for choice in choices:
        assert len(choice.candidates) == (3 if choice.task == "rate" else 4)
        answers = [tuple(map(repr, segments)) for segments in choice.candidates]
        assert len(set(answers)) == len(answers), "two candidates are the same"
        for whole, neutral in zip(choice.candidates, choice.neutral, strict=True):
            labelled = [[s for s in segments if s.loss] for segments in (whole, neutral)]
            assert repr(labelled[0]) == repr(labelled[1]) and len(neutral) < len(whole)
    # Conversions say what to do by examples alone.
    for choice in by_task["voice"]:
        shown = [s for s in choice.candidates[0] if hasattr(s, "codes")]
        assert len(shown) == 2 + 2 and len([s for s in choice.neutral[0] if hasattr(s, "codes")]) == 2


def test_a_set_is_a_function_of_its_seed(options, choices, tokenizer, layout, path):
    again = builtin.build(dataclasses.replace(options, tasks=("voice", "arithmetic_s2s")), encode)
    of_all = [c for task in ("voice", "arithmetic_s2s") for c in choices if c.task == task]
    assert repr(again) == repr(of_all)
    other = builtin.build(dataclasses.replace(options, tasks=("voice",), seed=1), encode)
    assert repr(other) != repr(again[:3])
    read = ChoiceSet.load(path)
    assert read.tasks["rate"] == {"chance": 1 / 3, "shots": 1} and read.tasks["voice"]["chance"] == 0.25
    assert read.counts == dict.fromkeys(builtin.TASKS, 3)


def test_likelihoods_are_those_of_each_sequence_alone(path, model, layout):
    objective, params = model
    hook = FewShot(path, objective, rows=4, context=160)
    found, questions = hook.log_likelihood(params), hook.questions
    ends = np.cumsum(questions.length)
    patches = np.cumsum([0, *(questions.text == layout.special.empty)])
    longest = int(questions.length.max())

    def all_logits(self, text, audio):
        hidden, _ = self.backbone(self.embed(text, audio), jnp.arange(text.shape[1])[None])
        return self.text_logits(hidden), self.patch_logits(self.local_hidden(hidden[0, :-1]), audio[0, 1:])

    @jax.jit
    def log_likelihoods(text, audio):
        """Of each position's text id and codes [T], given all before it."""
        logits, codes = MimoAudio(objective.model).apply({"params": params}, text[None], audio[None], method=all_logits)
        of_text = jnp.take_along_axis(jax.nn.log_softmax(logits[0, :-1]), text[1:, None], axis=-1)[:, 0]
        of_codes = sum(
            jnp.take_along_axis(jax.nn.log_softmax(scores), audio[1:, :, book, None], axis=-1).sum((1, 2))
            for book, scores in enumerate(codes)
        )
        return of_text + jnp.where(text[1:] == layout.special.empty, of_codes, 0.0)

    for number in np.linspace(0, len(ends) - 1, 12, dtype=int):
        length = int(questions.length[number])
        span = slice(ends[number] - length, ends[number])
        audio = expand_audio(questions.text[span], questions.patches[patches[span.start] : patches[span.stop]], layout)
        pad = longest - length  # behind the end, where a causal model's past is not
        text = np.pad(questions.text[span], (0, pad))
        values = log_likelihoods(text, np.pad(audio, ((0, pad), (0, 0), (0, 0))))
        expected = float(np.asarray(values)[: length - 1][questions.loss[span][1:]].sum())
        np.testing.assert_allclose(found[number], expected, rtol=1e-4)


def test_batches_and_meshes_do_not_matter(path, model):
    objective, params = model
    expected = FewShot(path, objective, rows=1, context=400).log_likelihood(params)
    np.testing.assert_allclose(
        FewShot(path, objective, rows=8, context=160).log_likelihood(params), expected, rtol=1e-5
    )
    hardware = Hardware(fsdp=4, tensor=2)
    mesh = hardware.make_mesh()
    from flax import linen as nn

    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        hook = FewShot(path, objective, rows=8, context=160)
        np.testing.assert_allclose(hook.log_likelihood(params), expected, rtol=1e-5)


def test_scores_by_hand(tokenizer, layout):
    def question(candidates, answer):
        segments = [prompts.complete_with_text([prompts.TextSegment("a")], text, end="") for text in candidates]
        return Choice("x", segments, segments, answer)

    made = ChoiceSet.of(
        [question("bcd", 1), question("bcd", 0), question("bcd", 2)], tokenizer.encode, layout, {"x": {}}
    )
    plain, neutral = (
        [-1.0, -2.0, -9.0, -5.0, -1.0, -6.0, -3.0, -3.0, -3.0],
        [-1.0, -4.0, -9.0, -5.0, -2.0, -6.0, -3.0, -3.0, -3.0],
    )
    values = np.concatenate([plain[:3], neutral[:3], plain[3:6], neutral[3:6], plain[6:], neutral[6:]])
    # First: gains 0, 2, 0 and the right one gains most; second: 0, 1, 0 and it does not; third: all alike, a guess.
    figures = metrics(made, values)
    assert figures["few_shot/x"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert figures["few_shot/x_margin"] == pytest.approx((2 - 0.5 + 0) / 3)


def test_intervals():
    low, high = wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson(0.0, 10)[0] == 0.0 and wilson(1.0, 10)[1] == 1.0 and wilson(0.3, 0) == (0.0, 1.0)


def test_mistakes_are_named(path, model, tokenizer, layout, tmp_path, capsys):
    objective, _ = model
    with pytest.raises(UserError, match="nowhere.npz: no such file"):
        FewShot(str(tmp_path / "nowhere.npz"), objective)
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="x.npz: not a set"):
        FewShot(str(tmp_path / "x.npz"), objective)
    with pytest.raises(UserError, match=r"questions of \d+ positions; the context has 16"):
        FewShot(path, objective, context=16)
    other = dataclasses.replace(objective, model=dataclasses.replace(objective.model, empty_token_id=1))
    with pytest.raises(UserError, match=r"made with <\|empty\|> = \d+, the model has 1"):
        FewShot(path, other)
    uneven = [
        Choice("x", [[prompts.TextSegment("a", True)]] * n, [[prompts.TextSegment("a", True)]] * n, 0) for n in (2, 3)
    ]
    with pytest.raises(ValueError, match=r"\[2, 3\] candidates"):
        ChoiceSet.of(uneven, tokenizer.encode, layout, {"x": {}})
    with pytest.raises(ValueError, match="unknown tasks juggling"):
        builtin.Options(("juggling",))
    assert few_shot.main(["make", f"--tokenizer={tmp_path}", f"--prepared={tmp_path}", "--out=x.npz"]) == 2
    assert "prepare.json is missing" in capsys.readouterr().err


def test_scores_are_drawn_against_tokens_with_chance(path, tmp_path, capsys):
    questions = ChoiceSet.load(path)
    for stage, start in (("one", 100), ("two", 50)):
        lines = [{"step": 1, "text_tokens": start, "audio_tokens": start, "train/loss": 1.0}]
        for number in range(1, 5):
            scores = {f"few_shot/{name}": number / 4 for name in questions.tasks}
            margins = {f"few_shot/{name}_margin": float(number) for name in questions.tasks}
            tokens = {"text_tokens": number * start, "audio_tokens": number * start}
            lines.append({"step": number, **tokens, **scores, **margins})
        folder = tmp_path / stage
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["report", f"--model_dir={tmp_path / 'one'}", f"--model_dir={tmp_path / 'two'}", f"--set={path}"]
    assert few_shot.main([*arguments, f"--out={tmp_path / 'x.html'}"]) == 0
    printed = capsys.readouterr().out
    assert "voice            0.250 -> 1.000 (0.438..1.000), chance 0.250, 3 questions" in printed
    page = (tmp_path / "x.html").read_text()
    assert page.count("<svg") == 3 and "97.5 %" in page and "above chance" in page
    # The second stage goes on where the first ended: 800 tokens, then 100 more to each of its milestones.
    points = curves.curves({name: read_curve(tmp_path / name) for name in ("one", "two")})["voice"]
    assert [x for x, _ in points] == [200, 400, 600, 800, 900, 1000, 1100, 1200]
    # The report of a chain shows the same.
    inputs = ReportInputs(model_dirs={name: str(tmp_path / name) for name in ("one", "two")}, few_shot=path)
    assert "Few-shot tasks against tokens seen" in render(inputs)
    (tmp_path / "two" / "metrics.jsonl").write_text('{"step": 1, "text_tokens": 1}\n')
    assert few_shot.main([*arguments[:1], *arguments[2:], f"--out={tmp_path / 'y.html'}"]) == 2
    assert "no few-shot scores" in capsys.readouterr().err
