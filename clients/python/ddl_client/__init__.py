"""Client of the Deep Delta Learning inference server.

    from ddl_client import Client

    with Client("127.0.0.1:8500") as client:
        print(client.generate("Once upon a time", max_tokens=32).completions[0].text)

Answers are the protobuf messages of proto/ddl/v1 (Python package `ddl.v1`). A call that fails
raises RpcError.
"""

from ddl_client.client import Client, Stream, generate_request, vectors
from ddl_client.errors import RpcError

__all__ = ["Client", "RpcError", "Stream", "generate_request", "vectors"]
