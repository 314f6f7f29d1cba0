# SPDX-License-Identifier: Apache-2.0
"""Questions in: stored records, where they lie, how they are worded, and their pictures.

Nothing is imported here, so that one module costs no more than itself: `sources` reads, `mixture` combines, `writers`
stores, `prompts` words, `images` decodes and sizes, `options` shuffles.
"""
