#include "model/checkpoint/safetensors.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/mapped_file.h"
#include "base/problem_list.h"
#include "base/strict_json.h"
#include "model/checkpoint/convert_command.h"
#include "model/checkpoint/git_lfs.h"

namespace ddl {
namespace {

using Json = nlohmann::json;

// The format: 8 bytes with the header's length, little-endian; the header, a JSON object; data.
constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxRank = 8;

// Keeps the bytes of a TensorFile alive.
struct Storage {
  MappedFile file;
  std::vector<std::vector<std::byte>> copies;  // of misaligned tensors
};

// Where a tensor lies in the data: [begin, end).
struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
  std::string name;
};

struct Header {
  Json json;
  std::span<const std::byte> data;  // what follows the header
};

absl::Status Bad(const std::filesystem::path& path, const std::string& what) {
  return absl::InvalidArgumentError(path.string() + " is not a whole safetensors file: " + what);
}

absl::StatusOr<Header> ReadHeader(const MappedFile& file, const std::filesystem::path& path) {
  const std::span<const std::byte> bytes = file.bytes();
  if (bytes.size() < kLengthBytes) {
    return Bad(path, "it has " + std::to_string(bytes.size()) +
                         " bytes, the header's length takes " + std::to_string(kLengthBytes));
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i)
    length |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  if (length > kMaxHeaderBytes) {
    return Bad(path, "its first 8 bytes announce a header of " + std::to_string(length) +
                         " bytes, at most " + std::to_string(kMaxHeaderBytes) +
                         " are allowed (is this another format?)");
  }
  if (length > bytes.size() - kLengthBytes) {
    return Bad(path, "its header should take " + std::to_string(length) + " bytes, but only " +
                         std::to_string(bytes.size() - kLengthBytes) +
                         " follow (was it cut off, or is this another format?)");
  }
  const std::string_view text = file.text().substr(kLengthBytes, length);
  absl::StatusOr<Json> json = ParseJsonObject(text, "the header of " + path.string());
  if (!json.ok()) return json.status();
  return Header{*std::move(json), bytes.subspan(kLengthBytes + length)};
}

std::optional<uint64_t> AsUnsigned(const Json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  return value.get<uint64_t>();
}

std::optional<StoredType> ParseType(const Json& dtype) {
  for (StoredType type :
       {StoredType::kFloat32, StoredType::kBFloat16, StoredType::kFloat16, StoredType::kFloat64}) {
    if (dtype.is_string() && dtype.get_ref<const std::string&>() == StoredTypeName(type)) {
      return type;
    }
  }
  return std::nullopt;
}

// The shape, if it is a list of sizes whose product, in bytes, can be counted.
std::optional<std::vector<int64_t>> ParseShape(const Json& json, int64_t element_size) {
  if (!json.is_array() || json.size() > kMaxRank) return std::nullopt;
  std::vector<int64_t> shape;
  int64_t bytes = element_size;
  for (const Json& item : json) {
    const std::optional<uint64_t> size = AsUnsigned(item);
    if (!size || *size > INT64_MAX) return std::nullopt;
    shape.push_back(static_cast<int64_t>(*size));
    if (__builtin_mul_overflow(bytes, shape.back(), &bytes)) return std::nullopt;
  }
  return shape;
}

std::optional<std::pair<uint64_t, uint64_t>> ParseOffsets(const Json& json) {
  if (!json.is_array() || json.size() != 2) return std::nullopt;
  const std::optional<uint64_t> begin = AsUnsigned(json[0]);
  const std::optional<uint64_t> end = AsUnsigned(json[1]);
  if (!begin || !end || *begin > *end) return std::nullopt;
  return std::pair(*begin, *end);
}

// One entry of the header. Its view's data is where the file has it, aligned or not.
absl::StatusOr<TensorView> ParseEntry(const Json& entry, std::span<const std::byte> data,
                                      Extent& extent) {
  const auto bad = [](const char* key, const Json& found, const std::string& allowed) {
    return absl::InvalidArgumentError(std::string(key) + " is " + ShowJson(found) +
                                      ", allowed is " + allowed);
  };
  if (!entry.is_object()) return absl::InvalidArgumentError("found " + ShowJson(entry));
  const Json dtype = entry.value("dtype", Json());
  const std::optional<StoredType> type = ParseType(dtype);
  if (!type) return Convertible(bad("dtype", dtype, "F32, BF16, F16 or F64"));
  const Json shape_json = entry.value("shape", Json());
  const std::optional<std::vector<int64_t>> shape = ParseShape(shape_json, StoredTypeSize(*type));
  if (!shape) {
    return bad("shape", shape_json,
               "a list of at most " + std::to_string(kMaxRank) + " sizes that fits a file");
  }
  const Json offsets_json = entry.value("data_offsets", Json());
  const std::optional<std::pair<uint64_t, uint64_t>> offsets = ParseOffsets(offsets_json);
  if (!offsets) return bad("data_offsets", offsets_json, "[begin, end] with begin <= end");
  std::tie(extent.begin, extent.end) = *offsets;
  if (extent.end > data.size()) {
    return absl::InvalidArgumentError("ends at byte " + std::to_string(extent.end) +
                                      " of the data, but the file holds only " +
                                      std::to_string(data.size()) + " (was it cut off?)");
  }
  TensorView view{*type, *shape, data.data() + extent.begin};
  const auto expected = static_cast<uint64_t>(view.num_bytes());
  if (expected != extent.end - extent.begin) {
    return absl::InvalidArgumentError("takes " + std::to_string(extent.end - extent.begin) +
                                      " bytes, but shape " + ShowJson(shape_json) + " of " +
                                      std::string(StoredTypeName(*type)) + " takes " +
                                      std::to_string(expected));
  }
  return view;
}

// The tensors must cover the data exactly, so that no byte is read as two tensors or by none.
absl::Status CheckCoverage(std::vector<Extent> extents, uint64_t data_size,
                           const std::filesystem::path& path) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Extent& extent : extents) {
    if (extent.begin != covered) {
      return Bad(path, "tensor " + ShowName(extent.name) + " begins at byte " +
                           std::to_string(extent.begin) + " of the data, " +
                           (extent.begin < covered ? "inside another tensor that ends at byte "
                                                   : "after a gap that begins at byte ") +
                           std::to_string(covered));
    }
    covered = extent.end;
  }
  if (covered == data_size) return absl::OkStatus();
  return Bad(path, "its tensors end at byte " + std::to_string(covered) + " of the data, but " +
                       std::to_string(data_size) + " follow the header");
}

