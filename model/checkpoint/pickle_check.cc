#include "model/checkpoint/pickle_check.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/strict_json.h"
#include "model/checkpoint/convert_command.h"

namespace ddl {
namespace {

// Instructions of the pickle format, protocol 2.
enum Opcode : uint8_t {
  kProto = 0x80,
  kGlobal = 'c',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBuild = 'b',
  kMark = '(',
  kStop = '.',
  kEmptyDict = '}',
  kSetItem = 's',
  kSetItems = 'u',
  kEmptyTuple = ')',
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kTuple = 't',
  kNone = 'N',
  kTrue = 0x88,
  kFalse = 0x89,
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kBinInt = 'J',
  kLong1 = 0x8a,
  kBinFloat = 'G',
  kBinUnicode = 'X',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kBinGet = 'h',
  kLongBinGet = 'j',
};

// What the walk remembers of a value on the stack.
enum class Kind {
  kValue,
  kStorageType,       // torch.FloatStorage and its like
  kStorageId,         // ('storage', type, key, location, size)
  kFunction,          // that rebuilds a tensor
  kOrderedDictClass,  // torch.save writes an empty one, for hooks, with every tensor
  kOrderedDict,
  kDict,
};

struct Slot {
  Kind kind = Kind::kValue;
  int height = 0;  // of the tuples below it: deep ones would be taken down recursively
};

struct NamedKind {
  std::string_view name;
  Kind kind;
};
constexpr NamedKind kGlobals[] = {
    {"torch._utils._rebuild_tensor_v2", Kind::kFunction},
    {"torch._utils._rebuild_parameter", Kind::kFunction},
    {"collections.OrderedDict", Kind::kOrderedDictClass},
    {"torch.FloatStorage", Kind::kStorageType},
    {"torch.BFloat16Storage", Kind::kStorageType},
    {"torch.HalfStorage", Kind::kStorageType},
    {"torch.DoubleStorage", Kind::kStorageType},
    // Read, so that the tensors of these types can be named as not servable.
    {"torch.LongStorage", Kind::kStorageType},
    {"torch.IntStorage", Kind::kStorageType},
    {"torch.ShortStorage", Kind::kStorageType},
    {"torch.CharStorage", Kind::kStorageType},
    {"torch.ByteStorage", Kind::kStorageType},
    {"torch.BoolStorage", Kind::kStorageType},
};
constexpr int kMaxHeight = 8;

class PickleWalk {
 public:
  PickleWalk(std::string_view pickle, std::string_view path) : pickle_(pickle), path_(path) {}

  absl::Status Run() {
    if (Number(1) != kProto || Number(1) != 2) {
      RefuseConvertible(
          "is not a pickle of protocol 2, which torch.save writes unless told otherwise");
    }
    while (!stopped_ && refusal_.ok()) Step();
    return refusal_;
  }

 private:
  void Step() {
    const std::optional<uint64_t> opcode = Number(1);
    if (!opcode) return Unsound();
    switch (*opcode) {
      case kEmptyDict:
        return Push({Kind::kDict});
      case kEmptyTuple:
      case kNone:
      case kTrue:
      case kFalse:
        return Push({});
      case kBinInt1:
        return PushLiteral(1);
      case kBinInt2:
        return PushLiteral(2);
      case kBinInt:
        return PushLiteral(4);
      case kBinFloat:
        return PushLiteral(8);
      case kLong1:
        return PushLiteral(Number(1));
      case kBinUnicode:
        return PushLiteral(Number(4));
      case kBinPut:
        return Remember(Number(1));
      case kLongBinPut:
        return Remember(Number(4));
      case kBinGet:
        return Recall(Number(1));
      case kLongBinGet:
        return Recall(Number(4));
      case kMark:
        return marks_.push_back(stack_.size());
      case kTuple1:
      case kTuple2:
      case kTuple3:
        return MakeTuple(*opcode - kTuple1 + 1);
      case kTuple:
        return MakeTuple(PopMark());
      case kSetItem:
        return Fill(2);
      case kSetItems:
        return Fill(PopMark());
      case kBinPersId:
        return LoadStorage();
      case kGlobal:
        return LoadGlobal();
      case kReduce:
        return Call();
      case kBuild:
        return SetAttributes();
      case kStop:
        return Stop();
      default:
        return RefuseInstruction(static_cast<uint8_t>(*opcode));
    }
  }

  // --- reading the program ---

  std::optional<uint64_t> Number(size_t bytes) {
    if (pickle_.size() - position_ < bytes) return std::nullopt;
    uint64_t number = 0;
    for (size_t i = 0; i < bytes; ++i) {
      number |= static_cast<uint64_t>(static_cast<uint8_t>(pickle_[position_ + i])) << (8 * i);
    }
    position_ += bytes;
    return number;
  }

  std::optional<std::string_view> Line() {
    const size_t end = pickle_.find('\n', position_);
    if (end == pickle_.npos) return std::nullopt;
    const std::string_view line = pickle_.substr(position_, end - position_);
    position_ = end + 1;
    return line;
  }

  // --- the stack ---

  // How many values the instructions since the last mark have left.
  size_t Available() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }

  void Push(Slot slot) { stack_.push_back(slot); }
  void Pop(size_t count) { stack_.resize(stack_.size() - count); }
  Slot& FromTop(size_t index) { return stack_[stack_.size() - 1 - index]; }

