#include "model/checkpoint/pytorch_pickle.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/InferenceMode.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/unpickler.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
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
#include "model/checkpoint/pickle_check.h"

namespace ddl {
namespace {

// Gives torch's zip reader the bytes of a mapped file.
class MappedReader : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit MappedReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  size_t size() const override { return bytes_.size(); }

  size_t read(uint64_t position, void* to, size_t count, const char*) const override {
    if (position >= bytes_.size()) return 0;
    const size_t taken = std::min<size_t>(count, bytes_.size() - position);
    std::memcpy(to, bytes_.data() + position, taken);
    return taken;
  }

 private:
  std::span<const std::byte> bytes_;
};

// The archive's records, each read once: tensors that share a storage name the same record.
// Throws what LibTorch throws.
class Records {
 public:
  Records(caffe2::serialize::PyTorchStreamReader& archive, size_t file_size)
      : archive_(archive), file_size_(file_size) {}

  // Valid as long as the map that Take gives.
  std::string_view Read(const std::string& name) {
    auto it = records_.find(name);
    if (it == records_.end()) {
      // torch.save does not compress: whoever announces more than the whole file lies.
      TORCH_CHECK(archive_.getRecordSize(name) <= file_size_, "record ", name,
                  " is larger than its file");
      it = records_.emplace(name, archive_.getRecord(name)).first;
      const auto& [data, size] = it->second;
      sizes_.emplace(data.get(), size);
    }
    const auto& [data, size] = it->second;
    return {static_cast<const char*>(data.get()), size};
  }

  // The bytes of the record that begins at this address; 0 if none does.
  size_t SizeAt(const void* begin) const {
    const auto it = sizes_.find(begin);
    return it == sizes_.end() ? 0 : it->second;
  }

  using Map = std::map<std::string, std::tuple<at::DataPtr, size_t>>;
  Map Take() && { return std::move(records_); }

 private:
  caffe2::serialize::PyTorchStreamReader& archive_;
  const size_t file_size_;
  Map records_;
  std::map<const void*, size_t> sizes_;
};

// Keeps the bytes of a TensorFile alive.
struct Storage {
  Records::Map records;
  std::vector<at::Tensor> tensors;
};

std::optional<StoredType> StoredTypeOf(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return StoredType::kFloat32;
    case at::kBFloat16:
      return StoredType::kBFloat16;
    case at::kHalf:
      return StoredType::kFloat16;
    case at::kDouble:
      return StoredType::kFloat64;
    default:
      return std::nullopt;
  }
}

// How many elements of the storage the tensor reaches over, from the storage's start; nothing if
// its sizes cannot be those of a tensor. The pickle sets sizes, strides and offset, and LibTorch
// takes them as they are.
std::optional<int64_t> Reach(const at::Tensor& tensor) {
  int64_t reach = tensor.storage_offset();
  if (reach < 0) return std::nullopt;
  int64_t count = 1;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    const int64_t size = tensor.size(axis);
    const int64_t stride = tensor.stride(axis);
    int64_t extent = 0;
    if (size < 1 || stride < 0 || __builtin_mul_overflow(size - 1, stride, &extent) ||
        __builtin_add_overflow(reach, extent, &reach) ||
        __builtin_mul_overflow(count, size, &count)) {
      return std::nullopt;
    }
  }
  // A tensor with a zero stride can be larger than its storage; no weight is.
  if (__builtin_add_overflow(reach, 1, &reach) || count > reach) return std::nullopt;
  return reach;
}

absl::StatusOr<TensorView> ViewOf(const at::IValue& value, const Records& records,
                                  Storage& storage) {
  if (!value.isTensor()) {
    return absl::InvalidArgumentError("found a " + value.tagKind() + ", expected a tensor");
  }
  const at::Tensor& tensor = value.toTensor();
  const std::optional<StoredType> type = StoredTypeOf(tensor.scalar_type());
  if (!type) {
    return absl::InvalidArgumentError(std::string("dtype is ") +
                                      c10::toString(tensor.scalar_type()) +
                                      ", allowed is Float, BFloat16, Half or Double");
  }
  const std::optional<int64_t> reach = Reach(tensor);
  const size_t record_size = records.SizeAt(tensor.storage().data());
  if (!reach || static_cast<uint64_t>(*reach) > record_size / StoredTypeSize(*type)) {
    return absl::InvalidArgumentError("reaches beyond its record of " +
                                      std::to_string(record_size) + " bytes, or is empty");
  }
  const at::Tensor& kept = storage.tensors.emplace_back(tensor.contiguous());
  return TensorView{*type, kept.sizes().vec(),
                    static_cast<const std::byte*>(kept.const_data_ptr())};
}

