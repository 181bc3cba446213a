"""The problems that attention is tested on: letters and arguments are those of ``attention.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AttentionCase:
    """One problem; its name is the reason it exists."""

    name: str
    query: tuple[int, int, int, int]  # B, H, L, D
    heads: int  # G
    keys: int  # S
    features: int  # E
    mask: tuple[int, int, int, int] | None = None
    boolean: bool = False  # the mask leaves out, and does not add
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    slopes: int = 0  # axis 0 of alibi_slopes; 0: none

    @property
    def constants(self) -> tuple[Any, ...]:
        """The arguments that follow the tensors."""
        return self.dropout_p, self.is_causal, self.scale, *self.window, self.softcap


ATTENTION_CASES: tuple[AttentionCase, ...] = (
    AttentionCase("one number", (1, 1, 1, 1), 1, 1, 1),
    AttentionCase("heads of a vision transformer", (1, 3, 50, 64), 3, 50, 64),
    AttentionCase("several blocks of keys, and a tail", (1, 1, 29, 16), 1, 531, 16),
    AttentionCase("several blocks of queries, and a tail", (1, 2, 205, 8), 2, 21, 8),
    AttentionCase("fewer keys than queries", (2, 2, 33, 24), 2, 7, 24),
    AttentionCase("values wider than keys", (1, 2, 18, 5), 2, 40, 70),
    AttentionCase("values narrower than keys", (1, 2, 18, 70), 2, 40, 3),
    AttentionCase("odd numbers of everything", (1, 3, 13, 9), 3, 15, 11),
    AttentionCase("features beyond 256", (1, 1, 14, 300), 1, 35, 264),
    AttentionCase("batch broadcasts nothing", (3, 1, 17, 8), 1, 19, 8),
    AttentionCase("causal", (1, 2, 70, 16), 2, 70, 16, is_causal=True),
    AttentionCase("causal over several blocks", (1, 1, 300, 8), 1, 300, 8, is_causal=True),
    AttentionCase("causal with fewer keys than queries", (1, 2, 40, 8), 2, 11, 8, is_causal=True),
    AttentionCase("causal with more keys than queries", (1, 2, 11, 8), 2, 64, 8, is_causal=True),
    AttentionCase("mask of booleans", (2, 2, 20, 8), 2, 37, 8, (2, 2, 20, 37), boolean=True),
    AttentionCase("mask of keys", (2, 2, 20, 8), 2, 37, 8, (2, 1, 1, 37), boolean=True),
    AttentionCase("bias for every score", (2, 2, 20, 8), 2, 37, 8, (2, 2, 20, 37)),
    AttentionCase("bias that heads share", (2, 3, 20, 8), 3, 37, 8, (2, 1, 20, 37)),
    AttentionCase("bias that batches share", (2, 3, 20, 8), 3, 140, 8, (1, 3, 20, 140)),
    AttentionCase("bias that queries share", (2, 2, 107, 8), 2, 37, 8, (1, 2, 1, 37)),
    AttentionCase("bias that keys share", (2, 2, 20, 8), 2, 137, 8, (2, 1, 20, 1)),
    AttentionCase("bias and causal", (1, 2, 30, 8), 2, 30, 8, (1, 1, 30, 30), is_causal=True),
    AttentionCase("queries share a head of keys", (1, 6, 15, 16), 2, 33, 16),
    AttentionCase("all share one head of keys", (2, 4, 15, 16), 1, 33, 16, is_causal=True),
    AttentionCase("one query against many keys", (2, 4, 1, 64), 2, 300, 64),
    AttentionCase("one query, odd features", (1, 3, 1, 21), 3, 130, 37),
    AttentionCase("few queries against many keys", (1, 4, 3, 32), 2, 290, 32, is_causal=True),
    AttentionCase("window of both sides", (1, 2, 90, 8), 2, 90, 8, window=(7, 3)),
    AttentionCase("window before alone", (1, 2, 90, 8), 2, 90, 8, window=(20, -1), is_causal=True),
    AttentionCase("window at the end of more keys", (1, 2, 9, 8), 2, 60, 8, window=(4, 0)),
    AttentionCase("window that hides all keys of some queries", (1, 1, 50, 8), 1, 9, 8,
                  window=(2, 2)),
    AttentionCase("one query with a window", (1, 2, 1, 16), 2, 280, 16, window=(100, -1)),
    AttentionCase("capped", (1, 2, 21, 16), 2, 40, 16, softcap=2.0),
    AttentionCase("capped, biased and causal", (1, 2, 30, 16), 2, 30, 16, (1, 2, 30, 30),
                  softcap=5.0, is_causal=True),
    AttentionCase("slopes of heads", (2, 3, 21, 16), 3, 40, 16, slopes=1),
    AttentionCase("slopes of heads and batches", (2, 3, 21, 16), 3, 40, 16, slopes=2,
                  is_causal=True),
    AttentionCase("one query with slopes and a cap", (2, 4, 1, 16), 2, 150, 16, slopes=1,
                  softcap=3.0),
    AttentionCase("scale of zero: the mean", (1, 2, 15, 8), 2, 33, 8, scale=0.0),
    AttentionCase("scale below zero", (1, 2, 15, 8), 2, 33, 8, scale=-0.4, is_causal=True),
    AttentionCase("dropout", (2, 2, 20, 8), 2, 37, 8, dropout_p=0.4),
    AttentionCase("dropout of what a cap and a bias left", (1, 4, 20, 8), 2, 37, 8,
                  (1, 4, 1, 37), softcap=4.0, dropout_p=0.1),
    AttentionCase("dropout of everything", (1, 1, 5, 8), 1, 6, 8, dropout_p=1.0),
    AttentionCase("no keys", (1, 2, 5, 8), 2, 0, 8),
    AttentionCase("no queries", (1, 2, 0, 8), 2, 5, 8),
    AttentionCase("no features of keys", (1, 2, 5, 0), 2, 6, 8),
    AttentionCase("no features of values", (1, 2, 5, 8), 2, 6, 0),
    AttentionCase("no batch", (0, 2, 5, 8), 2, 6, 8),
)  # fmt: skip
