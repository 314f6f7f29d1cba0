# SPDX-License-Identifier: Apache-2.0
"""What is counted during validation, as torchmetrics classes: states are sums, so ranks and epochs merge exactly."""
