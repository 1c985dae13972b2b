#include "model/checkpoint/pickle_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ddl {
namespace {

using std::string_literals::operator""s;  // texts with zeros in them
using testing::HasSubstr;

// Programs for the pickle machine, each after the protocol's two bytes.
TEST(PickleCheckTest, LetsOnlySoundProgramsPass) {
  struct Row {
    std::string name;
    std::string program;
    std::string message;  // nothing: it passes
  };
  const std::string many_tuples = "})" + std::string(1000, '\x85') + ".";
  const std::vector<Row> rows = {
      {"an empty dict", "}."s, ""},
      {"one item", "}X\1\0\0\0aK\1s."s, ""},
      {"items after a mark", "}(X\1\0\0\0aK\1X\1\0\0\0bNu."s, ""},
      {"no items after a mark", "}(u."s, ""},
      {"remembered and recalled", "}q\0X\1\0\0\0aq\1h\1s."s, ""},
      {"nothing", ""s, "damaged"},
      {"no end", "}"s, "damaged"},
      {"two results", "}}."s, "damaged"},
      {"no result", "."s, "damaged"},
      {"an open mark", "}(."s, "damaged"},
      {"not a dict", "N."s, "does not hold a dict"},
      {"an odd number of items", "}(X\1\0\0\0au."s, "damaged"},
      {"items without a dict", "(NNu."s, "damaged"},
      {"items without a mark", "}NNu."s, "damaged"},
      {"items for a number", "K\1(NNu."s, "damaged"},
      {"an item across a mark", "}N(Ns."s, "damaged"},
      {"one item for nothing", "NNs."s, "damaged"},
      {"a tuple of nothing", "\x85."s, "damaged"},
      {"a tuple across a mark", "}(\x85."s, "damaged"},
      {"a tuple without a mark", "}t."s, "damaged"},
      {"a tuple of a closed mark's values", "}((\x85t."s, "damaged"},
      {"towers of tuples", many_tuples, "damaged"},
      {"a place that is not next", "}q\1."s, "damaged"},
      {"a place far away", "}r\xff\xff\xff\xff."s, "damaged"},
      {"a place never used", "}h\0."s, "damaged"},
      {"nothing to remember", "q\0}."s, "damaged"},
      {"a text longer than the pickle",
       "}X\xff\xff\xff\x7f"
       "a"s,
       "damaged"},
      {"a number cut off", "}J\1\1"s, "damaged"},
      {"a storage from a number", "}K\1Q."s, "damaged"},
      {"a storage without a type", "}(NNNNNtQs."s, "damaged"},
      {"a storage of nothing", "Q."s, "damaged"},
      {"a call of a number", "}K\1)R."s, "damaged"},
      {"a call without arguments", "ctorch._utils\n_rebuild_tensor_v2\nR."s, "damaged"},
      {"a call across a mark", "ctorch._utils\n_rebuild_tensor_v2\n()R."s, "damaged"},
      {"a name without an end", "}cos\nsystem"s, "damaged"},
      {"a command", "cos\nsystem\nX\1\0\0\0a\x85R."s, "names os.system"},
      {"a name with control characters", "c\x1b[31m\nx\n."s, R"(names \x1b[31m.x)"},
      {"Python's own evaluation", "cbuiltins\neval\n."s, "names builtins.eval"},
      {"an attribute", "}N}b."s, "0x62"},
      {"an old instruction that calls", "(X\1\0\0\0aios\nsystem\n."s, "0x69"},
      {"a new object", "}N\x81."s, "0x81"},
      {"a list", "]."s, "0x5d"},
      {"an ordered dict", "ccollections\nOrderedDict\n)R."s, "OrderedDict, as a bare"},
      {"an ordered dict with an item", "ccollections\nOrderedDict\n)RNNs."s,
       "OrderedDict, as a bare"},
      {"an ordered dict with items", "ccollections\nOrderedDict\n)R(NNu."s,
       "OrderedDict, as a bare"},
      {"an ordered dict with attributes", "ccollections\nOrderedDict\n)R}b."s,
       "OrderedDict, as a bare"},
      {"an ordered dict in a dict", "}Nccollections\nOrderedDict\n)RNNss."s, "inside"},
      {"an empty ordered dict in a dict", "}Nccollections\nOrderedDict\n)Rs."s, ""},
  };
  for (const Row& row : rows) {
    const absl::Status status = CheckPickle("\x80\x02" + row.program, "m/pytorch_model.bin");
    EXPECT_EQ(status.ok(), row.message.empty()) << row.name << "\n" << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(row.message)) << row.name;
    if (!status.ok()) {
      EXPECT_THAT(std::string(status.message()), HasSubstr("m/pytorch_model.bin")) << row.name;
    }
  }
}

}  // namespace
}  // namespace ddl
