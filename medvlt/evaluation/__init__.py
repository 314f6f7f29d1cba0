# SPDX-License-Identifier: Apache-2.0
"""What can be concluded from graded completions."""
