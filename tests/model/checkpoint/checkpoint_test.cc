#include "model/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "model/checkpoint/checkpoint_layout.h"
#include "tests/model/checkpoint/scratch_checkpoint.h"

namespace ddl {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kLayer0[] = "transformer.h.0.";

std::vector<fs::path> GoldenFolders() {
  std::vector<fs::path> folders;
  for (const char* set :
       {"tests/data/goldens", "tests/data/goldens-legacy", "tests/data/goldens-v2"}) {
    for (const auto& entry : fs::directory_iterator(set)) folders.push_back(entry.path());
  }
  return folders;
}

Checkpoint MustOpen(const fs::path& folder) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(folder);
  if (!checkpoint.ok()) throw std::runtime_error(checkpoint.status().ToString());
  return *std::move(checkpoint);
}

// Splits model.safetensors into two shards and an index.
void Shard(const fs::path& folder) {
  EditableTensors shards[2];
  Json index = {{"metadata", {{"total_size", 1}}}};
  size_t i = 0;
  for (const auto& [name, tensor] : ReadTensors(folder / "model.safetensors")) {
    const size_t shard = i++ % 2;
    shards[shard][name] = tensor;
    index["weight_map"][name] = "model-" + std::to_string(shard) + ".safetensors";
  }
  fs::remove(folder / "model.safetensors");
  WriteTensors(shards[0], folder / "model-0.safetensors");
  WriteTensors(shards[1], folder / "model-1.safetensors");
  WriteFile(folder / "model.safetensors.index.json", index.dump());
}

void EditIndex(const fs::path& folder, const std::function<void(Json&)>& edit) {
  const fs::path path = folder / "model.safetensors.index.json";
  Json index = Json::parse(ReadFile(path));
  edit(index);
  WriteFile(path, index.dump());
}

// Replaces model.safetensors by a file that torch.save wrote.
void UsePickle(const fs::path& folder, const std::string& pickle) {
  fs::remove(folder / "model.safetensors");
  fs::copy_file("tests/data/pickles/" + pickle, folder / "pytorch_model.bin");
}

void Truncate(const fs::path& path, size_t size) {
  const std::string bytes = ReadFile(path);
  ASSERT_LT(size, bytes.size());
  WriteFile(path, bytes.substr(0, size));
}

// --- what opens ---

TEST(CheckpointTest, OpensEveryGolden) {
  const std::vector<fs::path> folders = GoldenFolders();
  ASSERT_EQ(folders.size(), 89u);
  std::set<std::pair<Variant, Revision>> layouts;
  for (const fs::path& folder : folders) {
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(folder);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    std::string name = folder.filename().string();
    Revision revision = Revision::k2b55f25;
    const auto cut = [&name](std::string_view prefix) {
      const bool found = name.starts_with(prefix);
      if (found) name.erase(0, prefix.size());
      return found;
    };
    if (cut("legacy_")) revision = Revision::kLegacy;
    if (cut("v2_")) revision = Revision::kD1f7621;
    cut("asis_");
    layouts.insert({checkpoint->variant(), checkpoint->revision()});
    EXPECT_EQ(VariantName(checkpoint->variant()), name.substr(0, name.find('_'))) << folder;
    EXPECT_EQ(checkpoint->revision(), revision) << folder;
    EXPECT_EQ(checkpoint->stored_type(),
              name == "tcec_bf16" ? StoredType::kBFloat16 : StoredType::kFloat32)
        << folder;
    EXPECT_EQ(checkpoint->folder(), folder);
    EXPECT_THAT(checkpoint->warnings(), IsEmpty()) << folder;
    const bool wide =
        checkpoint->variant() != Variant::kGpt && checkpoint->variant() != Variant::kVdim1;
    EXPECT_EQ(checkpoint->value_channels(), wide ? checkpoint->config().ddl_value_channels : 1);
    EXPECT_EQ(checkpoint->Has("readout.read"), wide) << folder;
    // Every tensor of the file is there with its bytes.
    EditableTensors stored;
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().filename().string().starts_with("model") &&
          entry.path().extension() == ".safetensors") {
        stored.merge(ReadTensors(entry.path()));
      }
    }
    EXPECT_EQ(checkpoint->tensors().size(), stored.size());
    const CheckpointLayout layout = {checkpoint->variant(), checkpoint->revision()};
    int64_t count = 0;
    for (const auto& [stored_name, tensor] : stored) {
      ASSERT_TRUE(checkpoint->Has(OwnName(stored_name, layout))) << folder << " " << stored_name;
      const TensorView& view = checkpoint->Get(OwnName(stored_name, layout));
      EXPECT_EQ(view.shape, OwnShape(stored_name, tensor.shape, layout)) << stored_name;
      EXPECT_EQ(StoredTypeName(view.type), tensor.dtype) << stored_name;
      EXPECT_EQ(std::memcmp(view.data, tensor.bytes.data(), tensor.bytes.size()), 0) << stored_name;
      count += view.num_elements();
    }
    EXPECT_EQ(checkpoint->parameter_count(), count) << folder;
  }
  EXPECT_EQ(layouts.size(), 15u);  // six variants twice; of the legacy cases tcec, cc and ccec
}

TEST(CheckpointTest, ReadsTheDimensionsOfGoldens) {
  struct Row {
    std::string golden;
    int64_t value_channels;
    std::string tensor;
    std::vector<int64_t> shape;
  };
  const std::vector<Row> rows = {
      {"ccec_dv8", 8, "input_embed.conv.weight", {256, 1, 4}},
      {"ccec_input_kernel1", 4, "input_embed.conv.weight", {128, 1, 1}},
      {"cc_dv3", 3, "readout.weight", {32, 3}},
      {"tc_kernel2", 4, "readout.shortconv.weight", {128, 2}},
      {"vdim1_base", 1, "transformer.h.2.ddl_mlp.v_proj.weight", {1, 32}},
      {"gpt_base", 1, "transformer.wte.weight", {256, 32}},
      // Other revisions' names become the server's.
      {"v2_tcec_base", 4, "transformer.h.0.compress.shortconv.weight", {128, 4}},
      {"v2_tcec_kernel5", 3, "readout.shortconv.weight", {96, 5}},
      {"v2_tc_kernel1", 4, "readout.shortconv.weight", {128, 1}},
      {"v2_cc_dv3_k1", 3, "readout.weight", {32, 1}},
      {"v2_ccec_dv8", 8, "input_embed.conv.weight", {256, 1, 4}},
      {"v2_gpt_base", 1, "transformer.h.0.mlp.c_proj.weight", {32, 85}},
      {"v2_vdim1_base", 1, "transformer.h.0.attn.c_proj.weight", {32, 32}},
      {"legacy_tcec", 4, "transformer.h.0.compress.shortconv.weight", {128, 4}},
      {"legacy_tcec", 4, "readout.shortconv.weight", {128, 4}},
      {"legacy_ccec_k3", 4, "transformer.h.1.compress.weight", {32, 3}},
      {"legacy_cc_causal_k3", 4, "readout.weight", {32, 3}},
  };
  for (const Row& row : rows) {
    const ScratchFolder folder(row.golden);
    const Checkpoint checkpoint = MustOpen(folder.path());
    EXPECT_EQ(checkpoint.value_channels(), row.value_channels) << row.golden;
    ASSERT_TRUE(checkpoint.Has(row.tensor)) << row.golden;
    EXPECT_EQ(checkpoint.Get(row.tensor).shape, row.shape) << row.golden;
  }
}

