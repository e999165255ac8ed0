# SPDX-License-Identifier: Apache-2.0
"""From a model to an ETraceGraph, pass by pass: tracing, control, groups, reach (with the cones of
groups), relations, perturbation, coverage, findings.
"""

from __future__ import annotations
