"""What a piece of software keeps of an element for the backward pass: the least that PyTorch does, and what it adds."""

from __future__ import annotations

from dataclasses import dataclass

from sandtable.demand.operator_shapes import Number
from sandtable.hardware import Stack
from sandtable_workloads.training.step_numbers import Configuration


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes that software keeps of one element of a composite for the backward pass.

    Attributes:
        stream: Of the residual stream: float32 where weights are cast product by product (autocast), since the
            embedding is none.
        norm: Of a norm's input; its output is the input of the product after it and counted there.
        rope: Of a query or key before it is turned, which stays where it shares its storage with the values; the fused
            attention keeps those as they are, a plain one's products copy them.
        nope: Of the part of a latent attention's key that no position turns, beside the key itself: it stays where it
            shares its storage with the values.
        dropout: Of the mask on what attention and FFN add to the residual.
        gate: Of what a gate puts out; 0 where gate, value and their product are one kernel.
        score: Of one attention score, where scores go through memory.
        score_work: Of one score beyond that, while one layer's gradients are computed and its FFN's are gone.
        logit: Of one logit at the peak around the loss.
        weight_gradient: Of one weight in the tensors that stand for gradients where products add theirs to a buffer;
            one tensor serves all products of a shape and stays.
        bucket: Of one gradient in a bucket of its own, where gradients are no views of the buckets.
        optimizer_work: Of one byte of what an optimiser over lists of tensors makes a copy of, while its step goes on.
    """

    stream: Number
    norm: Number
    rope: Number
    nope: Number
    dropout: Number
    gate: Number
    score: Number
    score_work: Number
    logit: Number
    weight_gradient: Number
    bucket: Number
    optimizer_work: Number

    @classmethod
    def of(cls, stack: Stack | None, c: Configuration) -> Saved:
        """Return the least that PyTorch keeps, changed by what the stack file says: in this run's types, or in any.

        Scores: float32 probabilities, and a copy in the narrow type for the product after them. Logits: float32
        log-probabilities and two gradients of theirs.
        """
        table = {} if stack is None else stack.datasheet.saved_bytes
        narrow = c.item_bytes if c.item_bytes < 4 else 0.0
        types = "autocast" if c.autocast else c.dtype

        def said(name: str, least: Number) -> Number:
            return table.get(f"{name}.{types}", table.get(name, least))

        stream = said("stream", c.item_bytes)
        return cls(
            stream=stream,
            norm=said("norm", stream),
            rope=said("rope", 0.0) * c.flash,
            nope=said("nope", c.item_bytes),
            dropout=said("dropout", 0.0),
            gate=said("gate", c.item_bytes),
            score=said("score", 4 + narrow),
            score_work=said("score_work", 4.0),
            logit=said("logit", 12.0),
            weight_gradient=said("weight_gradient", 0.0),
            bucket=said("bucket", 0.0),
            optimizer_work=said("optimizer_work", 0.0),
        )
