# SPDX-License-Identifier: Apache-2.0
"""How steps are run and differentiated: one, several, a sequence in blocks or in windows."""
