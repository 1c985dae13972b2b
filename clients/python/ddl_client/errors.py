"""What a failed call says: gRPC's status together with its google.rpc details."""

import contextlib

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

_DETAIL_TYPES = (error_details_pb2.BadRequest, error_details_pb2.ErrorInfo,
                 error_details_pb2.RetryInfo)


class RpcError(Exception):
    """A call that ended with a status other than OK.

    code: grpc.StatusCode
    message: what the server, or gRPC itself, says about it
    details: the google.rpc messages that came with it (BadRequest, ErrorInfo, RetryInfo)
    """

    def __init__(self, code, message, details=()):
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.details = list(details)

    @classmethod
    def from_grpc(cls, error):
        """The same error as gRPC raised it."""
        try:
            status = rpc_status.from_call(error)
        except ValueError:  # The details disagree with the status: trust the status.
            status = None
        return cls(error.code(), error.details() or "",
                   _unpacked(status.details) if status is not None else ())

    @property
    def violations(self):
        """(field, description) for each field of the request that was refused."""
        return [(violation.field, violation.description)
                for detail in self._of(error_details_pb2.BadRequest)
                for violation in detail.field_violations]

    @property
    def reason(self):
        """Why the server refused, as one word in capitals ("QUEUE_FULL"); None when not said."""
        return next((info.reason for info in self._of(error_details_pb2.ErrorInfo)), None)

    @property
    def retry_seconds(self):
        """When to try again, counted from now; None when the server does not say."""
        return next((info.retry_delay.ToTimedelta().total_seconds()
                     for info in self._of(error_details_pb2.RetryInfo)), None)

    def _of(self, kind):
        return (detail for detail in self.details if isinstance(detail, kind))


def _unpacked(anys):
    for packed in anys:
        for kind in _DETAIL_TYPES:
            message = kind()
            if packed.Unpack(message):
                yield message


@contextlib.contextmanager
def raising_rpc_error():
    """Turns the grpc.RpcError of a call made inside into an RpcError."""
    try:
        yield
    except grpc.RpcError as error:
        raise RpcError.from_grpc(error) from error
