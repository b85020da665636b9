"""Every error a caller can act on.

::

    RnpError
    ├── InputError (also ValueError)   images, options or arguments that do not fit
    ├── NetworkError
    │   ├── TracingError               the backbone cannot be followed
    │   └── NothingPrunableError       no convolution of the backbone can be pruned
    ├── TrainingError                  the loss stopped being a number
    ├── CheckpointError                missing, foreign or unsafe checkpoint
    ├── ExportError
    │   └── VerificationError          an exported branch differs from the reference
    ├── OutputError                    the output cannot be written
    │   └── OutputExistsError          would overwrite; pass the overwrite flag
    ├── BundleError
    │   ├── FormatVersionError         written by another major version
    │   └── IntegrityError             a file or value differs from what was recorded
    ├── OverloadedError                more requests wait than were allowed to
    └── EngineError
        ├── DeviceError                no GPU that can be used, lost, or out of memory
        ├── EngineSetMismatchError     built for another machine or runtime
        ├── MissingRuntimeError        an optional package is not installed
        └── ControllerClosedError      used after close

A message says what is wrong, where (stage, option, file), and what to do. ``code`` is a short stable
name for programs; those of bundles and engine sets are the C++ library's too (docs/bundle-format.md).
"""

__all__ = [
    "BundleError",
    "CheckpointError",
    "ControllerClosedError",
    "DeviceError",
    "EngineError",
    "EngineSetMismatchError",
    "ExportError",
    "FormatVersionError",
    "InputError",
    "IntegrityError",
    "MissingRuntimeError",
    "NetworkError",
    "NothingPrunableError",
    "OutputError",
    "OutputExistsError",
    "OverloadedError",
    "RnpError",
    "TracingError",
    "TrainingError",
    "VerificationError",
]


class RnpError(Exception):
    """The root of every error a caller can act on.

    Attributes:
        code: What is wrong, in a word that stays; the class's own where none is passed.
    """

    code = "internal"

    def __init__(self, *args: object, code: str | None = None) -> None:
        super().__init__(*args)
        if code is not None:
            self.code = code


class InputError(RnpError, ValueError):
    """Images, options or arguments do not fit what the network takes."""

    code = "input"


class NetworkError(RnpError):
    """The backbone cannot become a runtime-pruned network."""

    code = "network"


class TracingError(NetworkError):
    """torch.fx cannot follow the backbone, or its trace behaves differently."""

    code = "tracing"


class NothingPrunableError(NetworkError):
    """Every convolution of the backbone has to stay whole."""

    code = "nothing-prunable"


class TrainingError(RnpError):
    """Training cannot go on; the message names the phase and the step."""

    code = "training"


class CheckpointError(RnpError):
    """A checkpoint is missing, not one of ours, or would run code when read."""

    code = "checkpoint"


class ExportError(RnpError):
    """A stage could not be exported; the message names it."""

    code = "export"


class VerificationError(ExportError):
    """An exported branch differs from the masked torch reference."""

    code = "verification"


class OutputError(RnpError):
    """The output path cannot be written."""

    code = "output"


class OutputExistsError(OutputError):
    """The output path holds something already, and overwriting was not asked for."""

    code = "output-exists"


class BundleError(RnpError):
    """A bundle cannot be read: ``missing``, ``unreadable``, ``json``, ``fields`` or ``plan``."""

    code = "fields"


class FormatVersionError(BundleError):
    """The bundle was written in a format this version does not read."""

    code = "version"


class IntegrityError(BundleError):
    """A file or a recorded value is not what the manifest's hashes say, or not where it says.

    Its codes: ``values-hash``, ``path``, ``link``, ``unreadable``, ``file-missing``, ``file-size``,
    ``file-hash``, ``changed`` and ``other-bundle``.
    """

    code = "file-hash"


class OverloadedError(RnpError):
    """As many requests wait as may; wait and retry, send fewer, or allow more."""

    code = "overloaded"


class EngineError(RnpError):
    """An inference engine could not be made or run; the message names the piece."""

    code = "engine"


class DeviceError(EngineError):
    """There is no GPU that can be used, or the one there is was lost or is out of memory."""

    code = "device"


class EngineSetMismatchError(EngineError):
    """An engine set was built for another machine or runtime; the message says what differs."""

    code = "mismatch"


class MissingRuntimeError(EngineError):
    """An optional package is needed here; the message names the extra to install."""

    code = "runtime"


class ControllerClosedError(EngineError):
    """A controller, or a batcher before it, was used after ``close``."""

    code = "closed"