  // Forgets the last mark; how many values were above it.
  std::optional<size_t> PopMark() {
    if (marks_.empty()) return std::nullopt;
    const size_t count = Available();
    marks_.pop_back();
    return count;
  }

  // --- the instructions ---

  void PushLiteral(std::optional<size_t> bytes) {
    if (!bytes || pickle_.size() - position_ < *bytes) return Unsound();
    position_ += *bytes;
    Push({});
  }

  // Places are numbered in the order of their first use, so a pickle cannot ask for a huge table.
  void Remember(std::optional<uint64_t> place) {
    if (!place || *place > memo_.size() || Available() < 1) return Unsound();
    if (*place == memo_.size()) memo_.emplace_back();
    memo_[*place] = stack_.back();
  }

  void Recall(std::optional<uint64_t> place) {
    if (!place || *place >= memo_.size()) return Unsound();
    Push(memo_[*place]);
  }

  void MakeTuple(std::optional<size_t> count) {
    if (!count || Available() < *count) return Unsound();
    const std::span<const Slot> items = std::span(stack_).last(*count);
    Slot tuple;
    for (const Slot& item : items) tuple.height = std::max(tuple.height, item.height + 1);
    if (tuple.height > kMaxHeight) return Unsound();
    if (*count == 5 && items[1].kind == Kind::kStorageType) tuple.kind = Kind::kStorageId;
    Pop(*count);
    Push(tuple);
  }

  // Puts `count` values, keys and values in turn, into the dict below them.
  void Fill(std::optional<size_t> count) {
    if (!count || *count % 2 != 0 || Available() < *count + 1) return Unsound();
    const Slot& dict = FromTop(*count);
    if (dict.kind == Kind::kOrderedDict) return RefuseOrderedDict(stack_.size() - *count == 1);
    if (dict.kind != Kind::kDict) return Unsound();
    Pop(*count);
  }

  void LoadStorage() {
    if (Available() < 1 || stack_.back().kind != Kind::kStorageId) return Unsound();
    stack_.back() = {};
  }

  void LoadGlobal() {
    const std::optional<std::string_view> module = Line();
    const std::optional<std::string_view> member = Line();
    if (!module || !member) return Unsound();
    const std::string name = std::string(*module) + "." + std::string(*member);
    for (const NamedKind& global : kGlobals) {
      if (name == global.name) return Push({global.kind});
    }
    RefuseConvertible("names " + ShowName(name) +
                      ", which a dict of tensors does not need. Nothing of it was run. Expected is "
                      "what torch.save writes for a plain dict of tensors");
  }

  void Call() {
    if (Available() < 2) return Unsound();
    const Kind callee = FromTop(1).kind;
    if (callee != Kind::kFunction && callee != Kind::kOrderedDictClass) return Unsound();
    Pop(2);
    Push({callee == Kind::kFunction ? Kind::kValue : Kind::kOrderedDict});
  }

  // state_dict() hangs its metadata on the OrderedDict in this way.
  void SetAttributes() {
    if (Available() < 2) return Unsound();
    if (FromTop(1).kind == Kind::kOrderedDict) return RefuseOrderedDict(stack_.size() == 2);
    RefuseInstruction(kBuild);
  }

  void Stop() {
    if (stack_.size() != 1 || !marks_.empty()) return Unsound();
    if (stack_.back().kind == Kind::kOrderedDict) return RefuseOrderedDict(true);
    if (stack_.back().kind != Kind::kDict) {
      Refuse("does not hold a dict of tensors");
      return;
    }
    stopped_ = true;
  }

  // --- refusals ---

  void Refuse(const std::string& why) {
    refusal_ = absl::InvalidArgumentError(std::string(path_) + " " + why);
  }

  void Unsound() {
    Refuse("holds a damaged pickle: it makes no sense before byte " + std::to_string(position_));
  }

  // It may be a dict of more than tensors, or of another kind: what a training run saves.
  void RefuseConvertible(const std::string& why) {
    Refuse(why);
    refusal_ = Convertible(refusal_);
  }

  void RefuseInstruction(uint8_t opcode) {
    std::array<char, 8> hex;
    std::snprintf(hex.data(), hex.size(), "0x%02x", opcode);
    RefuseConvertible("holds something other than a plain dict of tensors (pickle instruction " +
                      std::string(hex.data()) + " before byte " + std::to_string(position_) + ")");
  }

  void RefuseOrderedDict(bool is_outermost) {
    RefuseConvertible(
        is_outermost ? "holds a collections.OrderedDict, as a bare state_dict() is, expected a "
                       "plain dict of tensors"
                     : "holds a collections.OrderedDict inside of another value, expected nothing "
                       "but a plain dict of tensors");
  }

  const std::string_view pickle_;
  const std::string_view path_;
  size_t position_ = 0;
  bool stopped_ = false;
  absl::Status refusal_;
  std::vector<Slot> stack_;
  std::vector<size_t> marks_;  // stack sizes
  std::vector<Slot> memo_;
};

}  // namespace

absl::Status CheckPickle(std::string_view pickle, std::string_view path) {
  return PickleWalk(pickle, path).Run();
}

}  // namespace ddl