// One model, however it is stored, has one hash: the way these files get it does not matter.
TEST(CheckpointTest, OneModelInEveryFormatIsTheSame) {
  struct Row {
    std::string name;
    std::function<void(const fs::path&)> change;
  };
  const std::vector<Row> rows = {
      {"as it is", [](const fs::path&) {}},
      {"shards", Shard},
      {"pytorch_model.bin with both tied names",
       [](const fs::path& f) { UsePickle(f, "official.bin"); }},
      {"shards of pytorch_model.bin",
       [](const fs::path& f) {
         UsePickle(f, "official.bin");
         fs::rename(f / "pytorch_model.bin", f / "pytorch_model-00001-of-00001.bin");
         Json index = {{"weight_map", {{"lm_head.weight", "pytorch_model-00001-of-00001.bin"}}}};
         for (const auto& [name, tensor] :
              ReadTensors("tests/data/goldens/vdim1_one_layer/model.safetensors")) {
           index["weight_map"][name] = "pytorch_model-00001-of-00001.bin";
         }
         WriteFile(f / "pytorch_model.bin.index.json", index.dump());
       }},
      {"safetensors beside a broken pytorch_model.bin",
       [](const fs::path& f) { WriteFile(f / "pytorch_model.bin", "no"); }},
      {"both tied names",
       [](const fs::path& f) {
         EditTensors(f,
                     [](EditableTensors& t) { t["lm_head.weight"] = t["transformer.wte.weight"]; });
       }},
      {"another order of the data",
       [](const fs::path& f) {
         EditableTensors tensors = ReadTensors(f / "model.safetensors");
         Json header;
         std::string data;
         for (auto it = tensors.rbegin(); it != tensors.rend(); ++it) {
           const size_t begin = data.size();
           data += it->second.bytes;
           header[it->first] = {{"dtype", it->second.dtype},
                                {"shape", it->second.shape},
                                {"data_offsets", {begin, data.size()}}};
         }
         WriteFile(f / "model.safetensors", SafetensorsBytes(header.dump(), data));
       }},
      {"behind a link",
       [](const fs::path& f) {
         fs::create_directory(f / "blobs");
         fs::rename(f / "model.safetensors", f / "blobs/0123");
         fs::create_symlink("blobs/0123", f / "model.safetensors");
       }},
  };
  const std::string expected = MustOpen("tests/data/goldens/vdim1_one_layer").WeightsSha256();
  // Computed apart from this project: for each tensor in the order of names, its name, type, rank,
  // sizes and bytes; numbers as 8 bytes, texts after their length.
  EXPECT_EQ(expected, "6e29b704357f3197b1e7b6a55bdea772df44c2bffcc36aa5411a737bde3a68aa");
  for (const Row& row : rows) {
    const ScratchFolder folder("vdim1_one_layer");
    row.change(folder.path());
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
    ASSERT_TRUE(checkpoint.ok()) << row.name << "\n" << checkpoint.status();
    EXPECT_EQ(checkpoint->WeightsSha256(), expected) << row.name;
    EXPECT_FALSE(checkpoint->Has("lm_head.weight")) << row.name;
    EXPECT_THAT(checkpoint->warnings(), IsEmpty()) << row.name;
  }
}

TEST(CheckpointTest, TheHashSeesEveryChange) {
  struct Row {
    std::string name;
    std::function<void(EditableTensors&)> change;
  };
  const std::vector<Row> rows = {
      {"nothing", [](EditableTensors&) {}},
      {"one bit", [](EditableTensors& t) { t["ln_f.weight"].bytes[77] ^= 1; }},
      {"two tensors swapped",
       [](EditableTensors& t) {
         std::swap(t[kLayer0 + std::string("ln_1.weight")],
                   t[kLayer0 + std::string("ln_2.weight")]);
       }},
      {"another type", [](EditableTensors& t) { t["ln_f.weight"] = ZeroTensor("BF16", {44}); }},
      {"the same bits as another type",
       [](EditableTensors& t) { t["ln_f.weight"] = ZeroTensor("F16", {44}); }},
  };
  std::set<std::string> hashes;
  for (const Row& row : rows) {
    const ScratchFolder folder("vdim1_one_layer");
    EditTensors(folder.path(), row.change);
    EXPECT_TRUE(hashes.insert(MustOpen(folder.path()).WeightsSha256()).second) << row.name;
  }
}

// The format does not promise alignment; a file may put the data at any byte.
TEST(CheckpointTest, EveryTensorIsAlignedWhereverTheDataBegin) {
  const std::string expected = MustOpen("tests/data/goldens/cc_dv3").WeightsSha256();
  for (size_t padding = 0; padding < 9; ++padding) {
    const ScratchFolder folder("cc_dv3");
    const fs::path path = folder.path() / "model.safetensors";
    const std::string bytes = ReadFile(path);
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof(length));
    WriteFile(path, SafetensorsBytes(bytes.substr(8, length) + std::string(padding, ' '),
                                     bytes.substr(8 + length)));
    const Checkpoint checkpoint = MustOpen(folder.path());
    for (const auto& [name, view] : checkpoint.tensors()) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % StoredTypeSize(view.type), 0u) << name;
    }
    EXPECT_EQ(checkpoint.WeightsSha256(), expected) << padding;
  }
}

TEST(CheckpointTest, OpensOtherTypes) {
  for (const std::string type : {"BF16", "F16", "F64"}) {
    const ScratchFolder folder("ccec_dv2");
    EditTensors(folder.path(), [&](EditableTensors& tensors) {
      for (auto& [name, tensor] : tensors) {
        if (name != "ln_f.weight") tensor = ZeroTensor(type, tensor.shape);
      }
    });
    const Checkpoint checkpoint = MustOpen(folder.path());
    EXPECT_EQ(StoredTypeName(checkpoint.stored_type()), type);
    EXPECT_EQ(checkpoint.Get("ln_f.weight").type, StoredType::kFloat32) << type;
  }
}