// Copies tensors that the file does not align to their elements.
void Align(TensorFile& file, Storage& storage) {
  for (auto& [name, view] : file.tensors) {
    const auto address = reinterpret_cast<uintptr_t>(view.data);
    if (address % static_cast<uintptr_t>(StoredTypeSize(view.type)) == 0) continue;
    storage.copies.emplace_back(view.data, view.data + view.num_bytes());
    view.data = storage.copies.back().data();
  }
}

}  // namespace

absl::StatusOr<TensorFile> ReadSafetensors(const std::filesystem::path& path) {
  absl::StatusOr<MappedFile> mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  if (absl::Status status = CheckNoGitLfsPointer(mapped->text(), path); !status.ok()) return status;
  const absl::StatusOr<Header> header = ReadHeader(*mapped, path);
  if (!header.ok()) return header.status();

  TensorFile file;
  ProblemList problems;
  bool is_convertible = true;
  std::vector<Extent> extents;
  for (const auto& [name, entry] : header->json.items()) {
    if (name == "__metadata__") continue;  // free text about the file
    Extent extent{0, 0, name};
    absl::StatusOr<TensorView> view = ParseEntry(entry, header->data, extent);
    if (!view.ok()) {
      problems.Add(ShowName(name) + ": " + std::string(view.status().message()));
      is_convertible = is_convertible && IsConvertible(view.status());
      continue;
    }
    extents.push_back(std::move(extent));
    file.tensors.emplace(name, *std::move(view));
  }
  if (!problems.empty()) {
    const absl::Status refusal = absl::InvalidArgumentError(
        problems.Message(path.string() + " has tensors that cannot be read:"));
    return is_convertible ? Convertible(refusal) : refusal;
  }
  if (absl::Status status = CheckCoverage(std::move(extents), header->data.size(), path);
      !status.ok()) {
    return status;
  }
  auto storage = std::make_shared<Storage>(Storage{*std::move(mapped), {}});
  Align(file, *storage);
  file.storage = std::move(storage);
  return file;
}

}  // namespace ddl
