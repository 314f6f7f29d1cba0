# SPDX-License-Identifier: Apache-2.0
"""How sure a score is, and whether a difference is more than chance: numpy and the standard library.

Scores are one number per question in [0, 1], booleans or means over completions; a question is one observation,
whatever the number of its completions. `intervals` and `paired` give bounds and p-values, `multiplicity` corrects
these, `power` says what could have been found, `repeats` and `passes` look inside several completions of a question.
"""
