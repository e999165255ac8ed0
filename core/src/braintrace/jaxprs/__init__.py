# SPDX-License-Identifier: Apache-2.0
"""Reading, slicing and running jaxprs, and which position depends on which. It knows nothing of
hidden states or traces.
"""
