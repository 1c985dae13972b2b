#ifndef DDL_BASE_PROBLEM_LIST_H_
#define DDL_BASE_PROBLEM_LIST_H_

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace ddl {

// What is wrong with a file, one line each, for one message that names everything at once.
class ProblemList {
 public:
  void Add(std::string line) { lines_.push_back(std::move(line)); }
  bool empty() const { return lines_.empty(); }
  size_t size() const { return lines_.size(); }

  // The heading, then each problem on an indented line of its own; after kMaxLines only how many
  // more there are, so that a file of a thousand wrong tensors still makes a readable message.
  std::string Message(std::string heading) const {
    for (size_t i = 0; i < lines_.size() && i < kMaxLines; ++i) heading += "\n  " + lines_[i];
    if (lines_.size() > kMaxLines) {
      heading += "\n  and " + std::to_string(lines_.size() - kMaxLines) + " more";
    }
    return heading;
  }

 private:
  static constexpr size_t kMaxLines = 20;

  std::vector<std::string> lines_;
};

}  // namespace ddl

#endif  // DDL_BASE_PROBLEM_LIST_H_
