"""The passes as Beam pipelines give what the plain runner gives. Runs in the environment of requirements/beam.txt."""

import json
import pickle

import pytest

pytest.importorskip("apache_beam", reason="Apache Beam has an environment of its own: ./launch/test.sh --all makes it")

from mimo_jax.preparation import beam as beam_lib
from mimo_jax.preparation.accounts import Limits, TooManyBadRecords
from mimo_jax.prepare import prepare
from tests.data.corpus_fixture import FakeCodec, make_corpus
from tests.test_prepare import SETTINGS, tree


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, count=30)
    with open(folder / "manifest.jsonl", "a") as lines:
        lines.write("no json\n" + json.dumps({"id": "lost", "audio": "missing.wav"}) + "\n")
    return folder


@pytest.mark.parametrize(
    "flags",
    [(), ("--direct_num_workers=2", "--direct_running_mode=multi_processing")],
    ids=["direct", "processes"],
)
def test_the_same_bytes_as_the_plain_runner(corpus, flags):
    plain, piped = corpus / "plain", corpus / f"beam{len(flags)}"
    expected = prepare(corpus, plain, FakeCodec(), **SETTINGS)
    result = prepare(corpus, piped, FakeCodec(), **SETTINGS, runner=beam_lib.BeamRunner(flags))
    assert tree(piped) == tree(plain)
    account = result["counts"]["records"]
    assert account == expected["counts"]["records"] and account["quarantined"] == 2


def test_finished_shards_are_not_piped_again(corpus):
    out = corpus / "again"
    prepare(corpus, out, FakeCodec(), **SETTINGS)
    (out / "codes" / "items-000001.json").unlink()
    codec = FakeCodec()
    before = tree(out)
    prepare(corpus, out, codec, **SETTINGS, runner=beam_lib.BeamRunner())
    assert set(tree(out)) - set(before) == {"codes/items-000001.json"}
    assert {k: v for k, v in tree(out).items() if k in before} == before


def test_limits_hold(corpus):
    with pytest.raises(TooManyBadRecords):
        prepare(
            corpus,
            corpus / "limited",
            **{**SETTINGS, "only": "curate"},
            limits=Limits(bad_share=0.0, bad_records=1),
            runner=beam_lib.BeamRunner(),
        )


def test_runners_travel():
    assert pickle.loads(pickle.dumps(beam_lib.BeamRunner(("--a=b",)))).flags == ("--a=b",)
