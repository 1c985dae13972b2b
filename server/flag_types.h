#ifndef DDL_SERVER_FLAG_TYPES_H_
#define DDL_SERVER_FLAG_TYPES_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/kernels/instruction_set.h"
#include "model/runner_options.h"
#include "server/config.h"
#include "server/telemetry/logging.h"

// Types of flags that are more than a number: one of a few words, or an amount of memory. Abseil
// finds their AbslParseFlag and AbslUnparseFlag by name.

namespace ddl {

struct DeviceFlag {
  std::optional<RunnerDevice> value;  // none: "auto"
};
struct DTypeFlag {
  std::optional<RunnerDType> value;  // none: "auto"
};
struct InstructionSetFlag {
  std::optional<kernels::InstructionSet> value;  // none: "auto"
};
struct MemoryFlag {
  int64_t value = 0;  // bytes
};
struct CacheMemoryFlag {
  std::optional<int64_t> value;  // bytes; none: "auto"
};

bool AbslParseFlag(absl::string_view text, DeviceFlag* device, std::string* error);
std::string AbslUnparseFlag(const DeviceFlag& device);
bool AbslParseFlag(absl::string_view text, DTypeFlag* dtype, std::string* error);
std::string AbslUnparseFlag(const DTypeFlag& dtype);
bool AbslParseFlag(absl::string_view text, Quantization* quantization, std::string* error);
std::string AbslUnparseFlag(Quantization quantization);
bool AbslParseFlag(absl::string_view text, InstructionSetFlag* set, std::string* error);
std::string AbslUnparseFlag(const InstructionSetFlag& set);
bool AbslParseFlag(absl::string_view text, TokenizerChoice* choice, std::string* error);
std::string AbslUnparseFlag(TokenizerChoice choice);
bool AbslParseFlag(absl::string_view text, MemoryFlag* memory, std::string* error);
std::string AbslUnparseFlag(MemoryFlag memory);
bool AbslParseFlag(absl::string_view text, CacheMemoryFlag* memory, std::string* error);
std::string AbslUnparseFlag(const CacheMemoryFlag& memory);
bool AbslParseFlag(absl::string_view text, LogLevel* level, std::string* error);
std::string AbslUnparseFlag(LogLevel level);
bool AbslParseFlag(absl::string_view text, LogFormat* format, std::string* error);
std::string AbslUnparseFlag(LogFormat format);

// "512MiB", "2GiB", "1.5GB", "1073741824" (bytes).
absl::StatusOr<int64_t> ParseMemorySize(const std::string& text);

}  // namespace ddl

#endif  // DDL_SERVER_FLAG_TYPES_H_