TEST(CheckpointTest, ValuesAreNotJudged) {
  const ScratchFolder folder("vdim1_one_layer");
  EditTensors(folder.path(), [](EditableTensors& tensors) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(tensors["ln_f.weight"].bytes.data(), &nan, sizeof(nan));
  });
  EXPECT_TRUE(Checkpoint::Open(folder.path()).ok());
}

// Tied weights may be stored under either name, and an index may name both.
TEST(CheckpointTest, OneOfTheTiedNamesIsEnough) {
  const auto only_head = [](const fs::path& folder) {
    EditTensors(folder, [](EditableTensors& tensors) {
      auto embedding = tensors.extract("transformer.wte.weight");
      embedding.key() = "lm_head.weight";
      tensors.insert(std::move(embedding));
    });
  };
  struct Row {
    std::string name;
    std::function<void(const fs::path&)> change;
  };
  const std::vector<Row> rows = {
      {"the head alone", only_head},
      {"the head alone, in shards",
       [&](const fs::path& f) {
         only_head(f);
         Shard(f);
       }},
      {"an index with a head that no shard holds",
       [](const fs::path& f) {
         Shard(f);
         EditIndex(f, [](Json& i) { i["weight_map"]["lm_head.weight"] = "model-0.safetensors"; });
       }},
      {"an index with an embedding that no shard holds",
       [&](const fs::path& f) {
         only_head(f);
         Shard(f);
         EditIndex(
             f, [](Json& i) { i["weight_map"]["transformer.wte.weight"] = "model-1.safetensors"; });
       }},
  };
  for (const std::string golden : {"vdim1_one_layer", "v2_vdim1_base"}) {
    const ScratchFolder plain(golden);
    const std::string expected = MustOpen(plain.path()).WeightsSha256();
    for (const Row& row : rows) {
      const ScratchFolder folder(golden);
      row.change(folder.path());
      const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
      ASSERT_TRUE(checkpoint.ok()) << row.name << "\n" << checkpoint.status();
      EXPECT_EQ(checkpoint->WeightsSha256(), expected) << golden << " " << row.name;
      EXPECT_FALSE(checkpoint->Has("lm_head.weight")) << row.name;
      EXPECT_THAT(checkpoint->warnings(), IsEmpty()) << row.name;
    }
  }
}

TEST(CheckpointTest, AHeadThatDiffersFromTheEmbeddingIsKeptByTheNewestRevision) {
  const ScratchFolder folder("v2_vdim1_base");
  const std::string tied = MustOpen(folder.path()).WeightsSha256();
  EditTensors(folder.path(), [](EditableTensors& tensors) {
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"];
  });
  EXPECT_FALSE(MustOpen(folder.path()).Has("lm_head.weight"));
  EXPECT_EQ(MustOpen(folder.path()).WeightsSha256(), tied);
  EditTensors(folder.path(),
              [](EditableTensors& tensors) { tensors["lm_head.weight"].bytes[5] ^= 1; });
  const Checkpoint checkpoint = MustOpen(folder.path());
  EXPECT_TRUE(checkpoint.Has("lm_head.weight"));
  EXPECT_NE(checkpoint.WeightsSha256(), tied);
  ASSERT_EQ(checkpoint.warnings().size(), 1u);
  EXPECT_THAT(checkpoint.warnings()[0], HasSubstr("keeps them apart, and so does this server"));
}

TEST(CheckpointTest, BuffersThatFollowFromTheConfigurationAreIgnored) {
  const ScratchFolder folder("v2_ccec_base");
  const std::string expected = MustOpen(folder.path()).WeightsSha256();
  EditTensors(folder.path(), [](EditableTensors& tensors) {
    tensors["transformer.h.0.attn.rotary.inv_freq"] = ZeroTensor("F32", {8});
    tensors["readout._kernel_valid"] = ZeroTensor("F32", {4, 4});
  });
  EXPECT_EQ(MustOpen(folder.path()).WeightsSha256(), expected);
}

TEST(CheckpointTest, AHeadThatDiffersFromTheEmbeddingIsNotUsedByOlderRevisions) {
  const ScratchFolder folder("vdim1_one_layer");
  const std::string expected = MustOpen(folder.path()).WeightsSha256();
  for (const std::string type : {"F32", "BF16"}) {
    EditTensors(folder.path(), [&](EditableTensors& tensors) {
      tensors["lm_head.weight"] = ZeroTensor(type, tensors["transformer.wte.weight"].shape);
    });
    const Checkpoint checkpoint = MustOpen(folder.path());
    ASSERT_EQ(checkpoint.warnings().size(), 1u) << type;
    EXPECT_THAT(checkpoint.warnings()[0], HasSubstr("model.safetensors: lm_head.weight differs"));
    EXPECT_FALSE(checkpoint.Has("lm_head.weight")) << type;
    EXPECT_EQ(checkpoint.WeightsSha256(), expected) << type;
  }
}

// Weights may be released from the disk, or replaced by a rename, while they are served.
TEST(CheckpointTest, OutlivesItsFilesNames) {
  Checkpoint checkpoint = [] {
    const ScratchFolder folder("cc_dv3");
    return MustOpen(folder.path());
  }();
  EXPECT_EQ(checkpoint.WeightsSha256(), MustOpen("tests/data/goldens/cc_dv3").WeightsSha256());
}

// --- what does not open, and why ---

struct BadRow {
  std::string name;
  std::string golden;
  std::function<void(const fs::path& folder)> damage;
  std::vector<std::string> message;  // parts of it
};

void ExpectRefused(const std::vector<BadRow>& rows) {
  for (const BadRow& row : rows) {
    const ScratchFolder folder(row.golden);
    row.damage(folder.path());
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
    EXPECT_FALSE(checkpoint.ok()) << row.name;
    const std::string message(checkpoint.status().message());
    for (const std::string& part : row.message) EXPECT_THAT(message, HasSubstr(part)) << row.name;
    // One message, of a size to read, that names the folder.
    EXPECT_THAT(message, HasSubstr(folder.path().string())) << row.name;
    EXPECT_LT(message.size(), 5000u) << row.name;
  }
}

