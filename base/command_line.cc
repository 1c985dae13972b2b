#include "base/command_line.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <optional>
#include <utility>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ddl {
namespace {

// A flag file that includes itself would otherwise be read for ever.
constexpr int kMaxFlagfileDepth = 10;
constexpr std::string_view kFlagfile = "flagfile";

// Smallest number of letters to insert, delete or replace that turns `a` into `b`.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

std::string EnvironmentName(std::string_view flag) {
  std::string name = "DDL_";
  for (const char c : flag) name += absl::ascii_toupper(static_cast<unsigned char>(c));
  return name;
}

// The one line that a bad flag leads to: no line breaks, however the value looks.
absl::Status FlagError(std::string message) {
  std::replace_if(
      message.begin(), message.end(), [](unsigned char c) { return std::iscntrl(c) != 0; }, ' ');
  return absl::InvalidArgumentError(message);
}

class Parser {
 public:
  explicit Parser(absl::Span<const FlagGroup> groups) {
    for (const FlagGroup& group : groups) {
      names_.insert(names_.end(), group.flags.begin(), group.flags.end());
    }
  }

  absl::Status ReadEnvironment(const Environment& environment) {
    if (auto found = environment.find(EnvironmentName(kFlagfile)); found != environment.end()) {
      if (auto status = ReadFlagfiles(found->second, found->first, 0); !status.ok()) return status;
    }
    for (const std::string_view name : names_) {
      const auto found = environment.find(EnvironmentName(name));
      if (found == environment.end()) continue;
      if (auto status = Set(name, found->second, found->first + " in the environment");
          !status.ok()) {
        return status;
      }
    }
    return absl::OkStatus();
  }

  // Reads `arguments`, which came from `source` (empty: the command line).
  absl::Status Read(absl::Span<const std::string> arguments, const std::string& source, int depth) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      const std::string_view argument = arguments[i];
      if (argument.size() < 2 || argument[0] != '-' || argument == "--") {
        return FlagError(absl::StrCat(Prefix(source), "unexpected argument '", arguments[i],
                                      "': every setting is a flag, --name=value"));
      }
      std::string_view name = argument.substr(argument[1] == '-' ? 2 : 1);
      std::optional<std::string> value;
      if (const size_t equals = name.find('='); equals != std::string_view::npos) {
        value = name.substr(equals + 1);
        name = name.substr(0, equals);
      }
      if (name == "help" || name == "version") {
        action_ = name == "help" ? CommandLineAction::kHelp : CommandLineAction::kVersion;
        return absl::OkStatus();
      }
      if (!value.has_value()) {
        if (IsBool(name)) {
          value = "true";
        } else if (name.starts_with("no") && IsBool(name.substr(2))) {
          name.remove_prefix(2);
          value = "false";
        } else if (!IsKnown(name)) {
          return UnknownFlag(name, source);
        } else if (i + 1 == arguments.size()) {
          return FlagError(absl::StrCat(Prefix(source), "--", std::string(name),
                                        " lacks a value: --", std::string(name), "=VALUE"));
        } else {
          value = arguments[++i];
        }
      }
      absl::Status status = !IsKnown(name)      ? UnknownFlag(name, source)
                            : name == kFlagfile ? ReadFlagfiles(*value, source, depth)
                                                : Set(name, *value, source);
      if (!status.ok() || action_ != CommandLineAction::kRun) return status;
    }
    return absl::OkStatus();
  }

  CommandLineAction action() const { return action_; }

 private:
  static std::string Prefix(const std::string& source) {
    return source.empty() ? "" : source + ": ";
  }

  bool IsKnown(std::string_view name) const {
    return name == kFlagfile || std::find(names_.begin(), names_.end(), name) != names_.end();
  }

  bool IsBool(std::string_view name) const {
    return name != kFlagfile && IsKnown(name) &&
           absl::FindCommandLineFlag(absl::string_view(name.data(), name.size()))->IsOfType<bool>();
  }

  absl::Status Set(std::string_view name, const std::string& value, const std::string& source) {
    absl::CommandLineFlag* flag =
        absl::FindCommandLineFlag(absl::string_view(name.data(), name.size()));
    std::string error;
    if (flag->ParseFrom(value, &error)) return absl::OkStatus();
    return FlagError(Prefix(source) + error);
  }

  absl::Status UnknownFlag(std::string_view name, const std::string& source) const {
    std::string message = absl::StrCat(Prefix(source), "unknown flag --", std::string(name));
    std::string_view nearest = kFlagfile;
    for (const std::string_view known : names_) {
      if (EditDistance(name, known) < EditDistance(name, nearest)) nearest = known;
    }
    if (EditDistance(name, nearest) <= std::max<size_t>(2, nearest.size() / 3)) {
      absl::StrAppend(&message, "; did you mean --", std::string(nearest), "?");
    } else {
      message += "; --help lists them";
    }
    return FlagError(message);
  }

  absl::Status ReadFlagfiles(const std::string& paths, const std::string& source, int depth) {
    if (depth == kMaxFlagfileDepth) {
      return FlagError(absl::StrCat(Prefix(source), "--flagfile=", paths, ": more than ",
                                    kMaxFlagfileDepth, " flag files inside each other"));
    }
    for (const absl::string_view path : absl::StrSplit(paths, ',')) {
      std::ifstream file{std::string(path)};
      int number = 0;
      for (std::string raw; std::getline(file, raw);) {
        ++number;
        const absl::string_view line = absl::StripAsciiWhitespace(raw);
        if (line.empty() || line[0] == '#') continue;
        auto status = Read({std::string(line)}, absl::StrCat(path, ":", number), depth + 1);
        if (!status.ok() || action_ != CommandLineAction::kRun) return status;
      }
      if (!file.is_open() || file.bad()) {
        return FlagError(absl::StrCat(Prefix(source), "--flagfile: cannot read '", path, "'"));
      }
    }
    return absl::OkStatus();
  }

  std::vector<std::string_view> names_;
  CommandLineAction action_ = CommandLineAction::kRun;
};

