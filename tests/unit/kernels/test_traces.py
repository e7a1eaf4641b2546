from __future__ import annotations

import time

import numpy as np
import pytest

from sandtable.errors import ConfigError, UnknownName
from sandtable_kernels.neurons.sparsity import preset, presets, resample
from sandtable_kernels.neurons.traces import RecordedTrace, SyntheticTrace, save_trace


def small(**options) -> SyntheticTrace:
    return SyntheticTrace(3, 400, [0.05, 0.1, 0.2], **({"growth": 0.45, "seed": 3} | options))


def test_tokens_are_ascending_ids_and_always_the_same():
    first, second = list(small().tokens(12)), list(small().tokens(12))
    for a, b in zip(first, second, strict=True):
        assert len(a) == 3
        for one, other in zip(a, b, strict=True):
            assert np.array_equal(one, other)
            assert one.dtype == np.int64
            assert (np.diff(one) > 0).all()
            assert 0 <= one.min(initial=0) <= one.max(initial=0) < 400
    trace = small()
    assert [len(t[0]) for t in trace.tokens(5)] == [len(t[0]) for t in first[:5]]  # a prefix, and restartable
    assert not np.array_equal(first[0][2], next(small(seed=4).tokens(1))[2])


def test_a_layer_does_not_depend_on_the_others():
    alone = SyntheticTrace(1, 400, 0.05, growth=0.45, seed=3)
    assert np.array_equal(next(alone.tokens(1))[0], next(small().tokens(1))[0])


def test_popularities_have_the_wanted_mean_in_random_order():
    trace = small()
    for layer, share in enumerate((0.05, 0.1, 0.2)):
        popularity = trace.popularity(layer)
        assert popularity.mean() == pytest.approx(share, rel=1e-9)
        assert trace.expected_aggregate(1, layer) == pytest.approx(share, rel=1e-9)
        assert abs(np.corrcoef(popularity, np.arange(400))[0, 1]) < 0.2


def test_no_window_loads_all_that_is_active():
    trace = small()
    assert trace.expected_new(0) == trace.expected_aggregate(1)
    assert trace.expected_new(3) == pytest.approx(trace.expected_aggregate(4) - trace.expected_aggregate(3))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_layers_that_are_never_or_always_active(share):
    trace = SyntheticTrace(1, 50, share)
    assert [len(token[0]) for token in trace.tokens(3)] == [50 * share] * 3
    assert trace.expected_aggregate(5) == pytest.approx(share)


def test_growth_beyond_independence_is_lowered_to_it():
    trace = SyntheticTrace(1, 1000, 0.5, growth=1.0)
    assert trace.expected_aggregate(2) == pytest.approx(0.75, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 10, 0.1), "needs layers and neurons"),
        ((2, 10, 1.5), "between 0 and 1"),
        ((2, 10, []), "between 0 and 1"),
        ((2, 10, 0.1, {"growth": -0.2}), "must grow"),
        ((2, 10, 0.1, {"growth": {2: 1.5, 3: 1.2}}), "must grow"),
    ],
)
def test_impossible_traces_are_refused(arguments, sentence):
    options = arguments[3] if len(arguments) == 4 else {}
    with pytest.raises(ConfigError, match=sentence):
        SyntheticTrace(*arguments[:3], **options)


def test_generating_is_fast_enough_to_plan_with():
    trace = SyntheticTrace.from_preset("opt_6_7b", 8, 16384)
    start = time.perf_counter()
    assert sum(len(layer) for token in trace.tokens(25) for layer in token) > 0
    assert time.perf_counter() - start < 1.0  # a sixteenth of 32 layers x 100 tokens, which take half a second


# --- presets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets_are_complete(name):
    chosen = preset(name)
    assert chosen.name == name
    assert chosen.source
    assert len(chosen.active_frac) == len(chosen.predicted_frac) == len(chosen.predictor_rank) == chosen.n_layers
    assert all(0 < a < p < 1 for a, p in zip(chosen.active_frac, chosen.predicted_frac, strict=True))


@pytest.mark.parametrize(
    ("name", "active", "predicted"),
    [
        ("opt_6_7b", 0.0328, 0.1029),
        ("persimmon_8b", 0.0763, 0.1239),
        ("phi_2", 0.1451, 0.2719),
        ("falcon_7b", 0.05, 0.1857),
    ],
)
def test_means_of_presets_are_the_published_ones(name, active, predicted):
    chosen = preset(name)
    assert np.mean(chosen.active_frac) == pytest.approx(active, rel=5e-3)
    assert np.mean(chosen.predicted_frac) == pytest.approx(predicted, rel=5e-3)


