"""The figures about dependencies: each drives real hosts against the benchmarks' provider and reads its arrivals."""
