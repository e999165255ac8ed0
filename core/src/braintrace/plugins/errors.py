# SPDX-License-Identifier: Apache-2.0
"""Errors about plugins: one text, raised as the type that each kind of access expects."""

from __future__ import annotations

from typing import Any


class PluginError(Exception):
    """A plugin, or a name that a plugin provides, cannot be used; the text says why.

    ``provider`` is the distribution concerned.
    """

    def __init__(self, text: str, provider: str = "") -> None:
        super().__init__(text)
        self.provider = provider


class PluginAttributeError(PluginError, AttributeError):
    """Raised by attribute access, so that ``hasattr`` is false."""

    @classmethod
    def of(cls, error: PluginError, name: str, module: Any) -> PluginAttributeError:
        """The same error for attribute access of ``name`` on ``module``."""
        found = cls(str(error), error.provider)
        found.name, found.obj = name, module
        return found


class PluginImportError(PluginError, ModuleNotFoundError):
    """Raised by import statements; its ``name`` is the provider's import package."""

    @classmethod
    def of(cls, error: PluginError) -> PluginImportError:
        """The same error for an import statement."""
        found = cls(str(error), error.provider)
        found.name = error.provider.replace("-", "_")
        return found


class IncompatibleError(Exception):
    """The plugin speaks another version of the plugin API, which the text is."""
