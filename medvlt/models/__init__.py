# SPDX-License-Identifier: Apache-2.0
"""The backbone: loading, the packed forward, sharding."""
