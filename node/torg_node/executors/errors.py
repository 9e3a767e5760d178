"""Why an executor could not do what it was asked. Codes are stable; the docker and the sandbox executor share them."""

from __future__ import annotations

from torg_protocol.errors import TorgError


class ExecutorError(TorgError):
    """Base of all: something on this host failed, not the job itself. Other nodes may well succeed."""

    status = 500
    default_code = "executor_failed"


class ExecutorUnavailable(ExecutorError):
    """The engine or tool that this executor needs is absent or does not answer."""

    status = 503
    default_code = "executor_unavailable"


class ImageNotFound(ExecutorError):
    """No such image here or at its source. Retrying without a change does not help."""

    status = 404
    default_code = "image_not_found"


class ImageForbidden(ExecutorError):
    """The image exists, perhaps, but this node's owner does not let jobs use it."""

    status = 403
    default_code = "image_forbidden"


class RegistryRefused(ExecutorError):
    """The image's registry gives it to nobody who does not show (other) credentials. The same on every node: the job's own matter.
    `registry_login_needed`: the job shows none."""

    status = 401
    default_code = "registry_login_refused"


def refused(image: str, why: str, *, shown: bool) -> RegistryRefused:
    """`shown`: whether the job showed credentials."""
    if shown:
        return RegistryRefused(
            f"the registry of {image} does not take the job's credentials: {why}",
            field="image",
            value=image,
            hint="look at the secrets that registries names: may this user read this image, and is the token still good?",
        )
    return RegistryRefused(
        f"the registry does not give {image} to everybody: {why}",
        code="registry_login_needed",
        field="image",
        value=image,
        hint="is the name right? of a private image write registries: {HOST: {username: SECRET, password: SECRET}}",
    )


class AlreadyRunning(ExecutorError):
    """A container of this name is still there (running, or ended and not yet removed)."""

    status = 409
    default_code = "already_running"


class LaunchRefused(ExecutorError):
    """This executor cannot keep what the launch asks for (a GPU, a network, a name, a mount) and so does not start it."""

    status = 422
    default_code = "launch_refused"