const absl::CommandLineFlag& FlagNamed(std::string_view name) {
  return *absl::FindCommandLineFlag(absl::string_view(name.data(), name.size()));
}

// "--name=default" of a defined flag.
std::string WithDefault(const absl::CommandLineFlag& flag) {
  const std::string value = flag.DefaultValue();
  return absl::StrCat("--", flag.Name(), value.empty() ? "" : "=", value);
}

// Breaks `text` into lines of at most `width`, each after `indent` spaces.
std::string Wrap(const std::string& text, size_t indent, size_t width) {
  std::string out;
  size_t column = 0;
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (column == 0 || column + 1 + word.size() > width) {
      absl::StrAppend(&out, column == 0 ? "" : "\n", std::string(indent, ' '), word);
      column = indent + word.size();
    } else {
      absl::StrAppend(&out, " ", word);
      column += 1 + word.size();
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<CommandLineAction> ParseCommandLine(absl::Span<const FlagGroup> groups,
                                                   absl::Span<const std::string> arguments,
                                                   const Environment& environment) {
  Parser parser(groups);
  // These two work whatever else is wrong.
  for (const std::string& argument : arguments) {
    if (argument == "--help") return CommandLineAction::kHelp;
    if (argument == "--version") return CommandLineAction::kVersion;
  }
  if (auto status = parser.ReadEnvironment(environment); !status.ok()) return status;
  if (parser.action() != CommandLineAction::kRun) return parser.action();
  if (auto status = parser.Read(arguments, "", 0); !status.ok()) return status;
  return parser.action();
}

std::string HelpText(absl::Span<const FlagGroup> groups, std::string_view usage) {
  std::string text(usage);
  for (const FlagGroup& group : groups) {
    absl::StrAppend(&text, "\n", std::string(group.title), ":\n");
    for (const std::string_view name : group.flags) {
      const absl::CommandLineFlag& flag = FlagNamed(name);
      absl::StrAppend(&text, "  ", WithDefault(flag), "\n", Wrap(flag.Help(), 6, 96), "\n");
    }
  }
  return text;
}

std::string FlagsReference(absl::Span<const FlagGroup> groups) {
  std::string text;
  for (const FlagGroup& group : groups) {
    absl::StrAppend(&text, "\n## ", std::string(group.title), "\n\n");
    for (const std::string_view name : group.flags) {
      const absl::CommandLineFlag& flag = FlagNamed(name);
      absl::StrAppend(&text, "- `", WithDefault(flag), "`<br>\n", Wrap(flag.Help(), 2, 120), "\n");
    }
  }
  return text;
}

}  // namespace ddl
