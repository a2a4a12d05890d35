"""AutoIF (arXiv 2406.13542): instructions whose verification functions a teacher writes and that check each other.

seed instructions -> augmented instructions -> functions with test cases -> cross-check -> back-translation -> queries
-> answers -> filter. `pipeline` is the order; `requests` what the teacher is asked; `replies` how its answers are read;
`cross_check` which functions and cases are kept. Numbers are those of the authors' code (github.com/QwenLM/AutoIF at
d67b9ba) where it has them; each deviation is marked. A teacher's answers are kept by request (`uniapl.answer_cache`),
so a pipeline that was stopped asks only for what is missing.
"""

PROMPTS = "prompts.jsonl"  # in the directory that the stage fills
