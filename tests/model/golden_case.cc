#include "tests/model/golden_case.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "nlohmann/json.hpp"

namespace ddl {
namespace {

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> floats;
  std::vector<int32_t> ints;
};

// Goldens hold integers too, which checkpoints may not: they have their own short reader.
std::map<std::string, Tensor> ReadTensors(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  const auto header = nlohmann::json::parse(bytes.substr(8, header_size));
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, info] : header.items()) {
    if (name == "__metadata__") continue;
    Tensor& tensor = tensors[name];
    tensor.shape = info["shape"].get<std::vector<int64_t>>();
    const size_t begin = 8 + header_size + info["data_offsets"][0].get<size_t>();
    const size_t count =
        (info["data_offsets"][1].get<size_t>() - info["data_offsets"][0].get<size_t>()) / 4;
    const bool is_float = info["dtype"] == "F32";
    if (!is_float && info["dtype"] != "I32") throw std::runtime_error("unexpected dtype: " + name);
    tensor.floats.resize(is_float ? count : 0);
    tensor.ints.resize(is_float ? 0 : count);
    void* to = is_float ? static_cast<void*>(tensor.floats.data()) : tensor.ints.data();
    std::memcpy(to, bytes.data() + begin, count * 4);
  }
  return tensors;
}

// Row b of a tensor whose first dimension is the batch.
template <typename T>
std::vector<T> BatchRow(const std::vector<T>& values, int64_t batch, int64_t b) {
  const auto size = static_cast<int64_t>(values.size()) / batch;
  return std::vector<T>(values.begin() + b * size, values.begin() + (b + 1) * size);
}

GoldenCase LoadCase(const std::filesystem::path& folder) {
  std::map<std::string, Tensor> tensors = ReadTensors(folder / "golden.safetensors");
  if (std::filesystem::exists(folder / "oracle.safetensors")) {
    for (auto& [name, tensor] : ReadTensors(folder / "oracle.safetensors")) tensors[name] = tensor;
  }
  GoldenCase golden;
  golden.name = folder.filename().string();
  golden.folder = folder;
  for (const std::string tag : {"", "_short", "_one"}) {
    const Tensor& ids = tensors.at("input_ids" + tag);
    const int64_t batch = ids.shape[0];
    for (int64_t b = 0; b < batch; ++b) {
      GoldenPrompt prompt;
      prompt.name = golden.name + "/input_ids" + tag + "[" + std::to_string(b) + "]";
      prompt.tokens = BatchRow(ids.ints, batch, b);
      prompt.logits = BatchRow(tensors.at("logits" + tag).floats, batch, b);
      prompt.hidden = BatchRow(tensors.at("hidden" + tag).floats, batch, b);
      prompt.greedy = BatchRow(tensors.at("greedy" + tag).ints, batch, b);
      const auto state = [&](const char* name) {
        if (!tag.empty() || !tensors.contains(name)) return std::vector<float>();
        return BatchRow(tensors.at(name).floats, batch, b);
      };
      prompt.x_init = state("x_init");
      prompt.x_block0_attn = state("x_block0_attn");
      prompt.x_block0 = state("x_block0");
      prompt.x_last = state("x_last");
      if (tag.empty() && tensors.contains("logits_accelerated")) {
        prompt.logits_accelerated = BatchRow(tensors.at("logits_accelerated").floats, batch, b);
      }
      golden.prompts.push_back(std::move(prompt));
    }
  }
  return golden;
}

}  // namespace

std::vector<GoldenCase> LoadGoldenCases() {
  std::vector<GoldenCase> cases;
  for (const std::string set : {"goldens", "goldens-legacy", "goldens-v2"}) {
    std::vector<std::filesystem::path> folders;
    for (const auto& entry : std::filesystem::directory_iterator("tests/data/" + set)) {
      if (entry.is_directory()) folders.push_back(entry.path());
    }
    std::sort(folders.begin(), folders.end());
    for (const auto& folder : folders) cases.push_back(LoadCase(folder));
  }
  return cases;
}

}  // namespace ddl
