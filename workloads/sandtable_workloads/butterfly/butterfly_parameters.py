"""What a user may choose about a vision network, or one layer of it, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sandtable.errors import ConfigError
from sandtable.hardware import DTYPE_BYTES, Frozen
from sandtable_workloads.butterfly.networks import IMAGE, Layer, Network, network_named
from sandtable_workloads.butterfly.networks.pointwise_counts import check_structure, equal_options

Subject = Literal["mobilenet_v1", "shufflenet_v2", "mobilenet_v3_small", "layer"]
Structure = Literal["dense", "butterfly", "low_rank", "circulant", "toeplitz", "monarch", "block_shuffle"]
Precision = Literal["float32", "bfloat16"]
Mode = Literal["inference", "training"]
LAYER = "layer"
# parameters that only a whole network has, and only a layer
OF_NETWORKS = ("width", "resolution", "batch", "classes", "in_channels", "small_images")
OF_LAYERS = ("n_in", "n_out", "rows")
USUAL_SIDE, USUAL_ROWS = 1024, 256


class ButterflyVision(Frozen):
    """Parameters of a network or layer whose pointwise products have structure.

    Attributes:
        network: ``mobilenet_v1``, ``shufflenet_v2``, ``mobilenet_v3_small``, or ``layer``: one pointwise product alone.
        structure: Of the matrices of pointwise layers: ``dense``, ``butterfly`` (arXiv 1906.02256), or another, with
            as many multiplications as the butterfly of ``base`` has, or the nearest fewer.
        base: Of a butterfly: positions that each level joins; it has log_base(n) levels.
        residual: Add the input of a butterfly's first level to the output of its last.
        width: Multiplies the channels of a network.
        resolution: Side of its images in pixels.
        batch: Images per step.
        classes, in_channels: Of the images.
        small_images: Leave out the network's first strides, as is usual for images of 32 pixels.
        n_in, n_out: Of a ``layer``: channels in and out; 1024, and as many out as in, if not given.
        rows: Of a ``layer``: vectors per step, one per pixel of each image; 256 if not given.
        precision: Type of weights and activations.
        mode: ``inference``: one forward pass a step. ``training``: forward, backward, and SGD with momentum.
        threads: CPU threads; one per core of the machine if not given. An accelerator does not ask.
        steps: Timed steps.
        warmup_steps: Steps before those, not timed.
        learning_rate, momentum: Of training.
        weight_decay: Of training, for all weights but those of butterflies (arXiv 1906.02256, section 3.3).
    """

    also_called: ClassVar[Mapping[str, str]] = {
        "model": "network",
        "arch": "network",
        "architecture": "network",
        "alpha": "width",
        "width_mult": "width",
        "width_multiplier": "width",
        "multiplier": "width",
        "image_size": "resolution",
        "img_size": "resolution",
        "input_size": "resolution",
        "size": "resolution",
        "batch_size": "batch",
        "num_classes": "classes",
        "n_classes": "classes",
        "channels": "in_channels",
        "k": "base",
        "radix": "base",
        "butterfly_k": "base",
        "n": "n_in",
        "in_features": "n_in",
        "out_features": "n_out",
        "out_channels": "n_out",
        "pixels": "rows",
        "dtype": "precision",
        "num_threads": "threads",
        "n_threads": "threads",
        "lr": "learning_rate",
        "wd": "weight_decay",
    }

    network: Subject = "mobilenet_v1"
    structure: Structure = "butterfly"
    base: int = Field(default=4, ge=2, le=64)
    residual: bool = True
    width: float = Field(default=1.0, gt=0, le=16)
    resolution: int = Field(default=128, ge=8, le=4096)
    batch: int = Field(default=1, ge=1, le=1 << 20)
    classes: int = Field(default=1000, ge=2, le=1 << 20)
    in_channels: int = Field(default=3, ge=1, le=1 << 20)
    small_images: bool = False
    n_in: int | None = Field(default=None, ge=1, le=1 << 20)
    n_out: int | None = Field(default=None, ge=1, le=1 << 20)
    rows: int | None = Field(default=None, ge=1, le=1 << 30)
    precision: Precision = "float32"
    mode: Mode = "inference"
    threads: int | None = Field(default=None, ge=1, le=4096)
    steps: int = Field(default=30, ge=1, le=1_000_000)
    warmup_steps: int = Field(default=3, ge=0, le=1_000_000)
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-5, ge=0)

    @model_validator(mode="after")
    def _belongs(self) -> ButterflyVision:
        if not self.is_layer:
            found = [name for name in OF_LAYERS if getattr(self, name) is not None]
            if found:
                raise ValueError(f"{found[0]} is of one layer: write 'network: layer', or leave it out")
            return self
        fields = type(self).model_fields
        found = [name for name in OF_NETWORKS if getattr(self, name) != fields[name].default]
        if found:
            raise ValueError(
                f"{found[0]} is of a whole network: leave it out, 'rows' says how much a layer is given"
            )
        return self

    @model_validator(mode="after")
    def _is_built(self) -> ButterflyVision:
        try:
            network = self.built()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        least = min((layer.pixels for layer in network.of_kind("norm")), default=2)
        if self.trains and self.n_images * least < 2:
            raise ValueError(
                "a batch norm learns from more than one number: write 'batch: 2' or a larger resolution"
            )
        return self

    @property
    def is_layer(self) -> bool:
        """Whether it is one layer alone."""
        return self.network == LAYER

    @property
    def trains(self) -> bool:
        """Whether steps are those of a training."""
        return self.mode == "training"

    @property
    def n_images(self) -> int:
        """How often a step does what `built` counts once: images, or rows of a layer."""
        return (self.rows or USUAL_ROWS) if self.is_layer else self.batch

    @property
    def item_bytes(self) -> float:
        """Bytes of a weight or an activation."""
        return DTYPE_BYTES[self.precision]

    def built(self) -> Network:
        """Return the layers; a layer alone is a network of it that is given a row where others get an image.

        Raises:
            ConfigError: there is no such network at that width or resolution.
        """
        if self.is_layer:
            n_in = self.n_in or USUAL_SIDE
            check_structure(self.structure, self.base)
            return _alone(n_in, self.n_out or n_in, self.structure, self.base, self.residual)
        return _network(
            self.network,
            width=self.width,
            resolution=self.resolution,
            structure=self.structure,
            base=self.base,
            residual=self.residual,
            classes=self.classes,
            in_channels=self.in_channels,
            small_images=self.small_images,
        )


_network = lru_cache(maxsize=64)(network_named)


@lru_cache(maxsize=64)
def _alone(n_in: int, n_out: int, structure: Structure, base: int, residual: bool) -> Network:
    layer = Layer(
        name=LAYER,
        kind="pointwise",
        inputs=(IMAGE,),
        n_in=n_in,
        n_out=n_out,
        side_in=1,
        side_out=1,
        structure=structure,
        base=base,
        residual=residual,
        options=equal_options(structure, n_in, n_out, base),
    )
    return Network(
        name=LAYER,
        title="One layer",
        width=1.0,
        resolution=1,
        in_channels=n_in,
        classes=n_out,
        layers=(layer,),
        structure=structure,
        base=base,
        residual=residual,
    )
