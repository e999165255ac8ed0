# SPDX-License-Identifier: Apache-2.0
"""How steps are run and differentiated: one (online_step), several (window_step), a sequence in
blocks or in windows.
"""
