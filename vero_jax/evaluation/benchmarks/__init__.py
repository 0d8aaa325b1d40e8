"""One short file for each benchmark (or for tasks that differ in a line), with its `BENCHMARKS`."""
