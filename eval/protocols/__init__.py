"""How scores are measured: pictures, prompts, benchmarks, and the scoring itself."""
