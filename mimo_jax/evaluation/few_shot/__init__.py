"""Few-shot multiple choice by likelihood: what a base model does, from its context alone, that it was not trained on.

A question is a prompt with some worked examples; its candidates are ways to go on, written or spoken. The model chooses
the candidate whose likelihood the examples and the query raise most: log p(candidate | prompt) minus
log p(candidate | the prompt without what decides), "domain conditional PMI" of arXiv 2104.08315. So neither the length
nor the ease of a candidate counts, and guessing is right as often as chance. `choices` is the form of a set, `builtin`
makes one from the built-in corpus's voices, `hook` scores one, inside a training run too.
"""
