# SPDX-License-Identifier: Apache-2.0
"""What the compiler has to say: findings about operations, groups and the model as a whole."""
