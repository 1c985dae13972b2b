#ifndef DDL_MODEL_CHECKPOINT_PYTORCH_PICKLE_H_
#define DDL_MODEL_CHECKPOINT_PYTORCH_PICKLE_H_

#include <filesystem>

#include "absl/status/statusor.h"
#include "model/checkpoint/checkpoint.h"

namespace ddl {

// Reads the pytorch_model.bin that the official save_pretrained writes: torch.save of a plain
// dict from names to tensors, from whichever device. The tensors are copied out of the file
// (names on one storage share one copy) and are contiguous in the result.
//
// No code from the file runs: a pickle may name classes and functions, and everything but those
// that rebuild a tensor is refused before anything is built. A collections.OrderedDict, which a
// bare state_dict() is, and what else a training run saves are refused as Convertible.
absl::StatusOr<TensorFile> ReadPytorchPickle(const std::filesystem::path& path);

}  // namespace ddl

#endif  // DDL_MODEL_CHECKPOINT_PYTORCH_PICKLE_H_