std::function<void(const fs::path&)> Tensors(std::function<void(EditableTensors&)> edit) {
  return [edit](const fs::path& folder) { EditTensors(folder, edit); };
}
std::function<void(const fs::path&)> Config(std::function<void(Json&)> edit) {
  return [edit](const fs::path& folder) { EditConfig(folder, edit); };
}
std::function<void(const fs::path&)> Header(std::function<void(Json&)> edit) {
  return [edit](const fs::path& folder) { EditHeader(folder, edit); };
}
// model.safetensors as these bytes.
std::function<void(const fs::path&)> Bytes(const std::string& bytes) {
  return [bytes](const fs::path& folder) { WriteFile(folder / "model.safetensors", bytes); };
}
std::function<void(const fs::path&)> CutTo(size_t size) {
  return [size](const fs::path& folder) { Truncate(folder / "model.safetensors", size); };
}
std::function<void(const fs::path&)> ShardedThen(std::function<void(const fs::path&)> damage) {
  return [damage](const fs::path& folder) {
    Shard(folder);
    damage(folder);
  };
}

TEST(BadCheckpointTest, Folder) {
  EXPECT_THAT(std::string(Checkpoint::Open("/nowhere/at/all").status().message()),
              HasSubstr("/nowhere/at/all cannot be found, expected a folder with config.json"));
  EXPECT_THAT(std::string(Checkpoint::Open("").status().message()), HasSubstr("cannot be found"));
  EXPECT_THAT(
      std::string(
          Checkpoint::Open("tests/data/goldens/cc_base/model.safetensors").status().message()),
      HasSubstr("model.safetensors is a file, expected a folder"));
  EXPECT_EQ(Checkpoint::Open("/nowhere/at/all").status().code(), absl::StatusCode::kNotFound);
  ExpectRefused({
      {"empty",
       "cc_dv3",
       [](const fs::path& f) {
         fs::remove(f / "config.json");
         fs::remove(f / "model.safetensors");
       },
       {"config.json cannot be opened"}},
      {"no config",
       "cc_dv3",
       [](const fs::path& f) { fs::remove(f / "config.json"); },
       {"config.json cannot be opened", "No such file"}},
      {"no weights",
       "cc_dv3",
       [](const fs::path& f) { fs::remove(f / "model.safetensors"); },
       {"holds no weights: expected model.safetensors", "pytorch_model.bin", "found config.json"}},
      {"weights under another name",
       "cc_dv3",
       [](const fs::path& f) { fs::rename(f / "model.safetensors", f / "ckpt_final.safetensors"); },
       {"holds no weights", "found ckpt_final.safetensors, config.json"}},
      {"a folder in place of the config",
       "cc_dv3",
       [](const fs::path& f) {
         fs::remove(f / "config.json");
         fs::create_directory(f / "config.json");
       },
       {"config.json is a folder, expected a file"}},
      {"a folder in place of the weights",
       "cc_dv3",
       [](const fs::path& f) {
         fs::remove(f / "model.safetensors");
         fs::create_directory(f / "model.safetensors");
       },
       {"model.safetensors is a folder, expected a file"}},
      {"a pipe in place of the weights",
       "cc_dv3",
       [](const fs::path& f) {
         fs::remove(f / "model.safetensors");
         ASSERT_EQ(mkfifo((f / "model.safetensors").c_str(), 0600), 0);
       },
       {"model.safetensors is not a regular file"}},
      {"a link to nowhere",
       "cc_dv3",
       [](const fs::path& f) {
         fs::remove(f / "model.safetensors");
         fs::create_symlink("blobs/gone", f / "model.safetensors");
       },
       {"model.safetensors, a link to blobs/gone, cannot be opened", "No such file"}},
      {"a link to itself",
       "cc_dv3",
       [](const fs::path& f) {
         fs::remove(f / "model.safetensors");
         fs::create_symlink("model.safetensors", f / "model.safetensors");
       },
       {"model.safetensors, a link to model.safetensors, cannot be opened", "symbolic links"}},
  });
}

TEST(BadCheckpointTest, Config) {
  ExpectRefused({
      {"empty file",
       "cc_dv3",
       [](const fs::path& f) { WriteFile(f / "config.json", ""); },
       {"config.json is not valid JSON"}},
      {"half a file",
       "cc_dv3",
       [](const fs::path& f) { Truncate(f / "config.json", 300); },
       {"config.json is not valid JSON", "line"}},
      {"weights in its place",
       "cc_dv3",
       [](const fs::path& f) {
         fs::remove(f / "config.json");
         fs::copy_file(f / "model.safetensors", f / "config.json");
       },
       {"config.json is not valid JSON"}},
      {"quoted numbers and booleans",
       "cc_dv3",
       Config([](Json& c) {
         c["hidden_size"] = "32";
         c["use_qk_rmsnorm"] = "true";
       }),
       {"config.json", "hidden_size: found \"32\"", "use_qk_rmsnorm: found \"true\""}},
      {"a llama",
       "cc_dv3",
       Config([](Json& c) {
         c = {{"model_type", "llama"},
              {"architectures", {"LlamaForCausalLM"}},
              {"hidden_size", 4096},
              {"intermediate_size", 11008}};
       }),
       {"does not match config.json (variant cc, 2b55f25)",
        "transformer.h.0.attn.c_q.weight: found (32, 32), expected (768, 4096)"}},
      {"an activation of the future",
       "cc_dv3",
       Config([](Json& c) { c["v_activation"] = "gelu"; }),
       {"v_activation: found \"gelu\", allowed is null, \"identity\", \"silu\""}},
      {"a CC kernel that is not dv",
       "cc_dv3",
       Config([](Json& c) { c["ddl_state_shortconv_kernel_size"] = 2; }),
       {"config.json: ddl_state_shortconv_kernel_size: found 2", "is only ddl_value_channels, 3"}},
      {"a legacy CC kernel above dv",
       "legacy_ccec_k3",
       Config([](Json& c) { c["ddl_state_shortconv_kernel_size"] = 5; }),
       {"config.json: ddl_state_shortconv_kernel_size: found 5", "at most ddl_value_channels, 4"}},
      {"dv of one with compressors",
       "cc_dv3",
       Config([](Json& c) { c["ddl_value_channels"] = 1; }),
       {"config.json: ddl_value_channels: found 1", "variant cc", "2 or more"}},
  });
}

