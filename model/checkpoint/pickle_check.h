#ifndef DDL_MODEL_CHECKPOINT_PICKLE_CHECK_H_
#define DDL_MODEL_CHECKPOINT_PICKLE_CHECK_H_

#include <string_view>

#include "absl/status/status.h"

namespace ddl {

// Whether a pickle holds nothing but what torch.save writes for a dict of tensors, and is sound.
//
// A pickle is a program for a stack machine, and may name any class or function. This walks
// through the instructions without carrying them out, and lets pass only a few: those in which a
// dict of tensors is written, naming only what rebuilds tensors, each with its operands on the
// stack. LibTorch's own reader, which does not check the operands, then meets no surprise.
// `path` names the file in messages.
absl::Status CheckPickle(std::string_view pickle, std::string_view path);

}  // namespace ddl

#endif  // DDL_MODEL_CHECKPOINT_PICKLE_CHECK_H_
