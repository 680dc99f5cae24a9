"""The `verify` command: the golden folders, and foreign ones (what it sees: tests/models/test_power.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mimo_jax import convert
from mimo_jax.cli import UserError
from mimo_jax.interop import configs, verify, verify_lm
from mimo_jax.interop.golden import read_golden


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("tokenizer_tiny", "216 ok (27 of them in part), 0 OFF, 0 MISSING, 2 not compared"), ("lm_tiny", "58 ok, 0 OFF")],
)
def test_passes_on_the_golden_folders(golden: Path, capsys, name: str, verdict: str):
    assert convert.main(["verify", f"--weights={golden / name}", f"--golden={golden / name}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"PASSED: {verdict}")


@pytest.mark.slow
def test_passes_on_the_loss(golden: Path, capsys):
    assert convert.main(["verify", f"--weights={golden / 'lm_tiny'}", f"--golden={golden / 'loss_tiny'}"]) == 0
    assert "PASSED: 152 ok" in capsys.readouterr().out.splitlines()[-1]


def test_difference():
    inf, nan = np.inf, np.nan
    assert verify.difference(np.array([1.0, inf, nan]), np.array([1.0, inf, nan]), False) == 0
    assert verify.difference(np.array([1.0, nan]), np.array([1.0, 2.0]), False) == inf
    assert verify.difference(np.array([inf]), np.array([1.0]), False) == inf
    assert verify.difference(np.array([1.1, 0.0]), np.array([1.0, 0.0]), True) == pytest.approx(0.1)
    assert verify.difference(np.array([1e-9]), np.array([0.0]), True) == inf
    assert verify.difference(np.zeros(0), np.zeros(0), False) == 0


# --- foreign folders --------------------------------------------------------------------------------------------------


class Foreign:
    """A golden folder with only the output arrays whose names begin with one of `keep`, to be changed."""

    def __init__(self, source: Path, folder: Path, keep: tuple[str, ...]):
        self.source, self.folder = source, folder
        self.inputs = dict(np.load(source / "inputs.npz"))
        self.outputs = {k: v for k, v in np.load(source / "outputs.npz").items() if k.startswith(keep)}
        self.tolerances = json.loads((source / "tolerances.json").read_text())
        self.run = json.loads((source / "run.json").read_text())
        assert self.outputs

    def write(self) -> Path:
        self.folder.mkdir()
        np.savez(self.folder / "inputs.npz", **self.inputs)
        np.savez(self.folder / "outputs.npz", **self.outputs)
        (self.folder / "tolerances.json").write_text(json.dumps(self.tolerances))
        if self.run is not None:
            (self.folder / "run.json").write_text(json.dumps(self.run))
        return self.folder

    def without(self, *names: str) -> None:
        for name in names:
            del self.inputs[name]

    def stream(self, **values) -> None:
        self.run["streams"][0] |= values

    def no_run(self) -> None:
        self.run = None

    def longer(self, name: str, count: int) -> None:
        expected = self.outputs[name]
        extra = np.full((*expected.shape[:-1], max(count, 0)), 9.0, expected.dtype)
        self.outputs[name] = np.concatenate([expected[..., : min(count, 0) or None], extra], axis=-1)

    def put(self, name: str, place, value) -> None:
        self.inputs[name] = self.inputs[name].copy()
        self.inputs[name][place] = value


@pytest.fixture
def check(golden: Path, tmp_path: Path, capsys):
    """Runs `verify` on a changed folder; every text must be in what it prints."""

    def run(name, keep, change, code, *texts):
        foreign = Foreign(golden / name, tmp_path / "golden", keep)
        change(foreign)
        weights = golden / ("tokenizer_tiny" if name == "tokenizer_tiny" else "lm_tiny")
        assert convert.main(["verify", f"--weights={weights}", f"--golden={foreign.write()}"]) == code
        printed = "".join(capsys.readouterr())
        for text in texts:
            assert text in printed, printed

    return run


ENC, CODES = ("enc_single_0.codes", "enc_single_2.codes"), ("dec_single_0.hidden", "dec_single_2.hidden")
STREAM = ("stream_a.chunk0.seq0.is_none", "stream_b.chunk0.seq0.is_none")


@pytest.mark.parametrize(
    ("keep", "change", "code", "texts"),
    [
        # Wrong lengths of a batch.
        (("dec_batch.wav",), lambda f: f.longer("dec_batch.wav", 100), 1, ["shape [3, 1, 832], expected [3, 1, 932]"]),
        (("dec_batch.wav",), lambda f: f.longer("dec_batch.wav", -1), 1, ["shape [3, 1, 832], expected [3, 1, 831]"]),
        # Inputs that are missing or do not fit: the rest is compared.
        (ENC, lambda f: f.without("mel_0"), 1, ["inputs.npz has no mel_0", "1 ok, 0 OFF, 1 MISSING"]),
        (("enc_batch.codes",), lambda f: f.without("mel_1"), 1, ["inputs.npz has no mel_1", "1 MISSING"]),
        (ENC, lambda f: f.inputs.update(mel_0=np.zeros((37, 15))), 1, ["float64 [37, 15], expected [any, 16]", "1 ok"]),
        (("e2e.codes", ENC[1]), lambda f: f.without("e2e_mel"), 1, ["inputs.npz has no e2e_mel", "1 ok"]),
        (CODES, lambda f: f.without("dec_codes_0"), 1, ["inputs.npz has no dec_codes_0", "1 ok"]),
        (CODES, lambda f: f.put("dec_codes_0", (2, 1), 8), 1, ["8 of codebook 3 is not in 0..7", "1 ok"]),
        # Gaps in the numbering are none in the batch.
        (ENC[1:], lambda f: f.without("mel_0", "mel_1"), 0, ["1 ok"]),
        # What run.json has to say.
        (("dec_partial.hidden", CODES[0]), Foreign.no_run, 1, ["run.json has no partial_n_q", "1 ok"]),
        (("enc_partial",), Foreign.no_run, 1, ["run.json has no partial_n_q"]),
        (("enc_partial",), lambda f: f.run.update(partial_n_q=9), 1, ["partial_n_q is 9, this tokenizer has 1..4"]),
        (STREAM, Foreign.no_run, 1, ["run.json has no streams", "2 MISSING"]),
        # Streams.
        (STREAM, lambda f: f.stream(name="other"), 1, ["streams of run.json has no stream_a", "1 ok"]),
        (STREAM, lambda f: f.stream(left_overlap=2), 1, ["left_overlap 2 must be larger than right_overlap 2", "1 ok"]),
        (STREAM, lambda f: f.stream(left_overlap=None), 1, ["stream_a: left_overlap is null, expected a whole number"]),
        (STREAM, lambda f: f.run["streams"][0].pop("sequences"), 1, ["stream_a has no sequences", "1 ok"]),
        (
            STREAM,
            lambda f: f.stream(chunk_lengths=[[7], [8]]),
            1,
            ["stream_a: chunk_lengths must have a list for each"],
        ),
        (STREAM, lambda f: f.stream(chunk_lengths=[[26]]), 1, ["26 frames, stream_codes_0 of inputs.npz has 25"]),
        (STREAM, lambda f: f.without("stream_codes_0"), 1, ["inputs.npz has no stream_codes_0", "1 ok"]),
        (STREAM, lambda f: f.put("stream_codes_0", (0, 0), -1), 1, ["-1 of codebook 1 is not in 0..15", "1 ok"]),
        (("stream_c.chunk0.seq1.is_none",), lambda f: None, 0, ["1 ok"]),
        # Its length is that of the expected arrays.
        (
            ("dec_batch_equal.valid_samples", "dec_batch_equal.coarse_mel"),
            lambda f: f.without("dec_codes_2", "dec_lens"),
            0,
            ["2 ok"],
        ),
        (
            ("dec_batch_equal.coarse_mel",),
            lambda f: f.outputs.update({"dec_batch_equal.coarse_mel": np.zeros((2, 80, 16), np.float32)}),
            1,
            ["dec_batch_equal has 20 frames, dec_codes_0 of inputs.npz 10"],
        ),
    ],
)
def test_foreign_tokenizer(check, keep, change, code, texts):
    check("tokenizer_tiny", keep, change, code, *texts)


def test_batch_of_the_numbers_that_exist(check):
    def change(f: Foreign) -> None:
        f.without("mel_0", "mel_lens")
        f.outputs["enc_batch.codes"] = f.outputs["enc_batch.codes"][:, 10:]

    check("tokenizer_tiny", ("enc_batch.codes",), change, 0, "PASSED: 1 ok (1 of them in part)")


def test_quantised_features_of_all_rows(check):
    def change(f: Foreign) -> None:  # the first row's last frame, where the reference has its own codes
        f.outputs["enc_batch.quantized_unpacked"][0, 9] += 1e-3

    keep = ("enc_batch.quantized_unpacked", "enc_batch.codes")
    check("tokenizer_tiny", keep, change, 1, "1 ok (1 of them in part), 1 OFF")


RANDOM = "tf_random.step_active"


@pytest.mark.parametrize(
    ("keep", "change", "code", "texts"),
    [
        (("tf.step_in",), lambda f: None, 0, ["1 ok"]),
        (
            ("batch.hidden", "tf.nll", "greedy_local.margin", RANDOM),
            lambda f: f.without("input_ids"),
            1,
            ["inputs.npz has no input_ids", "1 ok, 0 OFF, 3 MISSING"],
        ),
        (("odd.hidden", RANDOM), lambda f: f.without("input_ids_odd"), 1, ["inputs.npz has no input_ids_odd", "1 ok"]),
        (("tf.nll", RANDOM), lambda f: f.without("tf_targets"), 1, ["inputs.npz has no tf_targets", "1 ok"]),
        (("tf_random.nll",), lambda f: f.put("tf_random_targets", (0, 0, 0), 17), 1, ["17 of codebook 1 is not in"]),
        (
            ("batch.hidden",),
            lambda f: f.inputs.update(input_ids=f.inputs["input_ids"][:, :8]),
            1,
            ["[2, 8, 76], expected integers [any, 9, any]"],
        ),
        (
            ("batch.hidden",),
            lambda f: f.inputs.update(input_ids=f.inputs["input_ids"][..., :-1]),
            1,
            ["input_ids of inputs.npz: width 75 is no multiple of the group size 4"],
        ),
        (("batch.hidden",), lambda f: f.put("input_ids", (0, 0, 0), 300), 1, ["text ids must be in 0..299"]),
        (("gen_text.new",), Foreign.no_run, 1, ["run.json has no max_new for gen_text"]),
        (("gen_text.new",), lambda f: f.run.update(max_new=0), 1, ["gen_text: request 0: max_new = 0"]),
        (("gen_stop.new",), lambda f: f.run["gen_stop"].update(stop_tokens=[300]), 1, ["must be ids in 0..299"]),
        (("gen_text.new",), lambda f: f.without("prompt_text"), 1, ["inputs.npz has no prompt_text"]),
        # An array that nothing computes, and one without a tolerance.
        (
            (RANDOM,),
            lambda f: f.outputs.update({"tf_random.unheard_of": np.zeros(3)}),
            1,
            ["nothing here computes it", "FAILED: 1 ok, 0 OFF, 1 MISSING, 0 not compared"],
        ),
        ((RANDOM,), lambda f: f.tolerances["atol"].update({RANDOM: None}), 1, ["no number for it", "1 MISSING"]),
    ],
)
def test_foreign_language_model(check, keep, change, code, texts):
    check("lm_tiny", keep, change, code, *texts)


def test_foreign_loss(check):
    def change(f: Foreign) -> None:
        for arrays in (f.inputs, f.outputs):
            arrays |= {name.replace("empty_codes.", "my-batch."): array for name, array in arrays.items()}
        f.outputs = {name: array for name, array in f.outputs.items() if name.startswith("my-batch.")}
        f.tolerances = {"atol": dict.fromkeys(f.outputs, 1e-3)}
        del f.run["gradient_rows_kept"]
        f.run["grad_norms_parameters"][0] = "other"

    case = "empty_codes.released"
    keep = tuple(
        f"{case}.{name}" for name in ("text_loss", "n_patches", "grad.model.embed_tokens.weight", "grad_norms")
    )
    texts = ["run.json has no gradient_rows_kept", "grad_norms_parameters names other", "2 ok, 0 OFF, 2 MISSING"]
    check("loss_tiny", keep, change, 1, *texts)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: f.run.update(speech_loss_weights="100-12-8"), "speech_loss_weights has 3 numbers, expected 1"),
        (lambda f: f.run.update(speech_loss_weights=[100, 12]), "speech_loss_weights is [100, 12], expected a string"),
        (lambda f: f.without("full.labels"), "inputs.npz has no full.labels"),
        (lambda f: f.put("full.input_ids", (0, 0, 0), 5), "full.labels differ from full.input_ids"),
    ],
)
def test_foreign_loss_without_a_case(check, change, text):
    def label_first(f: Foreign) -> None:
        f.put("full.labels", (0, 0, 0), f.inputs["full.input_ids"][0, 0, 0])
        change(f)

    check("loss_tiny", ("full.released.loss",), label_first if "differ" in text else change, 1, text, "1 MISSING")


# --- folders that cannot be read --------------------------------------------------------------------------------------


def broken_crc(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b"\x93NUMPY") + 200
    data[place] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("outputs.npz", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("outputs.npz", lambda path: path.write_bytes(b"")),
        ("outputs.npz", broken_crc),
        ("inputs.npz", lambda path: np.save(path.open("wb"), np.zeros(3))),
        ("inputs.npz", lambda path: np.savez(path, mel_0=np.array(["a"]))),
        ("tolerances.json", lambda path: path.write_text("[]")),
        ("tolerances.json", lambda path: path.write_text('{"atol": []}')),
        ("run.json", lambda path: path.write_text("[1]")),
        ("run.json", lambda path: path.write_text("{")),
    ],
)
def test_unreadable(lm_tiny: Path, tmp_path: Path, capsys, file: str, spoil):
    folder = Foreign(lm_tiny, tmp_path / "golden", ("tf_random.nll",)).write()
    spoil(folder / file)
    assert convert.main(["verify", f"--weights={lm_tiny}", f"--golden={folder}"]) == 2
    message = capsys.readouterr().err
    assert file in message and message.count("\n") == 1


def test_unknown_arrays(lm_tiny: Path, tmp_path: Path):
    foreign = Foreign(lm_tiny, tmp_path / "golden", ("tf_random.nll",))
    foreign.outputs = {"something": np.zeros(3)}
    with pytest.raises(UserError, match="neither a tokenizer's nor"):
        verify.verify(lm_tiny, foreign.write(), lambda line: None)


def test_id_of_the_empty_token(lm_tiny: Path, tmp_path: Path):
    weights, folder = tmp_path / "weights", Foreign(lm_tiny, tmp_path / "golden", ("tf_random.nll",)).write()
    weights.mkdir()
    shutil.copy(lm_tiny / "config.json", weights)
    for path in (folder, weights):  # the weights' own comes first
        (path / "special_tokens.json").write_text(json.dumps({"empty_idx": 7 if path == weights else 8}))
        assert verify_lm.empty_token_id(weights, read_golden(folder)) == (7 if path == weights else 8)
    for text, message in (
        ("{", "cannot be read"),
        ("{}", "has no empty_idx"),
        ('{"empty_idx": "7"}', "expected a whole"),
    ):
        (weights / "special_tokens.json").write_text(text)
        with pytest.raises(UserError, match=f"special_tokens.json.*{message}"):
            verify_lm.empty_token_id(weights, read_golden(folder))
    (weights / "special_tokens.json").unlink()
    values = configs.read_config(weights) | {"empty_token_id": 9}
    (weights / "config.json").write_text(json.dumps(values))
    assert verify_lm.empty_token_id(weights, read_golden(folder)) is None  # it is in the weights' configuration


def test_id_of_the_empty_token_beside(golden: Path, tmp_path: Path):
    shutil.copy(golden / "lm_tiny" / "config.json", tmp_path)
    assert verify_lm.empty_token_id(tmp_path, read_golden(golden / "loss_tiny")) == 287