TEST(BadCheckpointTest, TensorsThatDoNotMatchTheConfig) {
  const std::string ln_1 = kLayer0 + std::string("ln_1.weight");
  ExpectRefused({
      {"one missing",
       "ccec_base",
       Tensors([=](EditableTensors& t) { t.erase(ln_1); }),
       {"model.safetensors does not match config.json (variant ccec, 2b55f25)",
        ln_1 + ": missing, expected (32)"}},
      {"one unexpected",
       "ccec_base",
       Tensors([](EditableTensors& t) { t["attn.rotary.freq"] = ZeroTensor("F32", {8}); }),
       {"attn.rotary.freq: found (8), but there is no such tensor"}},
      {"one misshapen",
       "ccec_base",
       Tensors([=](EditableTensors& t) { t[ln_1] = ZeroTensor("F32", {31}); }),
       {ln_1 + ": found (31), expected (32)", "config.json says: vocab_size 256, hidden_size 32"}},
      {"one transposed",
       "ccec_base",
       Tensors([](EditableTensors& t) {
         std::swap(t["transformer.h.1.mlp.c_proj.weight"].shape[0],
                   t["transformer.h.1.mlp.c_proj.weight"].shape[1]);
       }),
       {"transformer.h.1.mlp.c_proj.weight: found (85, 32), expected (32, 85)"}},
      {"a flat matrix",
       "ccec_base",
       Tensors([](EditableTensors& t) { t["transformer.wte.weight"].shape = {8192}; }),
       {"transformer.wte.weight: found (8192), expected (256, 32)"}},
      {"an empty tensor",
       "ccec_base",
       Tensors([=](EditableTensors& t) { t[ln_1] = ZeroTensor("F32", {0}); }),
       {ln_1 + ": found (0), expected (32)"}},
      {"a number",
       "ccec_base",
       Tensors([=](EditableTensors& t) { t[ln_1] = ZeroTensor("F32", {}); }),
       {ln_1 + ": found (), expected (32)"}},
      {"three things at once",
       "ccec_base",
       Tensors([=](EditableTensors& t) {
         t.erase(ln_1);
         t["extra"] = ZeroTensor("F32", {2, 2});
         t["readout.read"] = ZeroTensor("F32", {5});
       }),
       {ln_1 + ": missing", "extra: found (2, 2)", "readout.read: found (5), expected (4)"}},
      {"no tensors at all",
       "ccec_base",
       Tensors([](EditableTensors& t) { t.clear(); }),
       {"model.safetensors", "not a JSON object, found null"}},
      {"everything misnamed",
       "ccec_base",
       Tensors([](EditableTensors& t) {
         EditableTensors renamed;
         for (const auto& [name, tensor] : t) renamed["module." + name] = tensor;
         t = renamed;
       }),
       {"every tensor's name begins with module., as the name of a wrapped model's tensor does"}},
      {"everything misnamed twice",
       "ccec_base",
       Tensors([](EditableTensors& t) {
         EditableTensors renamed;
         for (const auto& [name, tensor] : t) renamed["_orig_mod.module." + name] = tensor;
         t = renamed;
       }),
       {"every tensor's name begins with _orig_mod.module., as"}},
      {"one misnamed",
       "ccec_base",
       Tensors([](EditableTensors& t) {
         auto norm = t.extract("ln_f.weight");
         norm.key() = "module.ln_f.weight";
         t.insert(std::move(norm));
       }),
       {"module.ln_f.weight: found (32), but there is no such tensor", "ln_f.weight: missing"}},
      {"a name that would break lines",
       "ccec_base",
       Tensors([](EditableTensors& t) { t["a\nb\x1b[31m"] = ZeroTensor("F32", {1}); }),
       {R"(a\nb\x1b[31m: found (1))"}},
      {"a layer more than the config says",
       "ccec_base",
       Config([](Json& c) { c["num_hidden_layers"] = 2; }),
       {"num_hidden_layers: config.json says 2, found 3 layers, from 0 to 2"}},
      {"a layer less than the config says",
       "ccec_base",
       Config([](Json& c) { c["num_hidden_layers"] = 4; }),
       {"num_hidden_layers: config.json says 4, found 3 layers, from 0 to 2"}},
      {"a layer left out",
       "ccec_base",
       Tensors([](EditableTensors& t) {
         std::erase_if(t,
                       [](const auto& item) { return item.first.starts_with("transformer.h.1."); });
       }),
       {"num_hidden_layers: config.json says 3, found 2 layers, from 0 to 2"}},
      {"another dv",
       "ccec_base",
       Config([](Json& c) {
         c["ddl_value_channels"] = 3;
         c["ddl_state_shortconv_kernel_size"] = 3;
       }),
       {"input_embed.conv.weight: found (128, 1, 4), expected (96, 1, 4)",
        "readout.read: found (4), expected (3)", "ddl_value_channels 3"}},
      {"another vocabulary",
       "vdim1_one_layer",
       Config([](Json& c) { c["vocab_size"] = 50304; }),
       {"transformer.wte.weight: found (128, 44), expected (50304, 44)"}},
      {"more heads",
       "vdim1_one_layer",
       Config([](Json& c) { c["num_attention_heads"] = 3; }),
       {"attn.c_q.weight: found (24, 44), expected (72, 44)"}},
      {"another input kernel",
       "ccec_base",
       Config([](Json& c) { c["input_embed_shortconv_kernel_size"] = 2; }),
       {"input_embed.conv.weight: found (128, 1, 4), expected (128, 1, 2)",
        "input_embed_shortconv_kernel_size 2"}},
      {"another TC kernel",
       "tc_kernel2",
       Config([](Json& c) { c.erase("ddl_state_shortconv_kernel_size"); }),
       {"readout.shortconv.weight: found (128, 2), expected (128, 4)"}},
      {"norms the config denies",
       "ccec_base",
       Config([](Json& c) { c["use_qk_rmsnorm"] = false; }),
       {"attn.q_rms.weight: found (16), but there is no such tensor"}},
      {"a gate the weights lack",
       "ccec_base",
       Config([](Json& c) { c["use_output_gate"] = true; }),
       {"attn.g_proj.weight: missing, expected (32, 32)",
        "attn.o_norm.weight: missing, expected (16)"}},
      {"a gate with a group norm has no norm of its own",
       "vdim1_gate_groupnorm",
       Config([](Json& c) { c["using_groupnorm"] = false; }),
       {"attn.o_norm.weight: missing", "attn.subln.weight: found (16), but"}},
      {"shifts the weights lack",
       "vdim1_one_layer",
       Config([](Json& c) { c["use_k_shift"] = true; }),
       {"attn.c_k.linear.weight: missing, expected (24, 44)",
        "attn.c_k.shift_proj.weight: missing, expected (1, 44)", "attn.c_k.weight: found"}},
      {"a gate of two layers",
       "vdim1_one_layer",
       Config([](Json& c) { c["ddl_beta_single_linear"] = false; }),
       {"ddl_attn.beta_in.weight: missing, expected (128, 44)",
        "ddl_attn.beta_out.bias: missing, expected (1)", "ddl_attn.beta.weight: found (1, 44)"}},
      {"an MLP of another width",
       "gpt_mlp",
       Config([](Json& c) { c["intermediate_size"] = 64; }),
       {"mlp.c_fc1.weight: found (50, 32), expected (64, 32)"}},
      {"a head of another shape",
       "vdim1_one_layer",
       Tensors([](EditableTensors& t) {
         t["lm_head.weight"] = ZeroTensor("F32", {64, 32});
       }),
       {"lm_head.weight: found (64, 32), expected (128, 44)"}},
      {"no embedding",
       "vdim1_one_layer",
       Tensors([](EditableTensors& t) { t.erase("transformer.wte.weight"); }),
       {"transformer.wte.weight: missing, expected (128, 44)"}},
      {"a v projection left out because v is constant",
       "vdim1_v_constant",
       Tensors([](EditableTensors& t) { t.erase("transformer.h.0.ddl_attn.v_proj.bias"); }),
       {"transformer.h.0.ddl_attn.v_proj.bias: missing, expected (1)"}},
      {"half of a delta block",
       "vdim1_one_layer",
       Tensors([](EditableTensors& t) {
         std::erase_if(t, [](const auto& i) { return i.first.find("ddl_mlp") != i.first.npos; });
       }),
       {"(variant vdim1, 2b55f25)",
        "transformer.h.0.ddl_mlp.beta.weight: missing, expected (1, 44)"}},
      {"compressors of two kinds",
       "cc_dv3",
       Tensors([](EditableTensors& t) {
         t["readout.shortconv.weight"] = ZeroTensor("F32", {96, 3});
       }),
       {"model.safetensors: tensors of different variants or revisions are mixed",
        "readout.shortconv.weight, found (96, 3)", ".weight, found (32, 3)"}},
      {"one compressor of the older layout",
       "cc_dv3",
       Tensors([](EditableTensors& t) {
         t["readout.shortconv.weight"] = ZeroTensor("F32", {32, 1, 3});
         t.erase("readout.weight");
       }),
       {"revisions are mixed", "readout.shortconv.weight, found (32, 1, 3)"}},
      {"an output projection of another revision",
       "v2_ccec_base",
       Tensors([](EditableTensors& t) {
         auto output = t.extract("transformer.h.1.mlp.o_proj.weight");
         output.key() = "transformer.h.1.mlp.c_proj.weight";
         t.insert(std::move(output));
       }),
       {"revisions are mixed", "transformer.h.1.mlp.c_proj.weight, found (32, 85)",
        "input_embed.weight, found (32, 4, 4)"}},
      {"an input expansion of another revision",
       "v2_tcec_base",
       Tensors([](EditableTensors& t) {
         auto expansion = t.extract("input_embed.weight");
         expansion.key() = "input_embed.conv.weight";
         t.insert(std::move(expansion));
       }),
       {"revisions are mixed", "input_embed.conv.weight, found (32, 4, 4)"}},
      {"a TC kernel of another size",
       "v2_tcec_base",
       Tensors([](EditableTensors& t) {
         t["readout.weight"] = ZeroTensor("F32", {32, 4, 3});
       }),
       {"readout.weight: found (32, 4, 3), expected (32, 4, 4)"}},
      {"a CC kernel above dv",
       "v2_ccec_base",
       Config([](Json& c) { c["ddl_state_shortconv_kernel_size"] = 5; }),
       {"config.json: ddl_state_shortconv_kernel_size: found 5, allowed for the tensors found "
        "(variant ccec, d1f7621) is at most ddl_value_channels, 4"}},
      {"no compressor weights",
       "cc_dv3",
       Tensors([](EditableTensors& t) {
         std::erase_if(t, [](const auto& item) {
           return item.first.ends_with("compress.weight") || item.first == "readout.weight";
         });
       }),
       {"transformer.h.0.compress.weight: missing, expected (32, 3)"}},
      {"an older shape with a middle",
       "legacy_ccec_k3",
       Tensors([](EditableTensors& t) {
         t["readout.shortconv.weight"] = ZeroTensor("F32", {32, 2, 3});
       }),
       {"readout.shortconv.weight: found (32, 2, 3), expected (32, 1, 3)"}},
      {"an older kernel of another size",
       "legacy_ccec_k3",
       Config([](Json& c) { c["ddl_state_shortconv_kernel_size"] = 2; }),
       {"readout.shortconv.weight: found (32, 1, 3), expected (32, 1, 2)"}},
      {"older and newer names of one tensor",
       "legacy_tcec",
       Tensors([](EditableTensors& t) {
         t["readout.shortconv.weight"] = ZeroTensor("F32", {128, 4});
       }),
       {"revisions are mixed", "readout.shortconv.conv.weight, found (128, 1, 4)"}},
      {"a config of another variant",
       "tc_base",
       [](const fs::path& f) {
         fs::copy_file("tests/data/goldens/gpt_mlp/config.json", f / "config.json",
                       fs::copy_options::overwrite_existing);
       },
       {"(variant tc, 2b55f25)", "num_hidden_layers: config.json says 2, found 3 layers"}},
  });
}

