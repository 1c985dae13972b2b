#ifndef DDL_TESTS_MODEL_CHECKPOINT_SCRATCH_CHECKPOINT_H_
#define DDL_TESTS_MODEL_CHECKPOINT_SCRATCH_CHECKPOINT_H_

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace ddl {

std::string ReadFile(const std::filesystem::path& path);
void WriteFile(const std::filesystem::path& path, std::string_view bytes);

// A new folder under the system's folder for temporary files; gone with this object.
class ScratchFolder {
 public:
  ScratchFolder();
  // With copies of a golden case's checkpoint.
  explicit ScratchFolder(const std::string& golden);
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder();

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// A safetensors file in parts that tests can change, right or wrong.
struct EditableTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using EditableTensors = std::map<std::string, EditableTensor>;

EditableTensors ReadTensors(const std::filesystem::path& path);
void WriteTensors(const EditableTensors& tensors, const std::filesystem::path& path);
EditableTensor ZeroTensor(const std::string& dtype, const std::vector<int64_t>& shape);

// Read, change, write back.
void EditTensors(const std::filesystem::path& folder,
                 const std::function<void(EditableTensors&)>& edit);
void EditConfig(const std::filesystem::path& folder,
                const std::function<void(nlohmann::json&)>& edit);
// The header of model.safetensors alone; the data stay.
void EditHeader(const std::filesystem::path& folder,
                const std::function<void(nlohmann::json&)>& edit);

// A safetensors file of a given header text and data.
std::string SafetensorsBytes(const std::string& header, const std::string& data);

}  // namespace ddl

#endif  // DDL_TESTS_MODEL_CHECKPOINT_SCRATCH_CHECKPOINT_H_
