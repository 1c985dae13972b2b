#ifndef DDL_MODEL_CHECKPOINT_SAFETENSORS_H_
#define DDL_MODEL_CHECKPOINT_SAFETENSORS_H_

#include <filesystem>

#include "absl/status/statusor.h"
#include "model/checkpoint/checkpoint.h"

namespace ddl {

// Maps one .safetensors file and proves its header: every tensor has a type we can serve, lies
// inside the file, is as long as its type and shape say, and together they cover the data without
// gaps or overlaps. Nothing is copied, except tensors that the file does not align to their
// element size. The values themselves are not looked at: NaN is legal.
//
// The file must not be shortened while the result lives (see MappedFile).
absl::StatusOr<TensorFile> ReadSafetensors(const std::filesystem::path& path);

}  // namespace ddl

#endif  // DDL_MODEL_CHECKPOINT_SAFETENSORS_H_