TEST(BadCheckpointTest, SafetensorsThatAreNotWhole) {
  const std::string good = ReadFile("tests/data/goldens/cc_dv3/model.safetensors");
  uint64_t header_size = 0;
  std::memcpy(&header_size, good.data(), sizeof(header_size));
  const auto with_length = [&](uint64_t length) {
    std::string bytes = good;
    std::memcpy(bytes.data(), &length, sizeof(length));
    return Bytes(bytes);
  };
  const auto entry = [](const char* key, const Json& value) {
    return Header([=](Json& header) { header["ln_f.weight"][key] = value; });
  };
  ExpectRefused({
      {"empty", "cc_dv3", Bytes(""), {"model.safetensors is not a whole", "has 0 bytes"}},
      {"seven bytes", "cc_dv3", CutTo(7), {"it has 7 bytes"}},
      {"no header", "cc_dv3", CutTo(8), {"its header should take", "only 0 follow", "cut off"}},
      {"half a header", "cc_dv3", CutTo(500), {"its header should take", "only 492 follow"}},
      {"no data", "cc_dv3", CutTo(8 + header_size), {"ends at byte", "holds only 0"}},
      {"half the data", "cc_dv3", CutTo(good.size() / 2), {"ends at byte", "cut off"}},
      {"one byte less", "cc_dv3", CutTo(good.size() - 1), {"ends at byte", "cut off"}},
      {"one byte more",
       "cc_dv3",
       Bytes(good + "x"),
       {"its tensors end at byte", "follow the header"}},
      {"text",
       "cc_dv3",
       Bytes("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
       {"model.safetensors is a Git LFS pointer", "git -C ", " lfs pull"}},
      {"a zip", "cc_dv3", Bytes(ReadFile("tests/data/pickles/one.bin")), {"another format"}},
      {"a header above the limit",
       "cc_dv3",
       with_length(100'000'001),
       {"announce a header of 100000001 bytes, at most 100000000"}},
      {"the largest length",
       "cc_dv3",
       with_length(UINT64_MAX),
       {"a header of 18446744073709551615 bytes"}},
      {"a length of zero", "cc_dv3", with_length(0), {"the header of", "not valid JSON"}},
      {"a shorter header", "cc_dv3", with_length(header_size - 40), {"not valid JSON"}},
      {"a longer header", "cc_dv3", with_length(header_size + 8), {"not valid JSON"}},
      {"a header that is a list",
       "cc_dv3",
       Bytes(SafetensorsBytes("[]", "")),
       {"not a JSON object, found []"}},
      {"a header with a name twice",
       "cc_dv3",
       Bytes(SafetensorsBytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                              R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                              "1234")),
       {"the key \"a\" appears twice"}},
      {"only metadata",
       "cc_dv3",
       Bytes(SafetensorsBytes(R"({"__metadata__":{"a":"b"}})", "")),
       {"does not match config.json", "transformer.wte.weight: missing"}},
      {"an unknown type",
       "cc_dv3",
       entry("dtype", "F8_E4M3"),
       {"ln_f.weight: dtype is \"F8_E4M3\", allowed is F32, BF16, F16 or F64"}},
      {"integers", "cc_dv3", entry("dtype", "I32"), {"ln_f.weight: dtype is \"I32\", allowed is"}},
      {"integers of eight bytes",
       "cc_dv3",
       Tensors([](EditableTensors& t) { t["position_ids"] = ZeroTensor("I64", {4}); }),
       {"position_ids: dtype is \"I64\", allowed is"}},
      {"a type that is a number", "cc_dv3", entry("dtype", 32), {"ln_f.weight: dtype is 32"}},
      {"no type",
       "cc_dv3",
       Header([](Json& h) { h["ln_f.weight"].erase("dtype"); }),
       {"ln_f.weight: dtype is null"}},
      {"no shape",
       "cc_dv3",
       Header([](Json& h) { h["ln_f.weight"].erase("shape"); }),
       {"ln_f.weight: shape is null"}},
      {"no offsets",
       "cc_dv3",
       Header([](Json& h) { h["ln_f.weight"].erase("data_offsets"); }),
       {"ln_f.weight: data_offsets is null"}},
      {"an entry that is a number",
       "cc_dv3",
       Header([](Json& h) { h["ln_f.weight"] = 1; }),
       {"ln_f.weight: found 1"}},
      {"a wider type",
       "cc_dv3",
       entry("dtype", "F64"),
       {"ln_f.weight: takes 128 bytes, but shape [32] of F64 takes 256"}},
      {"a shape with one more",
       "cc_dv3",
       entry("shape", {33}),
       {"ln_f.weight: takes 128 bytes, but shape [33] of F32 takes 132"}},
      {"a negative size", "cc_dv3", entry("shape", {-32}), {"ln_f.weight: shape is [-32]"}},
      {"a broken size", "cc_dv3", entry("shape", {32.0}), {"ln_f.weight: shape is [32.0]"}},
      {"a shape that is a number", "cc_dv3", entry("shape", 32), {"ln_f.weight: shape is 32"}},
      {"a shape that overflows",
       "cc_dv3",
       entry("shape", {4294967296, 4294967296}),
       {"ln_f.weight: shape is [4294967296,4294967296]"}},
      {"a shape that overflows to the right size",
       "cc_dv3",
       entry("shape", {4611686018427387905, 32}),
       {"ln_f.weight: shape is"}},
      {"a huge size beside a zero",
       "cc_dv3",
       entry("shape", {9223372036854775807u, 0}),
       {"ln_f.weight: shape is"}},
      {"a size above any integer",
       "cc_dv3",
       entry("shape", {18446744073709551615u}),
       {"ln_f.weight: shape is [18446744073709551615]"}},
      {"nine axes",
       "cc_dv3",
       entry("shape", {32, 1, 1, 1, 1, 1, 1, 1, 1}),
       {"ln_f.weight: shape is a list, allowed is a list of at most 8"}},
      {"three offsets",
       "cc_dv3",
       entry("data_offsets", {0, 1, 2}),
       {"ln_f.weight: data_offsets is [0,1,2]"}},
      {"offsets in reverse",
       "cc_dv3",
       entry("data_offsets", {128, 0}),
       {"ln_f.weight: data_offsets is [128,0], allowed is [begin, end]"}},
      {"negative offsets",
       "cc_dv3",
       entry("data_offsets", {-128, 0}),
       {"ln_f.weight: data_offsets is [-128,0]"}},
      {"offsets past the end",
       "cc_dv3",
       entry("data_offsets", {1000000, 1000128}),
       {"ln_f.weight: ends at byte 1000128 of the data, but the file holds only"}},
      {"offsets at the end of all numbers",
       "cc_dv3",
       entry("data_offsets", {18446744073709551487u, 18446744073709551615u}),
       {"ln_f.weight: ends at byte 18446744073709551615"}},
      {"two tensors on the same bytes",
       "cc_dv3",
       Header([](Json& h) {
         h["transformer.h.0.ln_1.weight"]["data_offsets"] = h["ln_f.weight"]["data_offsets"];
       }),
       {"inside another tensor that ends at byte"}},
      {"bytes of no tensor",
       "cc_dv3",
       Header([](Json& h) { h.erase("transformer.h.0.ln_1.weight"); }),
       {"after a gap that begins at byte"}},
  });
}

