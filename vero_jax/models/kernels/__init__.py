"""How attention is computed: `blockwise` by XLA on every platform, `tpu` (Mosaic) and `gpu` (Triton) by Pallas kernels.

`models/attention.py` says which of them is used when. The two modules of kernels have the same two functions:

    forward(q, k, v, labels, pairs, interpret) -> out, lse
    backward(q, k, v, labels, pairs, out, lse, d_out, interpret) -> d_q, d_k, d_v

q, out, d_out: [B K J T C], scaled, J query heads to a key-value head; k, v: [B K T C]; lse: float32 [B K J T], the
logarithm of each query's sum of exponentials (1e30 where a query sees nothing, so that its weights are 0).
labels: int32 [B L T]. L = 2 (group, branch): the rule of rows. L = 1 (segment): the rule of segments.
pairs: bool [B n n], the key blocks (last axis) that a query block may see, in blocks of T / n tokens.
"""
