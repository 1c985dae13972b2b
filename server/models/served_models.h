#ifndef DDL_SERVER_MODELS_SERVED_MODELS_H_
#define DDL_SERVER_MODELS_SERVED_MODELS_H_

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "model/tokenizer/eos_tokens.h"
#include "model/tokenizer/tokenizer.h"
#include "server/conversion/api_calls.h"
#include "server/engine/engine.h"

namespace ddl {

enum class ModelState { kLoading, kWarmingUp, kReady, kFailed };

// A model that has been loaded. Constant; the engine has its own rules.
struct ReadyModel {
  ModelIdentity identity;
  std::string variant;  // "gpt", "ccec" ...
  std::string weights_sha256;
  std::shared_ptr<const Tokenizer> tokenizer;  // null: token ids only
  EosTokens eos_tokens;
  RequestLimits limits;
  std::unique_ptr<Engine> engine;
};

// One name that clients can ask for, from before its checkpoint is read. Thread-safe.
class ServedModel {
 public:
  explicit ServedModel(std::string name) : name_(std::move(name)) {}

  const std::string& name() const { return name_; }
  ModelState state() const;
  std::string state_message() const;  // of kFailed
  // Null until the model is ready; then for ever the same.
  const ReadyModel* ready() const { return published_.load(std::memory_order_acquire); }

  void SetWarmingUp();
  void SetReady(std::unique_ptr<const ReadyModel> model);
  void SetFailed(std::string message);

 private:
  const std::string name_;
  std::atomic<const ReadyModel*> published_ = nullptr;
  mutable Mutex mu_;
  ModelState state_ ABSL_GUARDED_BY(mu_) = ModelState::kLoading;
  std::string message_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<const ReadyModel> model_ ABSL_GUARDED_BY(mu_);
};

// The models of this server; the first is the default. Thread-safe; the list is constant.
class ServedModels {
 public:
  explicit ServedModels(const std::vector<std::string>& names);  // at least one

  const std::vector<std::unique_ptr<ServedModel>>& all() const { return models_; }

  // The model called `name`; the default for "". NOT_FOUND, with the names served.
  absl::StatusOr<ServedModel*> Find(std::string_view name) const;
  // The same, when it can take requests: UNAVAILABLE, LOADING or DRAINING, with RetryInfo.
  absl::StatusOr<const ReadyModel*> FindReady(std::string_view name) const;

  // From now on FindReady and the engines answer UNAVAILABLE.
  void StopAdmission();

 private:
  std::vector<std::unique_ptr<ServedModel>> models_;
  std::atomic<bool> admitting_ = true;
};

}  // namespace ddl

#endif  // DDL_SERVER_MODELS_SERVED_MODELS_H_
