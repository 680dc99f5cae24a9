"""Costs by arithmetic against what the models are and what the published model takes."""

import dataclasses

import pytest

from mimo_jax.interop import hf
from mimo_jax.models import cost
from mimo_jax.models.mimo_audio import MimoAudioConfig

SMALL = MimoAudioConfig(
    vocab_size=320,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    local_dim=32,
    local_layers=2,
    local_attn_heads=4,
    local_ffn_dim=56,
    input_local_layers=1,
    input_local_dim=16,
    empty_token_id=300,
)


@pytest.mark.parametrize("config", [MimoAudioConfig(), SMALL], ids=["7b", "widths that differ"])
def test_parameters_are_those_of_the_model(config):
    found = hf.counts(hf.lm_shapes(config))
    counted = cost.parameters(config)
    assert sum(counted.values()) == sum(found.values())
    assert counted["llm"] == found["llm"] and counted["patch_decoder"] == found["patch_decoder"]
    assert counted["patch_encoder"] == found["patch_encoder"] and counted["head"] == found["lm_head"]


def test_flops_of_the_published_model():
    """G FLOPs per position at context 8192: training on text, audio, and audio without the patch decoder."""
    each = cost.forward_flops(MimoAudioConfig(), 8192)
    assert cost.TRAINING * each.text == pytest.approx(49.3e9, rel=2e-3)
    assert cost.TRAINING * each.audio == pytest.approx(69.6e9, rel=2e-3)
    assert cost.TRAINING * each.audio_without_decoder == pytest.approx(51.8e9, rel=2e-3)
    full = cost.forward_flops(MimoAudioConfig(), 8192, causal=False)
    assert full.text - each.text == pytest.approx(2.4e9, rel=1e-2)  # the half of the pairs that is masked


def test_flops_of_the_published_stages():
    """2.6 T and 5 T tokens at the report's shares of text and audio."""
    model = MimoAudioConfig()
    understanding = cost.training_flops(model, 8192, 1.2e12, 1.4e12, decoder=False)
    joint = cost.training_flops(model, 8192, 2.6e12, 2.4e12)
    assert understanding == pytest.approx(1.3e23, rel=0.02) and joint == pytest.approx(2.95e23, rel=0.02)


def test_flops_grow_with_what_costs():
    base = cost.forward_flops(SMALL, 64)
    deeper = cost.forward_flops(dataclasses.replace(SMALL, num_hidden_layers=6), 64)
    head = 2.0 * SMALL.vocab_size * SMALL.hidden_size
    assert deeper.text - head == pytest.approx(2 * (base.text - head))
    assert deeper.audio - deeper.text == pytest.approx(base.audio - base.text)
    longer = cost.forward_flops(SMALL, 128)
    assert longer.text - base.text == cost.attention_flops(SMALL.llm, 64, causal=True)
