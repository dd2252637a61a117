"""The offline world: real flags, real encyclopaedia text, scenes drawn from a seed, questions with gold answers."""