TEST(BadCheckpointTest, Shards) {
  const auto index = [](std::function<void(Json&)> edit) {
    return ShardedThen([edit](const fs::path& folder) { EditIndex(folder, edit); });
  };
  const auto map_ln_f_to = [&](const Json& shard) {
    return index([shard](Json& i) { i["weight_map"]["ln_f.weight"] = shard; });
  };
  ExpectRefused({
      {"a shard is gone",
       "cc_dv3",
       ShardedThen([](const fs::path& f) { fs::remove(f / "model-1.safetensors"); }),
       {"model.safetensors.index.json names shards that cannot be read",
        "model-1.safetensors cannot be opened"}},
      {"all shards are gone",
       "cc_dv3",
       ShardedThen([](const fs::path& f) {
         fs::remove(f / "model-0.safetensors");
         fs::remove(f / "model-1.safetensors");
       }),
       {"model-0.safetensors cannot be opened", "model-1.safetensors cannot be opened"}},
      {"a shard is cut off",
       "cc_dv3",
       ShardedThen([](const fs::path& f) { Truncate(f / "model-1.safetensors", 5000); }),
       {"model-1.safetensors", "cut off"}},
      {"a tensor is not where the index says",
       "cc_dv3",
       map_ln_f_to("model-1.safetensors"),
       {"index.json and its shards disagree",
        "ln_f.weight: the index maps it to model-1.safetensors, which does not hold it",
        "ln_f.weight: found in model-0.safetensors, but the index maps it to model-1.safetensors"}},
      {"a tensor that the index does not name",
       "cc_dv3",
       index([](Json& i) { i["weight_map"].erase("ln_f.weight"); }),
       {"ln_f.weight: found in model-0.safetensors, but the index does not name it"}},
      {"a tensor in no shard",
       "cc_dv3",
       index([](Json& i) { i["weight_map"]["extra"] = "model-0.safetensors"; }),
       {"extra: the index maps it to model-0.safetensors, which does not hold it"}},
      {"a tensor in both shards",
       "cc_dv3",
       ShardedThen([](const fs::path& f) {
         EditableTensors tensors = ReadTensors(f / "model-1.safetensors");
         tensors["ln_f.weight"] = ZeroTensor("F32", {32});
         WriteTensors(tensors, f / "model-1.safetensors");
       }),
       {"ln_f.weight: found in model-1.safetensors, but the index maps it to model-0.safetensors"}},
      {"a misshapen tensor in a shard",
       "cc_dv3",
       ShardedThen([](const fs::path& f) {
         EditableTensors tensors = ReadTensors(f / "model-0.safetensors");
         tensors["ln_f.weight"] = ZeroTensor("F32", {33});
         WriteTensors(tensors, f / "model-0.safetensors");
       }),
       {"ln_f.weight: found (33) in model-0.safetensors, expected (32)"}},
      {"a shard above the folder",
       "cc_dv3",
       map_ln_f_to("../model-0.safetensors"),
       {"ln_f.weight: found shard \"../model-0.safetensors\", allowed is the name of a file"}},
      {"a shard from the root",
       "cc_dv3",
       map_ln_f_to("/etc/model.safetensors"),
       {"found shard \"/etc/model.safetensors\""}},
      {"a shard of another format",
       "cc_dv3",
       map_ln_f_to("config.json"),
       {"found shard \"config.json\", allowed is", "ends in .safetensors"}},
      {"a shard without a name", "cc_dv3", map_ln_f_to(""), {"found shard \"\""}},
      {"a shard that is a number", "cc_dv3", map_ln_f_to(1), {"found shard 1"}},
      {"a shard with a zero in its name",
       "cc_dv3",
       map_ln_f_to(std::string("model-0.safetensors\0.safetensors", 32)),
       {"found shard"}},
      {"no weight_map",
       "cc_dv3",
       index([](Json& i) { i.erase("weight_map"); }),
       {"index.json has no weight_map"}},
      {"an empty weight_map",
       "cc_dv3",
       index([](Json& i) { i["weight_map"] = Json::object(); }),
       {"index.json has no weight_map"}},
      {"a weight_map that is a list",
       "cc_dv3",
       index([](Json& i) { i["weight_map"] = {1}; }),
       {"has no weight_map from tensors to shards, found [1]"}},
      {"an index that is not JSON",
       "cc_dv3",
       ShardedThen([](const fs::path& f) { WriteFile(f / "model.safetensors.index.json", "{"); }),
       {"model.safetensors.index.json is not valid JSON"}},
  });
}

