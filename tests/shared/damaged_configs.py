"""Configurations of models, damaged at random: each must end as a shape that can be counted, or as a sentence."""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandtable.errors import ConfigError
from sandtable_workloads.transformer.families import FAMILIES, REFUSED
from sandtable_workloads.transformer.hf_config import shape_of

FIXTURE = Path(__file__).parents[1] / "fixtures" / "config_class_counts.json"
NUMBERS: list[Any] = [0, 1, -1, 2, 7, 1e9, 1e300, -0.5, 0.5, 64.0, math.nan, math.inf, 10**30, 10**400]
OTHERS: list[Any] = [None, True, False, "32", "", "x", [], [1], [None], [[1]], [{}], {}, {"model_type": "llama"}]
MORE_KEYS = ["quantization_config", "text_config", "vision_config", "audio_config", "layer_types", "architectures"]
MORE_KEYS += ["attn_config", "ffn_config", "mlp_only_layers", "index_n_heads", "num_routed_experts"]


def damaged(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield ``n`` configurations with one to six faults each."""
    rng = random.Random(seed)
    known = [row["config"] for row in json.loads(FIXTURE.read_text())["rows"]]
    keys = sorted({key for config in known for key in config} | set(MORE_KEYS))
    kinds = sorted({*FAMILIES, *REFUSED})
    for _ in range(n):
        config = json.loads(json.dumps(rng.choice(known)))
        for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
            inner = [value for value in config.values() if isinstance(value, dict)]
            _damage(rng.choice([config, config, *inner]), rng, keys, kinds)
        yield config


def _damage(config: dict[str, Any], rng: random.Random, keys: list[str], kinds: list[str]) -> None:
    key, fate = rng.choice([*config, *keys]), rng.random()
    value = config.get(key)
    if fate < 0.15:
        config.pop(key, None)
    elif fate < 0.25:
        config["model_type"] = rng.choice(kinds)
    elif fate < 0.4 and isinstance(value, int) and abs(value) < 1 << 50:
        config[key] = rng.choice([value * 2, value + 1, -value, float(value), str(value)])
    else:
        config[key] = rng.choice([*NUMBERS, *OTHERS])


def outcomes(n: int, seed: int) -> Counter[str]:
    """Return how often a shape and how often a sentence came; whatever else comes is raised."""
    found: Counter[str] = Counter()
    for config in damaged(n, seed):
        began = time.process_time()
        found[_outcome(config)] += 1
        assert time.process_time() - began < 2, config
    return found


def _outcome(config: dict[str, Any]) -> str:
    try:
        shape = shape_of(config, "config.json", "damaged")
    except ConfigError as error:
        return _checked(str(error), config)
    per_layer = [shape.layer_params(experts=on) for on in (False, True)]
    layers = (shape.n_layers - shape.n_moe_layers) * per_layer[0] + shape.n_moe_layers * per_layer[1]
    assert layers + shape.outer_params == shape.n_params, config
    assert 0 < shape.n_active_params <= shape.n_params, config
    assert 0 < shape.forward_flops_per_token(128) < math.inf, config
    assert 0 < shape.kv_items_per_token < math.inf, config
    return "shape"


def _checked(sentence: str, config: dict[str, Any]) -> str:
    assert "\n" not in sentence, config
    assert len(sentence) < 400, config
    return "sentence"