def test_the_mean_rank_of_opt_is_240():
    assert np.mean(preset("opt_6_7b").predictor_rank) == 240


def test_unknown_presets_are_named():
    with pytest.raises(UnknownName, match="did you mean 'opt_6_7b'"):
        preset("opt_6_7")


def test_shares_stretch_over_other_depths():
    assert resample([0.1, 0.3], 3) == pytest.approx((0.1, 0.2, 0.3))
    assert resample([0.2], 3) == (0.2, 0.2, 0.2)
    assert resample([0.1, 0.3], 1) == pytest.approx((0.2,))
    few = SyntheticTrace.from_preset("opt_6_7b", 4, 100, predicted=False)
    assert few.active_frac[0] == pytest.approx(0.0139)
    assert few.active_frac[-1] == pytest.approx(0.0530)


# --- recorded ----------------------------------------------------------------------------------------------


def test_a_saved_trace_is_the_same_when_loaded(tmp_path):
    trace = small()
    save_trace(tmp_path / "t.npz", trace, 9)
    loaded = RecordedTrace.load(tmp_path / "t.npz")
    assert (loaded.n_layers, loaded.n_neurons, loaded.n_tokens) == (3, 400, 9)
    for ours, theirs in zip(trace.tokens(9), loaded.tokens(9), strict=True):
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))


def test_aggregates_of_a_recorded_trace_are_counted(tmp_path):
    trace = small()
    save_trace(tmp_path / "t.npz", trace, 12)
    loaded = RecordedTrace.load(tmp_path / "t.npz")
    tokens = list(trace.tokens(12))
    for k in (1, 3, 12):
        for layer in range(3):
            runs = [
                len(np.unique(np.concatenate([t[layer] for t in tokens[start : start + k]]))) / 400
                for start in range(12 - k + 1)
            ]
            assert loaded.expected_aggregate(k, layer) == pytest.approx(np.mean(runs))
    assert loaded.expected_aggregate(2) == pytest.approx(
        np.mean([loaded.expected_aggregate(2, layer) for layer in range(3)])
    )
    with pytest.raises(ConfigError, match="13 tokens in a row asked for, but the trace holds 12"):
        loaded.expected_aggregate(13)


def test_more_tokens_than_recorded_are_refused(tmp_path):
    save_trace(tmp_path / "t.npz", small(), 2)
    with pytest.raises(ConfigError, match="3 tokens asked for, but the trace holds 2"):
        next(RecordedTrace.load(tmp_path / "t.npz").tokens(3))


GOOD = {"n_layers": 2, "n_neurons": 5, "ids": [0, 4, 1, 2], "offsets": [0, 2, 4]}


def test_the_smallest_good_file(tmp_path):
    np.savez(tmp_path / "t.npz", **GOOD)
    assert [layer.tolist() for layer in next(RecordedTrace.load(tmp_path / "t.npz").tokens(1))] == [[0, 4], [1, 2]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_layers": 0}, "0 layers of 5 neurons"),
        ({"n_layers": [2]}, "n_layers must be whole numbers"),
        ({"n_layers": 2.5}, "n_layers must be whole numbers"),
        ({"ids": [[0, 4, 1, 2]]}, "ids must be a list of whole numbers"),
        ({"ids": [0, 5, 1, 2]}, "numbered 0 to 4"),
        ({"ids": [0, -1, 1, 2]}, "numbered 0 to 4"),
        ({"ids": [4, 0, 1, 2]}, "must ascend"),
        ({"ids": [0, 4, 2, 2]}, "must ascend"),
        ({"offsets": [0, 2]}, "ends within a token"),
        ({"offsets": [0, 5, 4]}, "offsets must rise"),
        ({"offsets": [0, 2, 3]}, "offsets must rise"),
        ({"offsets": np.zeros(0, int)}, "ends within a token"),
    ],
)
def test_files_with_faults_say_which(tmp_path, change, sentence):
    np.savez(tmp_path / "t.npz", **GOOD | change)
    with pytest.raises(ConfigError, match=sentence):
        RecordedTrace.load(tmp_path / "t.npz")


def test_files_that_are_no_traces(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.npz: no such file"):
        RecordedTrace.load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ConfigError, match="not a trace"):
        RecordedTrace.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", ids=[1])
    with pytest.raises(ConfigError, match=r"not a trace: .*n_layers"):
        RecordedTrace.load(tmp_path / "other.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="not a trace"):
        RecordedTrace.load(tmp_path / "array.npy")
    np.savez(tmp_path / "objects.npz", **GOOD | {"ids": np.array([{}], object)})
    with pytest.raises(ConfigError, match="not a trace"):
        RecordedTrace.load(tmp_path / "objects.npz")
