"""What this process can train with: PyTorch proven by a step of gradients, or the reason why not."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.errors import EngineError
from engine.train.training_support import installed


@dataclass(frozen=True)
class Training:
    """PyTorch on this host. `cuda` is the version that it was built with, `gpu` the name of the GPU that it trains on."""

    available: bool
    reason: str | None = None
    torch: str | None = None
    device: Literal["cpu", "cuda"] | None = None
    gpu: str | None = None
    cuda: str | None = None


def training() -> dict[str, Any]:
    """Take the gradient of a small product in PyTorch, where it would train; say with which version on what.

    `available` is True where it ran; else `reason` says why not. PyTorch's libraries may end the process: whoever has to go on
    asks in a child.
    """
    return asdict(_tried())


def _tried() -> Training:
    try:
        return _gradient_step()
    except EngineError as error:
        return Training(available=False, reason=" ".join(filter(None, (error.message, error.hint))))
    except (OSError, RuntimeError, AttributeError) as error:
        # A library of it is missing or of another version, or the driver does not let it compute.
        told = str(error).partition("\n")[0]
        state = "is installed, but does not compute" if installed() else "does not load"
        return Training(available=False, reason=f"PyTorch {state} here: {told}")


def _gradient_step() -> Training:
    from engine.train.framework import device, torch  # noqa: PLC0415  # PyTorch is loaded only where it is asked for

    place = device()
    weight = torch.ones(2, 2, device=place, requires_grad=True)
    (weight @ weight).sum().backward()
    if float(weight.grad.sum()) != 16.0:
        return Training(available=False, reason="PyTorch gives a wrong gradient of a product of two matrices here.")
    on_gpu = place.type == "cuda"
    return Training(
        available=True,
        torch=str(torch.__version__),
        device="cuda" if on_gpu else "cpu",
        gpu=str(torch.cuda.get_device_name(place)) if on_gpu else None,
        cuda=torch.version.cuda,
    )
