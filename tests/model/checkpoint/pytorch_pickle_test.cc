#include "model/checkpoint/pytorch_pickle.h"

#include <caffe2/serialize/inline_container.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/model/checkpoint/scratch_checkpoint.h"

// LibTorch's zip reader forgets its memory when it refuses an archive.
extern "C" const char* __lsan_default_suppressions() { return "leak:mz_zip_reader\n"; }

namespace ddl {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using std::string_literals::operator""s;  // texts with zeros in them
using testing::HasSubstr;

const fs::path kPickles = "tests/data/pickles";

std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

template <typename T>
std::vector<T> Values(const TensorView& view) {
  std::vector<T> values(static_cast<size_t>(view.num_elements()));
  EXPECT_EQ(view.num_bytes(), static_cast<int64_t>(values.size() * sizeof(T)));
  std::memcpy(values.data(), view.data, values.size() * sizeof(T));
  return values;
}

// --- files that torch.save wrote ---

TEST(PytorchPickleTest, ReadsWhatTheOfficialCodeSaves) {
  const absl::StatusOr<TensorFile> file = ReadPytorchPickle(kPickles / "official.bin");
  ASSERT_TRUE(file.ok()) << file.status();
  const EditableTensors expected =
      ReadTensors("tests/data/goldens/vdim1_one_layer/model.safetensors");
  EXPECT_EQ(file->tensors.size(), expected.size() + 1);  // and lm_head.weight
  for (const auto& [name, tensor] : expected) {
    ASSERT_TRUE(file->tensors.contains(name)) << name;
    const TensorView& view = file->tensors.at(name);
    EXPECT_EQ(view.type, StoredType::kFloat32) << name;
    EXPECT_EQ(view.shape, tensor.shape) << name;
    ASSERT_EQ(view.num_bytes(), static_cast<int64_t>(tensor.bytes.size())) << name;
    EXPECT_EQ(std::memcmp(view.data, tensor.bytes.data(), tensor.bytes.size()), 0) << name;
  }
  // The tied names share one copy.
  EXPECT_EQ(file->tensors.at("lm_head.weight").data,
            file->tensors.at("transformer.wte.weight").data);
}

TEST(PytorchPickleTest, ReadsEveryTypeAndMakesTensorsContiguous) {
  const absl::StatusOr<TensorFile> file = ReadPytorchPickle(kPickles / "kinds.bin");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto& tensors = file->tensors;
  EXPECT_EQ(tensors.size(), 9u);
  EXPECT_EQ(tensors.at("float32").type, StoredType::kFloat32);
  EXPECT_THAT(Values<float>(tensors.at("float32")), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(tensors.at("float64").type, StoredType::kFloat64);
  EXPECT_THAT(Values<double>(tensors.at("float64")), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(tensors.at("bfloat16").type, StoredType::kBFloat16);
  EXPECT_THAT(Values<uint16_t>(tensors.at("bfloat16")),
              ElementsAre(0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0));
  EXPECT_EQ(tensors.at("float16").type, StoredType::kFloat16);
  EXPECT_THAT(Values<uint16_t>(tensors.at("float16")),
              ElementsAre(0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500));
  EXPECT_THAT(tensors.at("transposed").shape, ElementsAre(3, 2));
  EXPECT_THAT(Values<float>(tensors.at("transposed")), ElementsAre(0, 3, 1, 4, 2, 5));
  EXPECT_THAT(tensors.at("column").shape, ElementsAre(2));
  EXPECT_THAT(Values<float>(tensors.at("column")), ElementsAre(1, 4));
  EXPECT_THAT(Values<float>(tensors.at("last_row")), ElementsAre(3, 4, 5));
  EXPECT_EQ(tensors.at("same").data, tensors.at("float32").data);
  EXPECT_THAT(Values<float>(tensors.at("parameter")), ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST(PytorchPickleTest, ReadsOnTheCpuWhatAGpuSaved) {
  const absl::StatusOr<TensorFile> file = ReadPytorchPickle(kPickles / "cuda.bin");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(Values<float>(file->tensors.at("weight")), ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST(PytorchPickleTest, AnEmptyDictHasNoTensors) {
  const absl::StatusOr<TensorFile> file = ReadPytorchPickle(kPickles / "empty.bin");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->tensors.empty());
}

TEST(PytorchPickleTest, RefusesEverythingElse) {
  struct Row {
    std::string file;
    std::vector<std::string> message;
  };
  const std::vector<Row> rows = {
      {"ordered_dict.bin", {"holds a collections.OrderedDict, as a bare state_dict() is"}},
      {"training_state.bin", {"collections.OrderedDict inside", "nothing but a plain"}},
      {"runs_a_command.bin", {"names posix.system", "Nothing of it was run"}},
      {"integers.bin", {"mask: dtype is Bool, allowed is Float", "ids: dtype is Long"}},
      {"complex.bin", {"names torch.ComplexFloatStorage"}},
      {"sparse.bin", {"names torch._utils._rebuild_sparse_tensor"}},
      {"step.bin", {"step: found a Int, expected a tensor"}},
      {"integer_key.bin", {"found a key that is a Int, expected a tensor's name"}},
      {"list.bin", {"something other than a plain dict of tensors", "0x5d"}},
      {"tensor.bin", {"does not hold a dict of tensors"}},
      {"protocol4.bin", {"not a pickle of protocol 2"}},
      {"before_zip.bin", {"not the zip archive that torch.save has written since PyTorch 1.6"}},
      {"bare_pickle.bin", {"not the zip archive"}},
      {"make_pickles.py", {"not the zip archive"}},
      {"absent.bin", {"cannot be opened"}},
      {".", {"is a folder"}},
  };
  for (const Row& row : rows) {
    const absl::StatusOr<TensorFile> file = ReadPytorchPickle(kPickles / row.file);
    ASSERT_FALSE(file.ok()) << row.file;
    EXPECT_THAT(MessageOf(file.status()), HasSubstr(row.file)) << row.file;
    for (const std::string& part : row.message) {
      EXPECT_THAT(MessageOf(file.status()), HasSubstr(part)) << row.file;
    }
  }
  EXPECT_FALSE(fs::exists("pickle-was-run"));
}

TEST(PytorchPickleTest, NoneOfItsBeginningsIsAFile) {
  const std::string whole = ReadFile(kPickles / "one.bin");
  const ScratchFolder folder;
  const fs::path path = folder.path() / "pytorch_model.bin";
  for (size_t size = 0; size < whole.size(); ++size) {
    WriteFile(path, whole.substr(0, size));
    const absl::StatusOr<TensorFile> file = ReadPytorchPickle(path);
    ASSERT_FALSE(file.ok()) << size;
    ASSERT_THAT(MessageOf(file.status()), HasSubstr("pytorch_model.bin ")) << size;
    ASSERT_THAT(MessageOf(file.status()), testing::Not(HasSubstr("\n"))) << size;
  }
}

// --- sound archives with pickles that lie ---

using Archive = std::map<std::string, std::string>;  // records by name

Archive ReadArchive(const fs::path& path) {
  caffe2::serialize::PyTorchStreamReader reader(path.string());
  Archive archive;
  for (const std::string& name : reader.getAllRecords()) {
    const auto [data, size] = reader.getRecord(name);
    archive[name] = std::string(static_cast<const char*>(data.get()), size);
  }
  return archive;
}

void WriteArchive(const Archive& archive, const fs::path& path) {
  std::string bytes;
  {
    caffe2::serialize::PyTorchStreamWriter writer([&](const void* data, size_t size) {
      bytes.append(static_cast<const char*>(data), size);
      return size;
    });
    for (const auto& [name, data] : archive) {
      // The writer adds these by itself.
      if (name == "version" || name == ".data/serialization_id") continue;
      writer.writeRecord(name, data.data(), data.size());
    }
    writer.writeEndOfFile();
  }
  WriteFile(path, bytes);
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

TEST(PytorchPickleTest, RefusesTensorsThatReachOutOfTheirRecord) {
  const Archive good = ReadArchive(kPickles / "one.bin");
  // In one.bin: K06 is the storage's length; then offset K00, sizes (K02, K03), strides (K03, K01).
  const std::string layout = "K\0K\2K\3\x86"s;
  const std::string strides = "K\3K\1\x86"s;
  const auto changed = [&](const std::string& from, const std::string& to) {
    Archive archive = good;
    archive["data.pkl"] = Replaced(good.at("data.pkl"), from, to);
    return archive;
  };
  const auto without = [&](const std::string& record) {
    Archive archive = good;
    archive.erase(record);
    return archive;
  };
  const auto with = [&](const std::string& record, const std::string& data) {
    Archive archive = good;
    archive[record] = data;
    return archive;
  };
  const std::string negative = std::string("J") + "\xff\xff\xff\xff";
  const std::string huge = std::string("\x8a\x08") + "\xff\xff\xff\xff\xff\xff\xff\x7f";
  struct Row {
    std::string name;
    Archive archive;
    std::string message;  // nothing: the file is good
  };
  const std::vector<Row> rows = {
      {"unchanged", good, ""},
      {"the storage says it is longer than the record", changed("K\6t", std::string("K\x7ft")), ""},
      {"an offset of one", changed(layout, "K\1K\2K\3\x86"s), "reaches beyond"},
      {"a negative offset", changed(layout, negative + "K\2K\3\x86"), "reaches beyond"},
      {"a huge offset", changed(layout, huge + "K\2K\3\x86"), "reaches beyond"},
      {"one row more", changed(layout, "K\0K\3K\3\x86"s), "reaches beyond"},
      {"one row less", changed(layout, "K\0K\1K\3\x86"s), ""},
      {"no rows", changed(layout, "K\0K\0K\3\x86"s), "is empty"},
      {"a negative size", changed(layout, "K\0"s + negative + "K\3\x86"), "overflow"},
      {"a huge size", changed(layout, "K\0"s + huge + "K\3\x86"), "overflow"},
      {"a longer stride", changed(strides, "K\4K\1\x86"), "reaches beyond"},
      {"a negative stride, which LibTorch replaces", changed(strides, negative + "K\1\x86"), ""},
      {"a huge stride", changed(strides, huge + "K\1\x86"), "weight"},
      {"strides of zero", changed(strides, "K\0K\0\x86"s), "weight"},
      {"more strides than sizes", changed(strides, "K\3K\1K\1\x87"), "one.bin"},
      {"wider elements than the record has", changed("FloatStorage", "DoubleStorage"),
       "reaches beyond"},
      {"an unknown device", changed("\3\0\0\0cpu"s, "\3\0\0\0xyz"s), "one.bin"},
      {"a tensor without its record", without("data/0"), "one.bin"},
      {"a record cut short", with("data/0", good.at("data/0").substr(1)), "reaches beyond"},
      {"an empty record", with("data/0", ""), "reaches beyond"},
      {"no pickle", without("data.pkl"), "no record data.pkl"},
      {"an empty pickle", with("data.pkl", ""), "not a pickle of protocol 2"},
      {"big-endian numbers", with("byteorder", "big"), "big-endian"},
      {"no byte order, as PyTorch before 2.1 wrote", without("byteorder"), ""},
  };
  const ScratchFolder folder;
  const fs::path path = folder.path() / "one.bin";
  for (const Row& row : rows) {
    WriteArchive(row.archive, path);
    const absl::StatusOr<TensorFile> file = ReadPytorchPickle(path);
    EXPECT_EQ(file.ok(), row.message.empty()) << row.name << "\n" << file.status();
    EXPECT_THAT(MessageOf(file.status()), HasSubstr(row.message)) << row.name;
  }
}

// Whatever bytes change, the answer is a file or a message. What is read is read whole, so that
// a sanitizer sees a pointer that leads elsewhere.
TEST(PytorchPickleTest, SurvivesChangedBytes) {
  const ScratchFolder folder;
  const fs::path path = folder.path() / "pytorch_model.bin";
  std::mt19937 random(1);
  const auto change = [&random](std::string& bytes) {
    for (int i = std::uniform_int_distribution<>(1, 3)(random); i > 0; --i) {
      const size_t at = std::uniform_int_distribution<size_t>(0, bytes.size() - 1)(random);
      bytes[at] = static_cast<char>(std::uniform_int_distribution<>(0, 255)(random));
    }
  };
  const auto read = [&path] {
    int64_t sum = 0;
    const absl::StatusOr<TensorFile> file = ReadPytorchPickle(path);
    if (!file.ok()) return sum;
    for (const auto& [name, view] : file->tensors) {
      for (int64_t i = 0; i < view.num_bytes(); ++i) sum += std::to_integer<int>(view.data[i]);
    }
    return sum + 1;
  };
  const std::string whole = ReadFile(kPickles / "kinds.bin");
  const Archive archive = ReadArchive(kPickles / "kinds.bin");
  int readable = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = whole;
    change(bytes);
    WriteFile(path, bytes);
    readable += read() != 0;
    // The pickle alone.
    Archive changed = archive;
    change(changed.at("data.pkl"));
    WriteArchive(changed, path);
    readable += read() != 0;
  }
  EXPECT_GT(readable, 0);
  EXPECT_LT(readable, 6000);
}

}  // namespace
}  // namespace ddl
