"""Generates the Python code of the API (package `ddl.v1`) from proto/ while the wheel is built, and adds the checkpoint
converter of tools/, which `ddl convert` runs.

By itself, `python generate_stubs.py FOLDER` writes the same code into a folder.
"""

import pathlib
import sys
import tempfile

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = pathlib.Path(__file__).resolve().parent
CONVERTER = ("convert_checkpoint.py", "ddl_config.py", "ddl_torch.py", "safetensors_writer.py")


def repository_folder(name):
    """A folder of the repository, or the copy that the source distribution carries."""
    for folder in (HERE / name, HERE.parents[1] / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no {name}/ in {HERE} nor two folders above it")


def generate(output):
    """Writes ddl/v1/*_pb2.py, *_pb2.pyi and *_pb2_grpc.py under `output`."""
    root = repository_folder("proto")
    well_known_types = pathlib.Path(protoc.__file__).parent / "_proto"
    status = protoc.main([
        "protoc", f"--proto_path={root}", f"--proto_path={well_known_types}",
        f"--python_out={output}", f"--pyi_out={output}", f"--grpc_python_out={output}",
        *(str(path) for path in sorted(root.glob("ddl/v1/*.proto")))])
    if status != 0:
        raise RuntimeError(f"protoc failed with status {status}")


class StubsHook(BuildHookInterface):
    def initialize(self, version, build_data):
        self.folder = tempfile.TemporaryDirectory()
        generate(self.folder.name)
        build_data["force_include"][f"{self.folder.name}/ddl"] = "ddl"
        for name in CONVERTER:
            build_data["force_include"][str(repository_folder("tools") / name)] = f"ddl_client/converter/{name}"

    def finalize(self, version, build_data, artifact_path):
        self.folder.cleanup()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    generate(sys.argv[1])
