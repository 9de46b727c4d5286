"""What `adaptide doctor` looks at in the computing half: processor, GPU, threads, memory, the method."""

from collections.abc import Iterator, Mapping

import psutil
import torch

from service.doctor.findings import Check, Finding, ok, problem, warning
from service.kit.machine import cores, cpu_name
from service.settings import Device, Settings
from trainer.methods import make_method

GIB = 2**30
LITTLE_MEMORY = GIB
SLOW = frozenset({"DEFAULT", "NO AVX"})


def checks(settings: Settings) -> Mapping[str, Check]:
    return {
        "processor": lambda: check_processor(settings, torch.backends.cpu.get_cpu_capability()),
        "device": lambda: check_device(settings),
        "memory": lambda: check_memory(psutil.virtual_memory().available),
        "method": lambda: check_method(settings),
    }


def check_processor(settings: Settings, instructions: str) -> Iterator[Finding]:
    said = f"{cpu_name()}, {cores()} cores for this process, {instructions}"
    if instructions in SLOW:
        advice = "use a processor or a virtual machine that shows AVX2: searches and training are several times faster"
        yield warning("processor", said, advice)
    else:
        yield ok("processor", said)
    if settings.processes > cores() and not torch.cuda.is_available():
        said = f"PROCESSES is {settings.processes} on {cores()} cores"
        yield warning("processor", said, "lower ADAPTIDE_PROCESSES: training processes would wait for one another")


def check_device(settings: Settings) -> Iterator[Finding]:
    there = torch.cuda.is_available()
    if settings.device is Device.CUDA and not there:
        advice = "install a torch built for CUDA and its driver, or set ADAPTIDE_DEVICE=cpu"
        yield problem("device", f"ADAPTIDE_DEVICE=cuda, and torch {torch.__version__} finds no GPU", advice)
    elif settings.device is Device.CPU and there:
        said = f"ADAPTIDE_DEVICE=cpu beside a GPU ({torch.cuda.get_device_name()})"
        yield warning("device", said, "set ADAPTIDE_DEVICE=auto to use it")
    elif there:
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield ok("device", f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free, torch {torch.__version__}")
    else:
        yield ok("device", f"CPU, torch {torch.__version__}")


def check_memory(available: int) -> Iterator[Finding]:
    said = f"{available / GIB:.1f} GiB of memory are free"
    if available < LITTLE_MEMORY:
        yield warning("memory", said, "close what else runs here, or use a larger machine: an update may be killed")
    else:
        yield ok("memory", said)


def check_method(settings: Settings) -> Iterator[Finding]:
    """Raises ConfigurationError for one that there is not."""
    yield ok("method", f"updates learn by {make_method(settings).name}")
