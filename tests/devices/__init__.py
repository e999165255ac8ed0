# SPDX-License-Identifier: Apache-2.0
"""One program on one device, on eight, and in two processes of four."""
