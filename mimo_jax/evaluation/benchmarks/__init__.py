"""Benchmarks of post-training evaluation: each one a declaration, all of them answered and scored by the same code.

`registry` names them, `runner` answers their items, `scoring` makes scores of the answers. A benchmark is a
`base.Benchmark`: where its data lie, how an item becomes a prompt, how the answer is decoded, what an answer is worth.
"""