absl::StatusOr<TensorFile> TensorsOf(const at::IValue& root, Records records,
                                     const std::string& path) {
  TensorFile file;
  auto storage = std::make_shared<Storage>();
  ProblemList problems;
  for (const auto& entry : root.toGenericDict()) {
    if (!entry.key().isString()) {
      problems.Add("found a key that is a " + entry.key().tagKind() + ", expected a tensor's name");
      continue;
    }
    const std::string& name = entry.key().toStringRef();
    absl::StatusOr<TensorView> view = ViewOf(entry.value(), records, *storage);
    if (view.ok()) {
      file.tensors.emplace(name, *std::move(view));
    } else {
      problems.Add(ShowName(name) + ": " + std::string(view.status().message()));
    }
  }
  if (!problems.empty()) {
    return Convertible(
        absl::InvalidArgumentError(problems.Message(path + " has entries that cannot be read:")));
  }
  storage->records = std::move(records).Take();
  file.storage = std::move(storage);
  return file;
}

// May throw.
absl::StatusOr<TensorFile> ReadArchive(const MappedFile& file, const std::string& path) {
  caffe2::serialize::PyTorchStreamReader archive(std::make_shared<MappedReader>(file.bytes()));
  Records records(archive, file.bytes().size());
  if (archive.hasRecord("byteorder") && records.Read("byteorder") != "little") {
    return absl::InvalidArgumentError(path +
                                      " was written on a big-endian machine, expected "
                                      "little-endian numbers");
  }
  if (!archive.hasRecord("data.pkl")) {
    return absl::InvalidArgumentError(path +
                                      " has no record data.pkl: torch.save did not write it");
  }
  const std::string_view pickle = records.Read("data.pkl");
  if (absl::Status status = CheckPickle(pickle, path); !status.ok()) return status;

  const auto read_pickle = [rest = pickle](char* to, size_t count) mutable {
    const size_t taken = rest.copy(to, count);
    rest.remove_prefix(taken);
    return taken;
  };
  const auto read_record = [&records](const std::string& key) {
    // Not owned by the tensor: records outlives it, and shares it between tied names.
    return at::DataPtr(const_cast<char*>(records.Read("data/" + key).data()), at::kCPU);
  };
  // Whatever device the tensors were saved from, they come to the CPU.
  torch::jit::Unpickler unpickler(read_pickle, /*type_resolver=*/nullptr, /*obj_loader=*/nullptr,
                                  read_record, at::Device(at::kCPU));
  const at::IValue root = unpickler.parse_ivalue();
  return TensorsOf(root, std::move(records), path);
}

}  // namespace

absl::StatusOr<TensorFile> ReadPytorchPickle(const std::filesystem::path& path) {
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  if (absl::Status status = CheckNoGitLfsPointer(file->text(), path); !status.ok()) return status;
  if (!file->text().starts_with("PK")) {
    const absl::Status refusal = absl::InvalidArgumentError(
        path.string() + " is not the zip archive that torch.save has written since PyTorch 1.6");
    // Older ones are pickles: they begin with the protocol's number.
    return file->text().starts_with("\x80") ? Convertible(refusal) : refusal;
  }
  const auto damaged = [&](std::string_view why) {
    return absl::InvalidArgumentError(path.string() + " is damaged or was cut off: " +
                                      std::string(why.substr(0, why.find('\n'))));
  };
  try {
    const c10::InferenceMode no_gradients;
    return ReadArchive(*file, path.string());
  } catch (const c10::Error& error) {
    return damaged(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return damaged(error.what());
  }
}

}  // namespace ddl
