#ifndef DDL_MODEL_CHECKPOINT_CONVERT_COMMAND_H_
#define DDL_MODEL_CHECKPOINT_CONVERT_COMMAND_H_

#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace ddl {

// `text` as a POSIX shell takes it for one word, whatever it holds.
std::string ShellWord(std::string_view text);

// The command that writes what is in `source`, a folder or a file, as a folder that can be served,
// beside it.
std::string ConvertCommand(const std::filesystem::path& source);

// Marks a refusal that conversion mends: what is stored is whole, but in a form that is not read.
absl::Status Convertible(absl::Status refusal);
bool IsConvertible(const absl::Status& refusal);

// The refusal with the command at its end if it is marked so, else itself.
absl::Status WithConvertCommand(const absl::Status& refusal, const std::filesystem::path& source);

}  // namespace ddl

#endif  // DDL_MODEL_CHECKPOINT_CONVERT_COMMAND_H_
