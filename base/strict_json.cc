#include "base/strict_json.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"

namespace ddl {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 32;
constexpr size_t kMaxShown = 80;

// Watches the parser's events for what the parser itself lets pass.
class Strictness {
 public:
  // What the parser asks at each event: whether to keep the value.
  bool Accept(int depth, Json::parse_event_t event, const Json& value) {
    switch (event) {
      case Json::parse_event_t::object_start:
        if (static_cast<size_t>(depth) >= keys_.size()) keys_.resize(depth + 1);
        keys_[depth].clear();
        return NotTooDeep(depth);
      case Json::parse_event_t::array_start:
        return NotTooDeep(depth);
      case Json::parse_event_t::key:
        if (!keys_[depth - 1].insert(value.get_ref<const std::string&>()).second) {
          Refuse("the key " + ShowJson(value) + " appears twice in one object");
        }
        return true;
      default:
        return true;
    }
  }

  const std::string& problem() const { return problem_; }

 private:
  bool NotTooDeep(int depth) {
    if (depth < kMaxDepth) return true;
    Refuse("it nests deeper than " + std::to_string(kMaxDepth));
    return false;
  }
  void Refuse(std::string problem) {
    if (problem_.empty()) problem_ = std::move(problem);
  }

  std::vector<std::set<std::string>> keys_;  // by the depth of the object they are in
  std::string problem_;
};

std::string Shortened(std::string text) {
  if (text.size() <= kMaxShown) return text;
  return text.substr(0, kMaxShown - 3) + "...";
}

// The parser's message without its error number. It quotes the input before the error, whatever
// bytes these are and however many.
std::string ParserComplaint(std::string_view what) {
  if (const size_t number_end = what.find("] "); number_end != what.npos) {
    what.remove_prefix(number_end + 2);
  }
  const std::string_view start = what.substr(0, 200);
  return absl::CHexEscape({start.data(), start.size()}) + (what.size() > 200 ? "..." : "");
}

// `text` with quotes around the numbers that JSON has not.
std::string QuoteNonFinite(std::string_view text) {
  std::string quoted;
  quoted.reserve(text.size() + 16);
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    if (in_string) {
      in_string = text[i] != '"';
      const size_t length = text[i] == '\\' ? 2 : 1;
      quoted += text.substr(i, length);
      i += length;
      continue;
    }
    const std::string_view rest = text.substr(i);
    std::string_view found;
    for (const std::string_view number : {"NaN", "Infinity", "-Infinity"}) {
      if (rest.starts_with(number)) found = number;
    }
    if (found.empty()) {
      in_string = text[i] == '"';
      quoted += text[i++];
    } else {
      quoted.append(1, '"').append(found).append(1, '"');
      i += found.size();
    }
  }
  return quoted;
}

}  // namespace

absl::StatusOr<Json> ParsePythonJsonObject(std::string_view text, std::string_view source) {
  const bool is_plain = text.find("NaN") == text.npos && text.find("Infinity") == text.npos;
  return is_plain ? ParseJsonObject(text, source) : ParseJsonObject(QuoteNonFinite(text), source);
}

absl::StatusOr<Json> ParseJsonObject(std::string_view text, std::string_view source) {
  Strictness strictness;
  Json json;
  try {
    json = Json::parse(text, [&](int depth, Json::parse_event_t event, Json& value) {
      return strictness.Accept(depth, event, value);
    });
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(std::string(source) +
                                      " is not valid JSON: " + ParserComplaint(error.what()));
  }
  if (!strictness.problem().empty()) {
    return absl::InvalidArgumentError(std::string(source) +
                                      " is not acceptable JSON: " + strictness.problem());
  }
  if (!json.is_object()) {
    return absl::InvalidArgumentError(std::string(source) + " is not a JSON object, found " +
                                      ShowJson(json));
  }
  return json;
}

std::string ShowJson(const Json& value) {
  // Whole containers would bury the message.
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 8) return "a list";
  return Shortened(value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace));
}

std::string ShowName(std::string_view name) {
  return Shortened(absl::CHexEscape({name.data(), std::min(name.size(), 2 * kMaxShown)}));
}

}  // namespace ddl
