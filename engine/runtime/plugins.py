"""Plugin execution providers: libraries that a package brings to any onnxruntime, and the devices that they find."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.errors import TargetUnavailableError
from engine.runtime.failures import explain_provider
from engine.runtime.library import load_errors, onnxruntime_module
from engine.runtime.native_output import held_back
from engine.runtime.nvidia import tensorrt_version
from engine.runtime.providers import PROVIDERS, Provider
from engine.target import ProviderName

# Names of the plugin providers that this process has loaded.
_registered: set[str] = set()


def register_plugin(name: ProviderName, library: Path) -> None:
    """Load a plugin execution provider's library, so that the provider is offered beside the built-in ones."""
    runtime = PROVIDERS[name].runtime
    module = onnxruntime_module()
    try:
        with held_back(on_failure="keep"):
            module.register_execution_provider_library(runtime, str(library))
    except load_errors() as error:
        raise explain_provider(error, name) from error
    _registered.add(runtime)


def load_plugin(name: ProviderName) -> None:
    """Load the installed plugin package of a provider that is neither built in nor loaded yet.

    Raises TargetUnavailableError where it does not load, or finds no device.
    """
    provider = PROVIDERS[name]
    if provider.plugin is None or provider.runtime in offered() or find_spec(provider.plugin) is None:
        return
    if provider.runtime not in _registered:
        try:
            library = Path(import_module(provider.plugin).get_library_path())
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            raise explain_provider(error, name) from error
        register_plugin(name, library)
    if not plugin_devices(provider.runtime):
        raise TargetUnavailableError(
            f"The plugin of the execution provider {name} is loaded, but finds no device on this host"
        )


def plugin_devices(runtime_name: str) -> list[Any]:
    """Give the devices that a loaded plugin finds, by the name that onnxruntime has for its provider."""
    runtime = onnxruntime_module()
    if not hasattr(runtime, "get_ep_devices"):
        return []
    return [device for device in runtime.get_ep_devices() if device.ep_name == runtime_name]


def offered() -> frozenset[str]:
    """Give the providers that onnxruntime claims to have, compiled in or as plugins, by its own names."""
    runtime = onnxruntime_module()
    plugins = [device.ep_name for device in runtime.get_ep_devices()] if hasattr(runtime, "get_ep_devices") else []
    return frozenset((*runtime.get_available_providers(), *plugins))


def built_in() -> frozenset[str]:
    """Give the providers that are compiled in; a registered plugin's name is listed beside them."""
    return frozenset(onnxruntime_module().get_available_providers()) - _registered


def is_listed(provider: Provider) -> bool:
    """Tell whether a provider is offered, or its plugin package installed; neither means that it runs."""
    has_plugin = provider.plugin is not None and find_spec(provider.plugin) is not None
    return has_plugin or provider.runtime in offered()


def ep_version(name: ProviderName) -> str | None:
    """Give the version that a plugin provider tells of itself, and TensorRT's; the other built-in ones are the package's."""
    if name == "tensorrt":
        return tensorrt_version()
    versions = {device.ep_metadata.get("version") for device in plugin_devices(PROVIDERS[name].runtime)}
    return next((str(version) for version in versions if version), None)
