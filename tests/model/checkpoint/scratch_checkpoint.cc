#include "tests/model/checkpoint/scratch_checkpoint.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

namespace ddl {
namespace {

using Json = nlohmann::json;

int64_t ElementSize(const std::string& dtype) {
  static const auto* const kSizes = new std::map<std::string, int64_t>{
      {"F64", 8}, {"I64", 8}, {"F32", 4}, {"I32", 4}, {"BF16", 2}, {"F16", 2}, {"U8", 1}};
  return kSizes->at(dtype);
}

std::pair<Json, std::string> SplitSafetensors(const std::string& bytes) {
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  return {Json::parse(bytes.substr(8, length)), bytes.substr(8 + length)};
}

}  // namespace

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void WriteFile(const std::filesystem::path& path, std::string_view bytes) {
  // A new file, never new contents of one that may be mapped. (ext4 also is much faster at it.)
  std::filesystem::remove(path);
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

ScratchFolder::ScratchFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "ddl-checkpoint-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make " + pattern);
  path_ = pattern;
}

ScratchFolder::ScratchFolder(const std::string& golden) : ScratchFolder() {
  const char* set = golden.starts_with("legacy_") ? "goldens-legacy"
                    : golden.starts_with("v2_")   ? "goldens-v2"
                                                  : "goldens";
  const std::filesystem::path from = std::filesystem::path("tests/data") / set / golden;
  for (const auto& entry : std::filesystem::directory_iterator(from)) {
    const std::filesystem::path name = entry.path().filename();
    if (name != "golden.safetensors" && name != "oracle.safetensors") {
      std::filesystem::copy_file(entry.path(), path_ / name);
    }
  }
}

ScratchFolder::~ScratchFolder() { std::filesystem::remove_all(path_); }

EditableTensors ReadTensors(const std::filesystem::path& path) {
  const auto [header, data] = SplitSafetensors(ReadFile(path));
  EditableTensors tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const size_t begin = entry["data_offsets"][0];
    const size_t end = entry["data_offsets"][1];
    tensors[name] = {entry["dtype"], entry["shape"], data.substr(begin, end - begin)};
  }
  return tensors;
}

void WriteTensors(const EditableTensors& tensors, const std::filesystem::path& path) {
  Json header;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  WriteFile(path, SafetensorsBytes(header.dump(), data));
}

EditableTensor ZeroTensor(const std::string& dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = ElementSize(dtype);
  for (const int64_t size : shape) bytes *= size;
  return {dtype, shape, std::string(static_cast<size_t>(bytes), '\0')};
}

void EditTensors(const std::filesystem::path& folder,
                 const std::function<void(EditableTensors&)>& edit) {
  EditableTensors tensors = ReadTensors(folder / "model.safetensors");
  edit(tensors);
  WriteTensors(tensors, folder / "model.safetensors");
}

void EditConfig(const std::filesystem::path& folder, const std::function<void(Json&)>& edit) {
  Json config = Json::parse(ReadFile(folder / "config.json"));
  edit(config);
  WriteFile(folder / "config.json", config.dump(1));
}

void EditHeader(const std::filesystem::path& folder, const std::function<void(Json&)>& edit) {
  auto [header, data] = SplitSafetensors(ReadFile(folder / "model.safetensors"));
  edit(header);
  WriteFile(folder / "model.safetensors", SafetensorsBytes(header.dump(), data));
}

std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + data;
}

}  // namespace ddl
