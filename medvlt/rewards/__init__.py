# SPDX-License-Identifier: Apache-2.0
"""From a completion to a verdict (`grade`), and from a verdict to a number (`base`)."""
