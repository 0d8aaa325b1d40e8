"""VeroEval: 30 benchmarks, each a loader, a prompt, a way to extract the answer, a scorer and an aggregator."""
