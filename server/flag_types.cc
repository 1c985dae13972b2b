#include "server/flag_types.h"

#include <cstddef>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace ddl {
namespace {

template <typename Value>
struct Word {
  const char* text;
  Value value;
};

template <typename Value, size_t kSize>
bool ParseWord(const Word<Value> (&words)[kSize], absl::string_view text, Value* value,
               std::string* error) {
  for (const Word<Value>& word : words) {
    if (text == word.text) {
      *value = word.value;
      return true;
    }
    absl::StrAppend(error, error->empty() ? "must be " : ", ", word.text);
  }
  return false;
}

template <typename Value, size_t kSize>
std::string UnparseWord(const Word<Value> (&words)[kSize], Value value) {
  for (const Word<Value>& word : words) {
    if (word.value == value) return word.text;
  }
  return "";
}

constexpr Word<std::optional<RunnerDevice>> kDevices[] = {
    {"auto", std::nullopt}, {"cpu", RunnerDevice::kCpu}, {"cuda", RunnerDevice::kCuda}};
constexpr Word<std::optional<RunnerDType>> kDTypes[] = {{"auto", std::nullopt},
                                                        {"float32", RunnerDType::kFloat32},
                                                        {"bfloat16", RunnerDType::kBFloat16}};
constexpr Word<Quantization> kQuantizations[] = {{"none", Quantization::kNone},
                                                 {"int8", Quantization::kInt8}};
constexpr Word<TokenizerChoice> kTokenizerChoices[] = {{"auto", TokenizerChoice::kAuto},
                                                       {"none", TokenizerChoice::kNone}};
constexpr Word<LogLevel> kLogLevels[] = {{"debug", LogLevel::kDebug},
                                         {"info", LogLevel::kInfo},
                                         {"warning", LogLevel::kWarning},
                                         {"error", LogLevel::kError}};
constexpr Word<LogFormat> kLogFormats[] = {{"text", LogFormat::kText}, {"json", LogFormat::kJson}};

constexpr char kBestInstructionSet[] = "auto";

// `otherwise` goes on with what is allowed.
bool ParseBytes(absl::string_view text, const char* otherwise, int64_t* bytes, std::string* error) {
  const absl::StatusOr<int64_t> parsed = ParseMemorySize(std::string(text));
  if (parsed.ok()) {
    *bytes = *parsed;
  } else {
    *error = absl::StrCat(parsed.status().message(), otherwise);
  }
  return parsed.ok();
}

}  // namespace

bool AbslParseFlag(absl::string_view text, DeviceFlag* device, std::string* error) {
  return ParseWord(kDevices, text, &device->value, error);
}
std::string AbslUnparseFlag(const DeviceFlag& device) {
  return UnparseWord(kDevices, device.value);
}

bool AbslParseFlag(absl::string_view text, DTypeFlag* dtype, std::string* error) {
  return ParseWord(kDTypes, text, &dtype->value, error);
}
std::string AbslUnparseFlag(const DTypeFlag& dtype) { return UnparseWord(kDTypes, dtype.value); }

bool AbslParseFlag(absl::string_view text, Quantization* quantization, std::string* error) {
  return ParseWord(kQuantizations, text, quantization, error);
}
std::string AbslUnparseFlag(Quantization quantization) {
  return UnparseWord(kQuantizations, quantization);
}

bool AbslParseFlag(absl::string_view text, InstructionSetFlag* set, std::string* error) {
  set->value = std::nullopt;
  if (text == kBestInstructionSet) return true;
  *error = absl::StrCat("must be ", kBestInstructionSet);
  for (const kernels::InstructionSet one : kernels::AllInstructionSets()) {
    if (text == kernels::Name(one)) {
      set->value = one;
      return true;
    }
    absl::StrAppend(error, ", ", kernels::Name(one));
  }
  return false;
}
std::string AbslUnparseFlag(const InstructionSetFlag& set) {
  return set.value.has_value() ? kernels::Name(*set.value) : kBestInstructionSet;
}

bool AbslParseFlag(absl::string_view text, TokenizerChoice* choice, std::string* error) {
  return ParseWord(kTokenizerChoices, text, choice, error);
}
std::string AbslUnparseFlag(TokenizerChoice choice) {
  return UnparseWord(kTokenizerChoices, choice);
}

bool AbslParseFlag(absl::string_view text, MemoryFlag* memory, std::string* error) {
  return ParseBytes(text, "", &memory->value, error);
}
std::string AbslUnparseFlag(MemoryFlag memory) {
  constexpr int64_t kMebibyte = 1 << 20;
  return memory.value % kMebibyte == 0 ? absl::StrCat(memory.value / kMebibyte, "MiB")
                                       : absl::StrCat(memory.value);
}

bool AbslParseFlag(absl::string_view text, CacheMemoryFlag* memory, std::string* error) {
  if (text == "auto") {
    memory->value.reset();
    return true;
  }
  return ParseBytes(text, ", or auto", &memory->value.emplace(), error);
}
std::string AbslUnparseFlag(const CacheMemoryFlag& memory) {
  return memory.value.has_value() ? absl::StrCat(*memory.value) : "auto";
}

bool AbslParseFlag(absl::string_view text, LogLevel* level, std::string* error) {
  return ParseWord(kLogLevels, text, level, error);
}
std::string AbslUnparseFlag(LogLevel level) { return UnparseWord(kLogLevels, level); }

bool AbslParseFlag(absl::string_view text, LogFormat* format, std::string* error) {
  return ParseWord(kLogFormats, text, format, error);
}
std::string AbslUnparseFlag(LogFormat format) { return UnparseWord(kLogFormats, format); }

absl::StatusOr<int64_t> ParseMemorySize(const std::string& text) {
  constexpr std::pair<const char*, double> kUnits[] = {
      {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0},
      {"KB", 1e3},     {"MB", 1e6},        {"GB", 1e9},           {"TB", 1e12},
      {"B", 1.0}};
  absl::string_view number = text;
  double unit = 1.0;
  for (const auto& [suffix, bytes] : kUnits) {
    if (absl::ConsumeSuffix(&number, suffix)) {
      unit = bytes;
      break;
    }
  }
  double value = 0.0;
  if (!absl::SimpleAtod(number, &value) || !(value * unit >= 1.0) || value * unit > 1e15) {
    return absl::InvalidArgumentError(
        "must be a size of at least one byte, such as 512MiB, 2GiB or 1073741824");
  }
  return static_cast<int64_t>(value * unit);
}

}  // namespace ddl
