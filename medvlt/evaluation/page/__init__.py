# SPDX-License-Identifier: Apache-2.0
"""A report as one HTML page that needs nothing else: tables, figures, and the completions themselves."""

from medvlt.evaluation.page.page import write_page

__all__ = ["write_page"]
