# SPDX-License-Identifier: Apache-2.0
"""What the examples share, with one another and with the benchmarks: data, networks, pictures."""