TEST(BadCheckpointTest, Pickles) {
  const auto pickle = [](const char* name) {
    return [name](const fs::path& folder) { UsePickle(folder, name); };
  };
  ExpectRefused({
      {"a state_dict()",
       "vdim1_one_layer",
       pickle("ordered_dict.bin"),
       {"pytorch_model.bin holds a collections.OrderedDict", "tools/convert_checkpoint.py "}},
      {"a command",
       "vdim1_one_layer",
       pickle("runs_a_command.bin"),
       {"pytorch_model.bin names posix.system"}},
      {"the whole training state",
       "vdim1_one_layer",
       pickle("training_state.bin"),
       {"pytorch_model.bin holds a collections.OrderedDict inside"}},
      {"half a file",
       "vdim1_one_layer",
       [](const fs::path& f) {
         UsePickle(f, "official.bin");
         Truncate(f / "pytorch_model.bin", 50000);
       },
       {"pytorch_model.bin is damaged or was cut off"}},
      {"weights of another model",
       "vdim1_one_layer",
       pickle("one.bin"),
       {"pytorch_model.bin does not match config.json", "weight: found (2, 3), but"}},
      {"nothing",
       "vdim1_one_layer",
       pickle("empty.bin"),
       {"pytorch_model.bin does not match", "transformer.wte.weight: missing"}},
      {"safetensors under its name",
       "vdim1_one_layer",
       [](const fs::path& f) { fs::rename(f / "model.safetensors", f / "pytorch_model.bin"); },
       {"pytorch_model.bin is not the zip archive"}},
  });
}

// Whatever bytes change, the answer is a checkpoint or a message; a sanitizer sees the rest.
TEST(BadCheckpointTest, ChangedBytesNeverCrash) {
  const ScratchFolder folder("vdim1_one_layer");
  const fs::path config_path = folder.path() / "config.json";
  const fs::path weights_path = folder.path() / "model.safetensors";
  const std::string config = ReadFile(config_path);
  const std::string weights = ReadFile(weights_path);
  uint64_t header_size = 0;
  std::memcpy(&header_size, weights.data(), sizeof(header_size));
  std::mt19937 random(1);
  const auto below = [&random](size_t limit) {
    return std::uniform_int_distribution<size_t>(0, limit - 1)(random);
  };
  // Changes bytes before `limit`, or cuts the text short.
  const auto damaged = [&](std::string bytes, size_t limit) {
    if (below(4) == 0) return bytes.substr(0, below(bytes.size()));
    // Digits and brackets reach further into the reader than arbitrary bytes.
    static constexpr std::string_view kSyntax = "0123456789-.,:[]{}\"eE";
    for (size_t i = 1 + below(4); i > 0; --i) {
      bytes[below(limit)] =
          below(2) ? kSyntax[below(kSyntax.size())] : static_cast<char>(below(256));
    }
    return bytes;
  };
  int opened = 0;
  constexpr int kRounds = 4000;
  for (int i = 0; i < kRounds; ++i) {
    const bool change_config = i % 2 == 0;
    WriteFile(config_path, change_config ? damaged(config, config.size()) : config);
    WriteFile(weights_path, change_config ? weights : damaged(weights, 8 + header_size));
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
    if (checkpoint.ok()) {
      ++opened;
      EXPECT_EQ(checkpoint->WeightsSha256().size(), 64u);  // reads every byte
    } else {
      ASSERT_THAT(std::string(checkpoint.status().message()), HasSubstr(folder.path().string()));
    }
  }
  EXPECT_GT(opened, 0);
  EXPECT_LT(opened, kRounds / 2);
}

}  // namespace
}  // namespace ddl
