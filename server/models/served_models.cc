#include "server/models/served_models.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status_details.h"

namespace ddl {
namespace {

// How long clients are asked to wait before they try again. For a server that drains: long
// enough for a client's load balancer to have found another one.
constexpr absl::Duration kRetryWhileLoading = absl::Seconds(2);
constexpr absl::Duration kRetryWhileDraining = absl::Seconds(1);

absl::Status Unavailable(const std::string& message, const char* reason, absl::Duration retry) {
  return WithDetails(absl::UnavailableError(message),
                     {.reason = reason, .retry_after = retry, .field_violations = {}});
}

}  // namespace

ModelState ServedModel::state() const {
  const MutexLock lock(mu_);
  return state_;
}

std::string ServedModel::state_message() const {
  const MutexLock lock(mu_);
  return message_;
}

void ServedModel::SetWarmingUp() {
  const MutexLock lock(mu_);
  state_ = ModelState::kWarmingUp;
}

void ServedModel::SetReady(std::unique_ptr<const ReadyModel> model) {
  const MutexLock lock(mu_);
  DDL_CHECK(model_ == nullptr, "a model becomes ready once");
  model_ = std::move(model);
  state_ = ModelState::kReady;
  published_.store(model_.get(), std::memory_order_release);
}

void ServedModel::SetFailed(std::string message) {
  const MutexLock lock(mu_);
  state_ = ModelState::kFailed;
  message_ = std::move(message);
}

ServedModels::ServedModels(const std::vector<std::string>& names) {
  DDL_CHECK(!names.empty(), "a server serves a model");
  for (const std::string& name : names) models_.push_back(std::make_unique<ServedModel>(name));
}

absl::StatusOr<ServedModel*> ServedModels::Find(std::string_view name) const {
  if (name.empty()) return models_.front().get();
  for (const auto& model : models_) {
    if (model->name() == name) return model.get();
  }
  const std::string names = absl::StrJoin(models_, ", ", [](std::string* out, const auto& model) {
    absl::StrAppend(out, "'", model->name(), "'");
  });
  return absl::NotFoundError(
      absl::StrCat("no model is called '", std::string(name.substr(0, 128)), "'; served: ", names));
}

absl::StatusOr<const ReadyModel*> ServedModels::FindReady(std::string_view name) const {
  const absl::StatusOr<ServedModel*> model = Find(name);
  if (!model.ok()) return model.status();
  if (!admitting_) return Unavailable("the server is draining", "DRAINING", kRetryWhileDraining);
  if (const ReadyModel* ready = (*model)->ready()) return ready;
  return Unavailable(absl::StrCat("model '", (*model)->name(), "' is loading"), "LOADING",
                     kRetryWhileLoading);
}

void ServedModels::StopAdmission() {
  admitting_ = false;
  for (const auto& model : models_) {
    if (const ReadyModel* ready = model->ready()) ready->engine->StopAdmission();
  }
}

}  // namespace ddl
